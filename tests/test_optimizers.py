"""Which transformations of optax can be inner optimisers: each is tried on parameters, and the verdict is checked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import flat, no_tasks

import adaptax as ax
from adaptax._optimizers import check_is_optimizer, check_optimizer

C = optax.contrib
SMALL = optax.sgd(0.1)
ROOT = {"eps_root": 1e-8}


def after(*transforms):
    return optax.chain(*transforms, SMALL)


# Refused by no one, alias or transformation.
FINE = {
    "adabelief": optax.adabelief(0.1),
    "adadelta": optax.adadelta(0.1),
    "adagrad": optax.adagrad(0.1),
    "adam": optax.adam(0.1, **ROOT),
    "adamax": optax.adamax(0.1),
    "adamaxw": optax.adamaxw(0.1),
    "adamw": optax.adamw(0.1, **ROOT),
    "adan": optax.adan(0.1),
    "amsgrad": optax.amsgrad(0.1, **ROOT),
    "fromage": optax.fromage(0.1),
    "lion": optax.lion(0.1),
    "nadam": optax.nadam(0.1, **ROOT),
    "nadamw": optax.nadamw(0.1, **ROOT),
    "optimistic_adam_v2": optax.optimistic_adam_v2(0.1, **ROOT),
    "optimistic_gradient_descent": optax.optimistic_gradient_descent(0.1),
    "rmsprop": optax.rmsprop(0.1),
    "rprop": optax.rprop(0.1),
    "sgd": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "sgd by a schedule": optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
    "sign_sgd": optax.sign_sgd(0.1),
    "signum": optax.signum(0.1),
    "yogi": optax.yogi(0.1),
    "acprop": C.acprop(0.1),
    "cocob": C.cocob(0.1),
    "dowg": C.dowg(0.1),
    "schedule_free_sgd": C.schedule_free_sgd(0.1),
    "add_noise": after(optax.add_noise(0.1, 0.5, key=jax.random.key(0))),
    "apply_every": after(optax.apply_every(2)),
    "centralize": after(optax.centralize()),
    "clip": after(optax.clip(0.3)),
    "clip_by_global_norm": after(optax.clip_by_global_norm(0.3)),
    "ema": after(optax.ema(0.9)),
    "keep_params_nonnegative": after(optax.keep_params_nonnegative()),
    "normalize_by_update_norm": after(optax.normalize_by_update_norm()),
    "scale_by_factored_rms": after(optax.scale_by_factored_rms()),
    "scale_by_param_block_norm": after(optax.scale_by_param_block_norm()),
    "scale_by_param_block_rms": after(optax.scale_by_param_block_rms()),
    "scale_by_rms": after(optax.scale_by_rms()),
    "scale_by_rss": after(optax.scale_by_rss()),
    "scale_by_stddev": after(optax.scale_by_stddev()),
    "normalize": after(C.normalize()),
    "MultiSteps": optax.MultiSteps(SMALL, 2).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(SMALL, 3),
    "flatten": optax.flatten(optax.adam(0.1, **ROOT)),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 9), **ROOT),
    "multi_transform": optax.multi_transform({"x": optax.adam(0.1, **ROOT), "y": SMALL}, {"a": "x", "b": "y", "c": "x"}),
    "masked": optax.masked(SMALL, {"a": True, "b": False, "c": True}),
    "Adam where nothing is": optax.masked(optax.adam(0.1), {"a": False, "b": False, "c": False}),
}
ENTRY, ARRAY, ANY = "where a parameter's gradient is zero", "where the gradient of a whole array", "even where no gradient"
GIVE_ROOT, OTHER = "give it eps_root=1e-8", r"give another, such as optax.sgd\(0.01, momentum=0.9\)"
# The part that fails, where, and a remedy that holds.
REFUSED = {
    "adam": (optax.adam(0.1), "optax.scale_by_adam", ENTRY, GIVE_ROOT),
    "amsgrad": (optax.amsgrad(0.1), "optax.scale_by_amsgrad", ENTRY, GIVE_ROOT),
    "nadam": (optax.nadam(0.1), "optax.scale_by_adam", ENTRY, GIVE_ROOT),
    "lamb": (optax.lamb(0.1), "optax.scale_by_adam", ENTRY, GIVE_ROOT),
    "lamb with eps_root": (optax.lamb(0.1, **ROOT), "optax.scale_by_trust_ratio", ARRAY, OTHER),
    "lars": (optax.lars(0.1), "optax.scale_by_trust_ratio", ARRAY, OTHER),
    "novograd": (optax.novograd(0.1), "optax.scale_by_novograd", ARRAY, OTHER),
    "adafactor": (optax.adafactor(0.1), "optax.clip_by_block_rms", ARRAY, OTHER),
    "radam": (optax.radam(0.1, **ROOT), "optax.scale_by_radam", ANY, OTHER),
    "adaptive clipping": (after(optax.adaptive_grad_clip(0.1)), "optax.adaptive_grad_clip", ENTRY, OTHER),
    "muon": (C.muon(0.1), "optax.scale_by_adam", ENTRY, GIVE_ROOT),
    "ademamix": (C.ademamix(0.1), "optax.contrib.scale_by_ademamix", ENTRY, GIVE_ROOT),
    "adopt": (C.adopt(0.1), "optax.contrib.scale_by_adopt", ENTRY, OTHER),
    "prodigy": (C.prodigy(0.1), "optax.contrib.prodigy", ENTRY, OTHER),
    "madgrad": (C.madgrad(0.1), "optax.contrib.scale_by_madgrad", ENTRY, OTHER),
    "masked": (optax.masked(optax.adam(0.1), {"a": False, "b": True, "c": False}), "optax.scale_by_adam", ENTRY, GIVE_ROOT),
    "multi_transform": (
        optax.multi_transform({"x": optax.adam(0.1), "y": SMALL}, {"a": "x", "b": "y", "c": "y"}),
        "optax.scale_by_adam", ENTRY, GIVE_ROOT,
    ),
    "inject_hyperparams": (optax.inject_hyperparams(optax.adam)(0.1), "optax.scale_by_adam", ENTRY, GIVE_ROOT),
    "one's own": (optax.stateless(lambda g, p: jax.tree.map(jnp.cbrt, g)), "optax.stateless", ENTRY, OTHER),
}  # fmt: skip
FAST = ["adam", "adafactor", "radam", "adaptive clipping", "masked", "inject_hyperparams", "one's own"]
FAST_FINE = ["adagrad", "adam", "sgd by a schedule", "add_noise", "clip_by_global_norm", "MultiSteps", "multi_transform"]
STEPS = 7


def some(table, fast):
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in table]


def setting():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape))  # noqa: E731
    return {"a": draw(3, 2), "b": draw(3), "c": draw(2, 2)}


def gradients(zeros):
    """Gradients of so many steps, by what is zero in them."""
    rng, out = np.random.default_rng(1), []
    for _ in range(STEPS):
        g = {name: rng.normal(size=leaf.shape) for name, leaf in setting().items()}
        if zeros:
            g["a"][:, 1] = g["a"][1] = g["b"][1] = g["c"][:, 1] = 0
        if zeros in g:
            g[zeros] = np.zeros_like(g[zeros])
        out.append(jax.tree.map(jnp.asarray, g))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *out)


def derivative(optimizer, zeros):
    """By w_0 and all gradients, of a linear function of the last iterate, by backpropagation through a plain scan."""

    def end(w, gradients):
        def step(carry, g):
            w, state = carry
            moves, new = optimizer.update(g, state, w)
            return (optax.apply_updates(w, moves), jax.tree.map(lambda a, b: a.astype(b.dtype), new, state)), None

        start = (w, jax.tree.map(jnp.asarray, optimizer.init(w)))
        (w, _), _ = jax.lax.scan(step, start, gradients)
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(w))

    return flat(jax.jit(jax.grad(end, argnums=(0, 1)))(setting(), gradients(zeros)))


@pytest.mark.parametrize("name", some(FINE, FAST_FINE))
def test_an_optimiser_that_is_accepted_has_a_finite_derivative(x64, name):
    check_is_optimizer(FINE[name])
    check_optimizer(FINE[name], setting(), STEPS)
    for zeros in ("entries", "b"):
        assert np.isfinite(derivative(FINE[name], zeros)).all()


@pytest.mark.parametrize("name", some(REFUSED, FAST))
def test_an_optimiser_that_is_refused_has_none_and_its_part_is_named(x64, name):
    optimizer, part, where, remedy = REFUSED[name]
    check_is_optimizer(optimizer)
    with pytest.raises(ax.InputError, match=rf"\({part}\) has no finite derivative {where}.*: {remedy}\."):
        check_optimizer(optimizer, setting(), STEPS)
    zeros = {ENTRY: ["entries"], ARRAY: ["a", "b", "c"], ANY: [""]}[where]
    assert any(not np.isfinite(derivative(optimizer, kind)).all() for kind in zeros)


@pytest.mark.parametrize(
    "optimizer", [optax.polyak_sgd(), optax.lbfgs(), C.momo(), C.sophia(0.1), after(C.reduce_on_plateau())]
)
def test_an_optimiser_that_asks_for_more_than_gradients_is_refused_by_inner(optimizer):
    with pytest.raises(ax.InputError, match=r"asks for more than gradients .*cannot be used in the inner loop"):
        ax.Inner(2, optimizer=optimizer)


@pytest.mark.parametrize("optimizer", [optax.lookahead(SMALL, 2, 0.5), optax.masked(SMALL, {"other": True})])
def test_an_optimiser_of_other_parameters_is_refused_in_a_sentence(optimizer):
    with pytest.raises(ax.InputError, match=r"inner optimiser optax.* fails on the parameters that adapt .*their structure"):
        check_optimizer(optimizer, setting(), 2)


def test_arrays_of_the_parameters_own_shapes_are_taken(x64):
    w = jnp.ones((7, 5))
    own = optax.stateless(lambda g, p: jax.tree.map(lambda g: -jnp.linspace(0.1, 0.2, 35).reshape(7, 5) * g, g))
    check_optimizer(own, w, 3)
    problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), no_tasks)
    grad = ax.MetaGradient(ax.Inner(3, optimizer=own))(problem, w, ax.Task(0 * w, 0 * w))[1]
    np.testing.assert_allclose(grad, (1 - jnp.linspace(0.1, 0.2, 35).reshape(7, 5)) ** 6, rtol=1e-12)


def test_an_optimiser_is_tried_once_for_each_structure():
    made = []

    def update(updates, state, params=None):
        made.append(1)
        return jax.tree.map(lambda g: -0.1 * g, updates), state

    own = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    check_optimizer(own, setting(), 3)
    count = len(made)
    check_optimizer(own, jax.tree.map(lambda leaf: 2 * leaf, setting()), 3)
    assert len(made) == count > 0


def test_what_needs_no_derivative_takes_adam_as_it_is():
    w = jnp.ones(3)
    problem, task = ax.FiniteSum(lambda w, c: jnp.sum((w[:2] - c[:2]) ** 2), no_tasks), ax.Task(0 * w, 0 * w)
    inner = ax.Inner(3, optimizer=optax.adam(0.1))
    moved = ax.adapt(problem, w, task, inner).params
    np.testing.assert_allclose(moved, [0.7, 0.7, 1.0], atol=0.01)
    np.testing.assert_allclose(ax.Reptile(inner)(problem, w, task)[1], w - moved, rtol=1e-6)
    first = ax.MetaGradient(inner, ax.curvature.FirstOrder())(problem, w, task)[1]
    np.testing.assert_allclose(first, [*(2 * moved[:2]), 0.0], rtol=1e-6)
