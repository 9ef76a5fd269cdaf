"""Second derivatives of losses that forward mode cannot enter (`jax.custom_vjp`), and of those that have none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import flat, no_tasks, relative

import adaptax as ax
from adaptax.stepsize import Edge, Learned


@jax.custom_vjp
def softplus(x):
    return jnp.logaddexp(x, 0.0)


softplus.defvjp(lambda x: (softplus(x), x), lambda x, g: (g * jax.nn.sigmoid(x),))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def scaled(x, sharpness):
    return jnp.logaddexp(sharpness * x, 0.0) / sharpness


scaled.defvjp(lambda x, s: (scaled(x, s), x), lambda s, x, g: (g * jax.nn.sigmoid(s * x),))


@jax.custom_vjp
def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


cross_entropy.defvjp(
    lambda logits, labels: (cross_entropy(logits, labels), (logits, labels)),
    lambda saved, g: (g[:, None] * (jax.nn.softmax(saved[0]) - jax.nn.one_hot(saved[1], saved[0].shape[1])), None),
)


@jax.custom_vjp
def clipped(x):
    """The identity, whose derivative is clipped: its Jacobian as a gradient is not symmetric."""
    return x


clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (jnp.tanh(g),))


def on_host(function, x):
    return jax.pure_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")


@jax.custom_vjp
def simulated(x):
    return on_host(lambda x: np.logaddexp(np.asarray(x), 0), x)


simulated.defvjp(lambda x: (simulated(x), x), lambda x, g: (g * on_host(lambda x: 1 / (1 + np.exp(-np.asarray(x))), x),))


def setting():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=size)) for size in ((5, 3), (5,)))
    task = ax.Task((x, y), (x[:4] + 0.3, y[:4]))
    return {"bias": jnp.array(0.1), "w": jnp.asarray(rng.normal(size=3))}, task


def loss_with(activation, p, batch):
    x, y = batch
    return jnp.mean((activation(x @ p["w"] + p["bias"]) - y) ** 2)


def scanning(activation, p, batch):
    """The activation inside a checkpointed loop over the examples."""

    @jax.checkpoint
    def step(total, example):
        return total + loss_with(activation, p, jax.tree.map(lambda leaf: leaf[None], example)), None

    return jax.lax.scan(step, jnp.zeros(()), batch)[0] / len(batch[1])


def mapping(activation, p, batch):
    return jnp.mean(jax.vmap(lambda x, y: (jax.jit(activation)(x @ p["w"] + p["bias"]) - y) ** 2)(*batch))


def plain(x):
    return jnp.logaddexp(x, 0.0)


CUSTOM = ax.FiniteSum(partial(loss_with, softplus), lambda key: setting()[1])
PLAIN = ax.FiniteSum(partial(loss_with, plain), lambda key: setting()[1])
HOST = ax.FiniteSum(partial(loss_with, simulated), lambda key: setting()[1])
BIAS = lambda path: path == "bias"  # noqa: E731


def unrolled(loss, target, params, task, steps=3, alpha=0.3):
    """The meta-gradient by backpropagation through a loop in Python."""

    def value(w):
        for _ in range(steps):
            w = jax.tree.map(lambda a, g: a - alpha * g, w, jax.grad(loss)(w, task.support))
        return target(w, task.target)

    return jax.grad(value)(params)


FORMS = {
    "plain call": loss_with,
    "checkpointed scan": scanning,
    "vmap and jit": mapping,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_custom_vjp_has_the_meta_gradient_of_the_function_it_stands_for(x64, form):
    params, task = setting()
    expected = unrolled(partial(loss_with, plain), partial(loss_with, plain), params, task)
    for function in (softplus, lambda x: scaled(x, 1.0)):
        problem = ax.FiniteSum(partial(FORMS[form], function), no_tasks)
        assert relative(ax.MetaGradient(ax.Inner(3, 0.3))(problem, params, task)[1], expected) < 1e-12


def test_a_softmax_with_a_derivative_of_its_own(x64):
    params, task = setting()
    labels = lambda batch: jnp.arange(len(batch[1])) % 3  # noqa: E731
    loss = lambda of: lambda p, b: jnp.mean(of(jnp.tanh(b[0]) * p["w"] + p["bias"] * b[0], labels(b)))  # noqa: E731
    plain_loss = loss(optax.softmax_cross_entropy_with_integer_labels)
    expected = unrolled(plain_loss, plain_loss, params, task)
    got = ax.MetaGradient(ax.Inner(3, 0.3))(ax.FiniteSum(loss(cross_entropy), no_tasks), params, task)[1]
    assert relative(got, expected) < 1e-12


def test_a_derivative_that_is_none_is_taken_as_backpropagation_takes_it(x64):
    params, task = setting()
    loss = lambda p, b: jnp.mean((clipped(jnp.tanh(b[0]) @ p["w"] ** 2 + p["bias"]) - b[1]) ** 2)  # noqa: E731
    got = ax.MetaGradient(ax.Inner(3, 0.3))(ax.FiniteSum(loss, no_tasks), params, task)[1]
    assert relative(got, unrolled(loss, loss, params, task)) < 1e-12


METHODS = {
    "sqrt": ax.MetaGradient(ax.Inner(3, 0.3), store="sqrt"),
    "frozen, hoisted": ax.MetaGradient(ax.Inner(3, 0.3, BIAS)),
    "momentum": ax.MetaGradient(ax.Inner(3, optimizer=optax.sgd(0.3, momentum=0.8))),
    "adam, proximal": ax.MetaGradient(ax.Inner(3, optimizer=optax.adam(0.1, eps_root=1e-3), proximal=0.5)),
    "multi-step": ax.MetaGradient(ax.Inner(3, 0.3), multi_step=ax.MultiStep()),
    "learned": ax.MetaGradient(ax.Inner(3, Learned(0.3, per="leaf", per_step=True))),
    "backprop": ax.MetaGradient(ax.Inner(3, 0.3), mode="backprop"),
    "edge": ax.MetaGradient(ax.Inner(3, Edge(0.5))),
    "implicit": ax.Implicit(ax.Inner(5, 0.3, BIAS, proximal=1.0)),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_custom_vjp(x64, name):
    method, (params, task) = METHODS[name], setting()
    stepsize = method.inner.stepsize
    given = ax.Meta(params, stepsize.start(params, 3)) if isinstance(stepsize, Learned) else params
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), task)
    for got, expected in (
        (method(CUSTOM, given, task), method(PLAIN, given, task)),
        (method.batch(CUSTOM, given, tasks), method.batch(PLAIN, given, tasks)),
    ):
        assert relative(got, expected) < 1e-10


def test_adapt_and_evaluate_take_a_custom_vjp(x64):
    params, task = setting()
    value = lambda problem: lambda p: PLAIN.loss(ax.adapt(problem, p, task, ax.Inner(3, 0.3)).params, task.target)  # noqa: E731
    assert relative(jax.grad(value(CUSTOM))(params), jax.grad(value(PLAIN))(params)) < 1e-12
    got, expected = (
        ax.evaluate(p, params, ax.Inner(3, Edge()), [3], tasks=2, devices=jax.devices()[:1]).mean for p in (CUSTOM, PLAIN)
    )
    assert relative(got, expected) < 1e-12


def test_a_loss_that_adapts_by_itself_has_second_derivatives(x64):
    # `ax.adapt` is a function with a custom_vjp too.
    params, task = setting()

    def nested(descend):
        return lambda p, b: PLAIN.loss(descend(p, b), b)

    by_hand = lambda p, b: jax.tree.map(lambda a, g: a - 0.2 * g, p, jax.grad(PLAIN.loss)(p, b))  # noqa: E731
    loss = nested(lambda p, b: ax.adapt(PLAIN, p, ax.Task(b), ax.Inner(1, 0.2)).params)
    expected = unrolled(nested(by_hand), nested(by_hand), params, task, 2, 0.1)
    got = ax.MetaGradient(ax.Inner(2, 0.1))(ax.FiniteSum(loss, no_tasks), params, task)[1]
    assert relative(got, expected) < 1e-12


@pytest.mark.long
@pytest.mark.parametrize("outer", ["trust", "adaptive", "proximal"])
@pytest.mark.filterwarnings("ignore:AdaptiveOuter")
def test_outer_steps_take_a_custom_vjp(x64, outer):
    params, _ = setting()

    def apart(old, new, batch):
        before, now = (softplus(batch[0] @ p["w"] + p["bias"]) for p in (old, new))
        return 0.5 * jnp.mean((now - before) ** 2)

    moved = []
    for problem in (CUSTOM, PLAIN):
        optimizer = {
            "trust": lambda: ax.outer.TrustRegion(apart),
            "adaptive": lambda: ax.outer.AdaptiveOuter(tasks=2),
            "proximal": lambda: ax.outer.Proximal(problem.loss, optax.sgd(0.1), 2),  # noqa: B023
        }[outer]()
        step = ax.make_step(problem, ax.MetaGradient(ax.Inner(2, 0.2)), optimizer, 2)
        moved.append(step(step.init(params))[0].params)
    assert relative(*moved) < 1e-9 and relative(moved[0], params) > 1e-6


@pytest.mark.slow
@pytest.mark.mission
def test_measurements_and_the_monitor_take_a_custom_vjp(x64):
    params, _ = setting()
    for measure in (
        lambda p: ax.measure.constants(p, params, ax.Inner(2, 0.2), tasks=2, iterations=4).L.value,
        lambda p: ax.measure.stationarity(p, params, ax.MetaGradient(ax.Inner(2, 0.2)), tasks=8).upper,
        lambda p: ax.train(
            p, params, ax.MetaGradient(ax.Inner(2, 0.2)), steps=1, tasks_per_step=2, monitor_every=1, devices=jax.devices()[:1]
        )[1]["alpha_lambda"],
    ):
        np.testing.assert_allclose(measure(CUSTOM), measure(PLAIN), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.mission
def test_noise_of_samples_takes_a_custom_vjp(x64):
    params, _ = setting()
    draw = lambda task, p, key, size: (jax.random.normal(key, (size, 3)), jnp.ones(size))  # noqa: E731
    found = [
        ax.measure.constants(
            ax.Resampling(partial(loss_with, f), lambda key: jnp.zeros(1), draw), params, ax.Inner(1, 0.2),
            tasks=2, iterations=4, draws=8, samples=ax.Samples(4, 4, 4),
        ).sigma_H.value
        for f in (softplus, plain)
    ]  # fmt: skip
    np.testing.assert_allclose(*found, rtol=1e-9)


SENTENCE = r"The loss cannot be differentiated twice \(.*\): use .*FiniteDifference\(\) or FirstOrder\(\), and differences=True"
REFUSED = {
    "exact": lambda p, w, t: ax.MetaGradient(ax.Inner(2, 0.1))(p, w, t),
    "backprop": lambda p, w, t: ax.MetaGradient(ax.Inner(2, 0.1), mode="backprop")(p, w, t),
    "momentum": lambda p, w, t: ax.MetaGradient(ax.Inner(2, optimizer=optax.sgd(0.1, 0.9)))(p, w, t),
    "implicit": lambda p, w, t: ax.Implicit(ax.Inner(2, 0.1, proximal=1.0))(p, w, t),
    "edge": lambda p, w, t: ax.MetaGradient(ax.Inner(2, Edge()), ax.curvature.FirstOrder())(p, w, t),
    "adapt": lambda p, w, t: jax.grad(lambda w: PLAIN.loss(ax.adapt(p, w, t, ax.Inner(2, 0.1)).params, t.target))(w),
    "train": lambda p, w, t: ax.train(p, w, ax.MetaGradient(ax.Inner(2, 0.1)), steps=1, tasks_per_step=1),
    "monitor": lambda p, w, t: ax.train(
        p, w, ax.MetaGradient(ax.Inner(2, 0.1), ax.curvature.FirstOrder()), steps=1, tasks_per_step=1, monitor_every=2
    ),
    "constants": lambda p, w, t: ax.measure.constants(p, w, ax.Inner(2, 0.1), tasks=2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_loss_without_second_derivatives_is_refused_in_a_sentence(name):
    with pytest.raises(ax.InputError, match=SENTENCE):
        REFUSED[name](HOST, *setting())


def test_what_the_sentence_names_works(x64):
    params, task = setting()
    inner = ax.Inner(2, Edge(0.5, differences=True))
    expected = ax.MetaGradient(ax.Inner(2, Edge(0.5)))(PLAIN, params, task)[1]
    got = ax.MetaGradient(inner, ax.curvature.FiniteDifference())(HOST, params, task)[1]
    assert relative(got, expected) < 1e-4
    first = ax.MetaGradient(ax.Inner(2, 0.1), ax.curvature.FirstOrder())
    np.testing.assert_allclose(flat(first(HOST, params, task)[1]), flat(first(PLAIN, params, task)[1]), rtol=1e-9)
