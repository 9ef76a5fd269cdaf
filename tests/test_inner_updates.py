"""The meta-gradient through optimisers, proximal terms, frozen leaves, learned rates and multi-step losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import central, flat, no_tasks, normal_like, relative

import adaptax as ax
from adaptax.stepsize import Learned

STEPS = 3


def loss(p, batch):
    """A small network with a low-rank adapter; where a mask is in the batch, a mean over what it keeps."""
    x, y, mask = batch
    hidden = jnp.tanh(x @ (p["body"]["w"] + jnp.outer(p["lora"]["a"], p["lora"]["b"])) + p["body"]["bias"])
    out = hidden @ p["head"]["w"] + p["head"]["bias"]
    return jnp.sum(mask * (out - y) ** 2) / jnp.sum(mask)


def judged(p, batch):
    """Another outer loss."""
    return loss(p, batch) + 0.1 * jnp.sum(jnp.sin(p["head"]["w"]))


def setting(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(0.5 * rng.normal(size=shape))  # noqa: E731
    params = {
        "body": {"bias": draw(3), "w": draw(2, 3)},
        "head": {"bias": draw(), "w": draw(3)},
        "lora": {"a": draw(2), "b": draw(3)},
    }
    one = lambda n: (draw(n, 2), draw(n), jnp.ones(n))  # noqa: E731
    return params, ax.Task(one(5), one(4))


PROBLEM = ax.FiniteSum(loss, no_tasks, target_loss=judged)
MOMENTUM = optax.sgd(0.3, momentum=0.8)
ADAM = optax.adam(0.2, eps_root=1e-3)
CLIP = optax.chain(optax.clip_by_global_norm(0.4), optax.sgd(0.5))
DECAY = optax.chain(optax.add_decayed_weights(0.2), optax.sgd(0.3, momentum=0.8, nesterov=True))
HEAD = lambda path: path.startswith("head")  # noqa: E731
BODY = lambda path: path.startswith("body")  # noqa: E731
BIAS = lambda path: path.endswith("bias")  # noqa: E731
LORA = lambda path: path.startswith("lora")  # noqa: E731
PER = {"scalar": Learned(0.3), "entries": Learned(0.3, per="parameter"), "steps": Learned(0.3, per="leaf", per_step=True)}
# Which leaves, which optimiser, lambda, which rates, multi-step.
CASES = {
    "ANIL": (HEAD, None, None, 0.3, None),
    "BOIL": (BODY, None, None, 0.3, None),
    "biases": (BIAS, None, None, 0.3, None),
    "LoRA": (LORA, None, None, 0.3, None),
    "Meta-SGD": (None, None, None, PER["entries"], None),
    "momentum": (None, MOMENTUM, None, 1.0, None),
    "Adam": (None, ADAM, None, 1.0, None),
    "clipping": (None, CLIP, None, 1.0, None),
    "weight decay": (None, DECAY, None, 1.0, None),
    "proximal": (None, None, 0.7, 0.3, None),
    "multi-step": (None, None, None, 0.3, ax.MultiStep(10).at(4)),
    "LoRA by Adam with learned rates, proximal": (LORA, ADAM, 0.7, PER["steps"], None),
    "ANIL with momentum, multi-step, a learned rate": (HEAD, MOMENTUM, None, PER["scalar"], ax.MultiStep()),
}


def rates(learned, params):
    """Rates that all differ, so that a mixed-up order shows."""
    start = learned.start(params, STEPS).tree
    numbers = iter(np.random.default_rng(1).uniform(0.1, 0.5, 1000))
    return jax.tree.map(lambda leaf: jnp.asarray([next(numbers) for _ in range(leaf.size)]).reshape(leaf.shape), start)


def by_hand(given, task, adapt, optimizer, strength, stepsize, final):
    """A plain loop in Python: w_1..w_N and the losses before each step, judged by `final`."""
    learned = isinstance(stepsize, Learned)
    w, tree = (given.params, given.stepsize) if learned else (given, stepsize)
    names = jax.tree_util.tree_map_with_path(
        lambda path, _: adapt is None or adapt(jax.tree_util.keystr(path, simple=True, separator=".")), w
    )
    on = lambda tree: jax.tree.map(lambda flag, leaf: leaf if flag else jnp.zeros_like(leaf), names, tree)  # noqa: E731
    only = lambda tree: [leaf for flag, leaf in zip(jax.tree.leaves(names), jax.tree.leaves(tree), strict=True) if flag]  # noqa: E731
    start, memory, path, losses = w, None if optimizer is None else optimizer.init(only(w)), [], []
    for j in range(STEPS):
        value, gradient = jax.value_and_grad(loss)(w, task.support)
        losses.append(value)
        if strength is not None:
            gradient = jax.tree.map(lambda g, a, b: g + strength * (a - b), gradient, w, start)
        if optimizer is None:
            update = jax.tree.map(lambda g: -g, on(gradient))
        else:
            moved, memory = optimizer.update(only(gradient), memory, only(w))
            moved = iter(moved)
            update = jax.tree.map(lambda flag, leaf: next(moved) if flag else jnp.zeros_like(leaf), names, w)  # noqa: B023
        rate = jax.tree.map(lambda r: r[j], tree) if learned and stepsize.per_step else tree  # noqa: B023
        if not isinstance(rate, dict):
            rate = jax.tree.map(lambda _: rate, w)  # noqa: B023
        w = jax.tree.map(lambda a, r, u: a + r * u, w, rate, update)
        path.append(w)
    return final(path, jnp.stack(losses))


def case(name):
    adapt, optimizer, strength, stepsize, multi = CASES[name]
    params, task = setting()
    given = ax.Meta(params, rates(stepsize, params)) if isinstance(stepsize, Learned) else params
    inner = ax.Inner(STEPS, stepsize, adapt, optimizer=optimizer, proximal=strength)
    return inner, multi, given, task, (adapt, optimizer, strength, stepsize)


# What these do apart is in the last two cases together.
SLOW = ("ANIL", "biases", "clipping", "momentum")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES])
def test_meta_gradient(x64, name):
    inner, multi, given, task, parts = case(name)
    weights = [0, 0, 1] if multi is None else multi.weights(STEPS)

    def objective(path, losses):
        return sum(c * judged(w, task.target) for c, w in zip(weights, path, strict=True)), (path[-1], losses)

    # Not compiled: that would take longer.
    written = lambda given: by_hand(given, task, *parts, objective)  # noqa: E731
    (total, (last, losses)), expected = jax.value_and_grad(written, has_aux=True)(given)
    value, grad, info = ax.MetaGradient(inner, multi_step=multi)(PROBLEM, given, task)
    assert relative(grad, expected) < 1e-9
    np.testing.assert_allclose(info.losses, losses, rtol=1e-10)
    assert abs(value - judged(last, task.target)) < 1e-12
    backprop = ax.MetaGradient(inner, mode="backprop", multi_step=multi)(PROBLEM, given, task)
    assert relative(grad, backprop[1]) < 1e-9
    direction = normal_like(given, 3)
    slope = central(lambda given: written(given)[0], given, direction, 1e-4)
    assert abs(flat(grad) @ flat(direction) - slope) < 1e-7 * abs(slope) + 1e-9
    if multi is not None:
        single = ax.MetaGradient(inner)(PROBLEM, given, task)
        assert relative(single[1], grad) > 1e-2 and total != value


@pytest.mark.parametrize("store", ["iterates", "sqrt"])
@pytest.mark.parametrize("name", ["momentum", "LoRA by Adam with learned rates, proximal", "clipping", "weight decay"])
def test_adapt_through_optimisers(x64, name, store):
    inner, _, given, task, parts = case(name)

    def ours(given, strength, y):
        support = (task.support[0], y, task.support[2])
        one = inner if strength is None else ax.Inner(STEPS, parts[3], parts[0], optimizer=parts[1], proximal=strength)
        found = ax.adapt(PROBLEM, given, ax.Task(support), one, store=store)
        return judged(found.params, task.target) + found.losses @ jnp.arange(1.0, STEPS + 1), found

    def hand(given, strength, y):
        support = ax.Task((task.support[0], y, task.support[2]))
        final = lambda path, losses: (judged(path[-1], task.target) + losses @ jnp.arange(1.0, STEPS + 1), (path[-1], losses))  # noqa: E731
        return by_hand(given, support, *parts[:2], strength, parts[3], final)

    strength = None if parts[2] is None else jnp.asarray(parts[2])
    by = (0, 2) if strength is None else (0, 1, 2)
    got, found = jax.grad(ours, argnums=by, has_aux=True)(given, strength, task.support[1])
    expected, (last, losses) = jax.grad(hand, argnums=by, has_aux=True)(given, strength, task.support[1])
    assert relative(found.params, last) < 1e-12
    assert relative(found.losses, losses) < 1e-12
    assert relative(got, expected) < 1e-9


def test_adapt_with_drawn_directions_differentiates_under_transformations(x64):
    params, task = setting()
    inner = ax.Inner(2, 0.05, gradients=ax.gradients.Smoothed(samples=4, delta=jnp.asarray(1e-4)), proximal=0.1)

    def value(params, key):
        return judged(ax.adapt(PROBLEM, params, task, inner, key).params, task.target)

    keys = jax.random.split(jax.random.key(0), 2)
    every = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(params, keys)
    for k in range(2):
        assert relative(jax.tree.map(lambda leaf: leaf[k], every), jax.grad(value)(params, keys[k])) < 1e-6  # noqa: B023


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM, CLIP], ids=["momentum", "adam", "clipping"])
def test_evaluate_takes_the_path_of_adapt(x64, optimizer):
    params, task = setting()
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 0.1]), task)
    inner = ax.Inner(STEPS, optimizer=optimizer, proximal=0.3)
    curve = ax.evaluate(PROBLEM, params, inner, [0, 2, STEPS], tasks, devices=jax.devices()[:1])
    for column, steps in enumerate([0, 2, STEPS]):
        shorter = ax.Inner(steps, optimizer=optimizer, proximal=0.3)
        each = [jax.tree.map(lambda leaf: leaf[k], tasks) for k in range(2)]  # noqa: B023
        expected = np.mean([judged(ax.adapt(PROBLEM, params, t, shorter).params, t.target) for t in each])
        assert abs(curve.mean["loss"][column] - expected) < 1e-12


def test_a_zero_gradient_has_a_finite_meta_gradient():
    problem, w = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), no_tasks), jnp.ones(4)
    method = ax.MetaGradient(ax.Inner(2, optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))))
    np.testing.assert_allclose(method(problem, w, ax.Task(w, 2 * w))[1], -(0.9**2) * w, rtol=1e-5)


def test_padding_with_a_mask_is_no_padding(x64):
    params, task = setting()
    x, y, mask = task.support
    padded = (jnp.pad(x, ((0, 3), (0, 0)), constant_values=7.0), jnp.pad(y, (0, 3)), jnp.pad(mask, (0, 3)))
    for optimizer in (None, ADAM):
        method = ax.MetaGradient(ax.Inner(STEPS, 0.3, optimizer=optimizer))
        plain, filled = (method(PROBLEM, params, ax.Task(s, task.target)) for s in (task.support, padded))
        assert relative(filled, plain) < 1e-12
        adapted = [ax.adapt(PROBLEM, params, ax.Task(s), method.inner).params for s in (task.support, padded)]
        assert relative(*adapted) < 1e-12


def test_a_learned_inner_loss(x64):
    # The inner loss has parameters of its own, which do not adapt and which the outer loss does not see.
    inner_loss = lambda p, b: loss(p["net"], b) + jnp.sum(jnp.exp(p["scale"]) * p["net"]["head"]["w"] ** 2)  # noqa: E731
    problem = ax.FiniteSum(inner_loss, no_tasks, target_loss=lambda p, b: judged(p["net"], b))
    params, task = setting()
    params = {"net": params, "scale": jnp.array([-1.0, 0.2, 0.5])}
    for optimizer, curvature in ((None, ax.curvature.Exact()), (ADAM, ax.curvature.Exact()), (None, None)):
        inner = ax.Inner(STEPS, 0.1, adapt={"net": True, "scale": False}, optimizer=optimizer)
        method = ax.MetaGradient(inner, curvature or ax.curvature.FiniteDifference())
        grad = method(problem, params, task)[1]
        for name in ("scale", "net"):
            only = jax.tree.map(jnp.zeros_like, params) | {name: normal_like(params[name], 1)}
            slope = central(lambda p: method(problem, p, task)[0], params, only, 1e-4)  # noqa: B023
            assert abs(flat(grad) @ flat(only) - slope) < 1e-7 * abs(slope)


def quadratic(p, batch):
    """With a frozen leaf f that moves the centre."""
    matrix, centre = batch
    return 0.5 * (p["w"] - p["f"] - centre) @ matrix @ (p["w"] - p["f"] - centre)


def bowl(seed=0, d=5):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, d, d))
    support, target = (m @ m.T / d for m in (a, b))
    return support, target, *rng.normal(size=(4, d))


def test_implicit_on_quadratics(x64):
    support, target, c, ct, w, f = bowl()
    strength, n = 0.8, np.eye(5)
    problem = ax.FiniteSum(quadratic, no_tasks)
    inner = ax.Inner(400, 0.3, {"w": True, "f": False}, proximal=strength)
    task, params = ax.Task((support, c), (target, ct)), {"w": jnp.asarray(w), "f": jnp.asarray(f)}
    value, grad, info = ax.Implicit(inner, iterations=5)(problem, params, task)
    # w* = (H + lambda)^-1 (H (f + c) + lambda w), and derivatives by w and f.
    solve = np.linalg.inv(support + strength * n)
    star = solve @ (support @ (f + c) + strength * w)
    last = target @ (star - f - ct)
    assert abs(value - 0.5 * (star - f - ct) @ last) < 1e-10
    assert relative(grad["w"], strength * solve @ last) < 1e-9
    assert relative(grad["f"], support @ solve @ last - last) < 1e-9
    assert info.losses.shape == (400,)
    # The same as backpropagation through all those steps.
    assert relative(grad, ax.MetaGradient(inner)(problem, params, task)[1]) < 1e-9


def test_implicit_of_a_network_agrees_with_very_many_steps(x64):
    params, task = setting()
    inner = ax.Inner(600, 0.2, BODY, proximal=2.0)
    got = ax.Implicit(inner, iterations=9)(PROBLEM, params, task)
    assert relative(got[1], ax.MetaGradient(inner)(PROBLEM, params, task)[1]) < 1e-8


@pytest.mark.parametrize("size, dtype", [(20_000, "float32"), (10, "bfloat16"), (10, "float16")])
def test_implicit_is_finite_for_any_size_and_type(size, dtype):
    problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2) / 10, no_tasks)
    w = jnp.zeros(size, dtype)
    grad = ax.Implicit(ax.Inner(100, 1.0, proximal=0.1))(problem, w, ax.Task(w + 1, w + 2))[1]
    # w* = 1/2, and (1 + 1)^-1 (1/2 - 2) / 10.
    np.testing.assert_allclose(np.asarray(grad, float), -0.075, rtol=1e-5 if dtype == "float32" else 0.05)


def test_reptile_on_quadratics(x64):
    support, _, c, ct, w, f = bowl()
    inner = ax.Inner(3, 0.2, {"w": True, "f": False})
    params = {"w": jnp.asarray(w), "f": jnp.asarray(f)}
    value, grad, _ = ax.Reptile(inner)(ax.FiniteSum(quadratic, no_tasks), params, ax.Task((support, c), (support, ct)))
    power = np.linalg.matrix_power(np.eye(5) - 0.2 * support, 3)
    final = f + c + power @ (w - f - c)
    assert relative(grad["w"], w - final) < 1e-12
    assert not np.any(grad["f"])
    assert abs(value - 0.5 * (final - f - ct) @ support @ (final - f - ct)) < 1e-12


def test_multi_step_weights():
    np.testing.assert_allclose(ax.MultiStep().weights(4), [0.25] * 4)
    np.testing.assert_allclose(ax.MultiStep().at(10**6).weights(4), [0.25] * 4)
    np.testing.assert_allclose(ax.MultiStep(10).weights(1), [1.0])
    np.testing.assert_allclose(ax.MultiStep(10).at(5).weights(2), [0.25, 0.75])
    for step in (10, 11, 1000):
        np.testing.assert_allclose(ax.MultiStep(10).at(step).weights(3), [0, 0, 1])


def test_annealed_training_switches_at_its_meta_step(x64):
    problem = ax.FiniteSum(lambda w, c: jnp.sum(jnp.cos(w - c)), lambda key: ax.Task(*jax.random.normal(key, (2, 3))))
    inner, w = ax.Inner(2, 0.3), jnp.array([0.1, 0.4, -0.3])
    optimizer = optax.sgd(0.1)
    annealed = ax.make_step(problem, ax.MetaGradient(inner, ax.curvature.Annealed(2)), optimizer, 2)
    plain = [
        ax.make_step(problem, ax.MetaGradient(inner, c), optimizer, 2)
        for c in (ax.curvature.FirstOrder(), ax.curvature.Exact())
    ]
    state = annealed.init(w)
    for k in range(4):
        expected = [step(state)[0].params for step in plain]
        state = annealed(state)[0]
        assert relative(state.params, expected[k >= 2]) < 1e-12
        assert relative(state.params, expected[k < 2]) > 1e-4
    nested = ax.curvature.Annealed(2, then=ax.curvature.Annealed(4))
    task = ax.Task(w, -w)
    for step, curvature in ((3, ax.curvature.FirstOrder()), (4, ax.curvature.Exact())):
        got = ax.MetaGradient(inner, nested).at(step)(problem, w, task)[1]
        assert relative(got, ax.MetaGradient(inner, curvature)(problem, w, task)[1]) < 1e-12
