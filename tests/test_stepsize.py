"""Step sizes from measured curvature."""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import MISSION, no_tasks, relative

import adaptax as ax
from adaptax.stepsize import Edge, Estimate, Guaranteed, Schedule, measurement, resolve, walk
from adaptax.stepsize.measurement import first_estimate
from adaptax.stepsize.walk import along_path, power_iteration

SPECTRUM = np.array([5.0, 2.0, 1.0, 0.3, -1.0])
W = jnp.array([0.3, -0.8, 1.1, 0.5, -0.2], jnp.float32)


def rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]


def hessian(scale=1.0, seed=0, spectrum=SPECTRUM):
    q = rotation(seed)
    return jnp.asarray(scale * q @ np.diag(spectrum) @ q.T, jnp.float32)


def quadratic(w, h):
    return 0.5 * w @ h @ w


PROBLEM = ax.FiniteSum(quadratic, no_tasks)


@eqx.filter_jit
def refresh(inner, estimate, problem, w, batch, cold=False):
    return measurement.refresh(inner, inner.stepsize, estimate, problem, w, batch, None, samples=ax.Samples(), cold=cold)


def tasks(*matrices):
    stacked = jnp.stack(matrices)
    return ax.Task(stacked, stacked)


@pytest.mark.parametrize("spectrum", [SPECTRUM, -SPECTRUM, 1e-6 * SPECTRUM, 1e6 * SPECTRUM])
def test_power_iteration_on_a_known_spectrum(x64, spectrum):
    q = rotation(1)
    matrix = jnp.asarray(q @ np.diag(spectrum) @ q.T)
    values = [float(power_iteration(lambda v: matrix @ v, jnp.ones(5), k)[0]) for k in (1, 2, 3, 5, 10, 30)]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(values))
    value, v = power_iteration(lambda v: matrix @ v, jnp.ones(5), 30)
    # The ratio of the two largest is 0.4: the error of the norm falls as 0.4^60.
    assert abs(value / np.max(np.abs(spectrum)) - 1) < 1e-10
    assert abs(jnp.linalg.norm(v) - 1) < 1e-12
    assert abs(v @ q[:, 0]) > 1 - 1e-10


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.8])
def test_edge_is_gamma_over_the_largest_eigenvalue(gamma):
    batch = tasks(hessian(1.0, 0), hessian(1.6, 1), hessian(0.5, 2))
    inner = resolve(ax.Inner(5, Edge(gamma)), PROBLEM, W, batch)
    assert isinstance(inner.stepsize, jax.Array)
    assert inner.stepsize.shape == ()
    assert abs(float(inner.stepsize) * 1.6 * SPECTRUM[0] / gamma - 1) < 0.01


@pytest.mark.parametrize("differences", [False, pytest.param(True, marks=MISSION)])
@pytest.mark.parametrize(
    "options, expected", [({}, [1 / 8, 1 / 32, 1 / 128]), ({"gamma": 2.0, "gamma_plus": 1.5}, [0.3, 0.3, 0.125])]
)
def test_guaranteed_is_the_smaller_of_two_conditions(options, expected, differences):
    # The largest eigenvalue of the first task is 5, and the smallest of the second -1.
    batch = tasks(hessian(spectrum=np.maximum(SPECTRUM, 0)), hessian(0.8, 1, SPECTRUM * [1, 1, 1, 1, 1.25]))
    for steps, alpha in zip((1, 4, 16), expected, strict=True):
        inner = resolve(ax.Inner(steps, Guaranteed(**options, differences=differences)), PROBLEM, W, batch)
        assert float(inner.stepsize) == pytest.approx(alpha, rel=0.01)


def test_curvature_is_measured_along_the_path():
    # l = w^4 / 12 has curvature w^2: largest at w_0 from outside; with a bump at 0, largest where the path ends.
    rising = ax.FiniteSum(lambda w, _: jnp.sum(0.5 * w**2 - 3 * jnp.exp(-(w**2))), no_tasks)
    task = ax.Task(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    start = float(resolve(ax.Inner(1, Edge()), rising, jnp.array([3.0]), task).stepsize)
    along = float(resolve(ax.Inner(20, Edge()), rising, jnp.array([3.0]), task).stepsize)
    assert abs(start - 1) < 0.05
    # At 0 the curvature is 1 + 6; the largest |l''| on [0, 3] is there.
    assert abs(along * 7 - 1) < 0.25


def test_estimates_rise_at_once_and_fall_slowly():
    rule = Edge(decay=0.9)
    direction = jnp.array([1.0, 0.0])
    estimate = rule.update(Estimate(jnp.array(2.0), direction), jnp.array(8.0), -direction)
    assert float(estimate.curvature) == 8.0
    assert float(estimate.direction[0]) == -1
    for expected in (7.2, 6.48):
        estimate = rule.update(estimate, jnp.array(1.0), direction)
        assert abs(float(estimate.curvature) - expected) < 1e-5
    assert abs(float(rule.update(estimate, jnp.array(6.4), direction).curvature) - 6.4) < 1e-5


def test_both_ends_rise_at_once_and_fall_slowly():
    rule, direction = Guaranteed(decay=0.9), jnp.array([1.0, 0.0])
    # The first measurement, and that of a run begun before there were two ends.
    estimate = rule.update(Estimate(jnp.array(0.0), direction), jnp.array(8.0), direction, jnp.array(0.5))
    assert (float(estimate.curvature), float(estimate.negative)) == (8.0, 0.5)
    estimate = rule.update(estimate, jnp.array(1.0), direction, jnp.array(2.0))
    np.testing.assert_allclose((estimate.curvature, estimate.negative), (7.2, 2.0), rtol=1e-6)
    estimate = rule.update(estimate, jnp.array(9.0), direction, jnp.array(0.0))
    np.testing.assert_allclose((estimate.curvature, estimate.negative), (9.0, 1.8), rtol=1e-6)
    assert float(rule.alpha_of(estimate, 4)) == pytest.approx(min(1 / 9, 1 / 8 / 4 / 1.8))
    lost = rule.update(estimate, jnp.array(jnp.nan), -direction, jnp.array(jnp.nan))
    assert relative(lost, estimate) == 0


def head(kind, dtype):
    """A linear head on features of size one, and a task: its Hessian has many eigenvalues that are zero but for rounding."""
    rng = np.random.default_rng(2)
    x, y = jnp.asarray(rng.normal(size=(20, 30)), dtype), jnp.asarray(rng.integers(0, 5, 20))
    targets = jax.nn.one_hot(y, 5, dtype=dtype)

    def loss(w, batch):
        z = batch[0] @ w
        return jnp.mean((z - batch[1]) ** 2) if kind == "squares" else -jnp.mean(jnp.sum(batch[1] * jax.nn.log_softmax(z), 1))

    batch = jax.tree.map(lambda leaf: leaf[None], (x, targets))
    return ax.FiniteSum(loss, no_tasks), ax.Task(batch, batch), jnp.asarray(0.3 * rng.normal(size=(30, 5)), dtype)


@pytest.mark.parametrize("differences", [False, True])
@pytest.mark.parametrize("kind, dtype", [("squares", jnp.float32), ("softmax", jnp.float32), ("softmax", jnp.bfloat16)])
def test_rounding_of_a_convex_loss_does_not_bring_the_number_of_steps_back(kind, dtype, differences):
    if differences and dtype == jnp.bfloat16:
        pytest.skip("differences of gradients in half precision are rounding alone")
    problem, batch, w = head(kind, dtype)
    given = ax.Inner(20, Guaranteed(differences=differences)), first_estimate(w), problem, w, batch
    estimate = refresh(*given, True)
    assert float(estimate.negative) == 0
    alpha = float(Guaranteed().alpha_of(estimate, 20))
    assert alpha == pytest.approx(1 / float(estimate.curvature)) and alpha > 0.05


def test_what_counts_as_rounding():
    w, high = {"a": jnp.zeros(2), "b": jnp.zeros(1, jnp.bfloat16)}, jnp.array(10.0)
    part = lambda low, w: float(walk._negative_part(jnp.array(low), high, w))  # noqa: E731
    eps = float(jnp.finfo(jnp.float32).eps) ** 0.5
    assert part(-10.1 * eps, w["a"]) == pytest.approx(10.1 * eps) and part(-9.9 * eps, w["a"]) == part(2.0, w["a"]) == 0
    # The least precise leaf decides: 0.0078 ** 0.5 = 0.088.
    assert part(-0.87, w) == 0 and part(-0.89, w) == pytest.approx(0.89)
    assert np.isnan(part(jnp.nan, w))
    # All curvature is negative: the largest in size is what rounding is compared with.
    assert float(walk._negative_part(jnp.array(-3.0), jnp.array(-1.0), w)) == 3


def test_the_smallest_eigenvalue_is_found_from_the_direction_of_other_tasks(x64):
    # As along the paths of a sinusoid network: it is one of many small ones, and the largest is 25 times as large.
    rng = np.random.default_rng(0)
    spectrum = np.concatenate([[1500, 400, 90], 30 * rng.normal(size=40).clip(-1.2, 1.2), [-58], np.zeros(40)])
    bases = [np.linalg.qr(rng.normal(size=(84, 84)))[0] for _ in range(2)]
    here, other = (jnp.asarray(q @ np.diag(spectrum) @ q.T) for q in bases)
    w = jnp.asarray(rng.normal(size=84))
    inner = ax.Inner(2, Guaranteed())
    cold = refresh(inner, first_estimate(w), PROBLEM, w, tasks(other), True)
    forgot = Estimate(jnp.zeros(()), cold.direction, jnp.zeros(()))
    for found in (cold, refresh(inner, forgot, PROBLEM, w, tasks(here))):
        assert 0.9 * 58 < float(found.negative) < 58.01 and float(found.curvature) == pytest.approx(1500, rel=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_measurement_that_is_not_finite_changes_nothing(bad):
    estimate = Estimate(jnp.array(2.0), jnp.array([1.0, 0.0]))
    kept = Edge().update(estimate, jnp.array(bad), jnp.array([0.0, 1.0]))
    assert relative(kept, estimate) == 0


def test_a_loss_that_breaks_down_on_the_path_leaves_a_usable_estimate():
    # Not a number below w = 1, which the first step reaches.
    breaking = ax.FiniteSum(lambda w, h: quadratic(w, h) + jnp.sum(jnp.sqrt(w - 1)), no_tasks)
    inner, w = ax.Inner(4, Edge()), jnp.array([1.5, 1.6, 1.7, 1.8, 2.0])
    good, broken = hessian(), 20 * hessian()
    cold = refresh(inner, first_estimate(w), breaking, w, tasks(broken), True)
    assert bool(jnp.isfinite(cold.curvature) & (cold.curvature > 90))
    assert bool(jnp.all(jnp.isfinite(cold.direction)))
    # Later refreshes end where the path does, in the ruins: the direction must survive that.
    warm = refresh(inner, cold, breaking, w, tasks(broken))
    assert float(warm.curvature) > 90
    assert bool(jnp.all(jnp.isfinite(warm.direction)))
    # Broken from w_0 on: nothing was measured, so nothing changes.
    bad = refresh(inner, cold, breaking, 0 * w, tasks(good))
    assert float(bad.curvature) == float(cold.curvature) > 90
    assert bool(jnp.all(jnp.isfinite(bad.direction)))
    # Broken on one of the tasks: the others count.
    mixed = ax.FiniteSum(lambda w, h: quadratic(w, h) + jnp.sqrt(1 - h[0, 0] / 50), no_tasks)
    poisoned = jnp.full((5, 5), 100.0)
    measured = refresh(inner, first_estimate(w), mixed, w, tasks(good, poisoned), True)
    assert float(measured.curvature) > 4.9


def test_refresh_starts_where_it_ended():
    # One product a point is enough once the direction is known.
    inner = ax.Inner(1, Edge(iterations=1))
    estimate = first_estimate(W)
    values = []
    for _ in range(12):
        estimate = refresh(inner, estimate, PROBLEM, W, tasks(hessian()))
        values.append(float(estimate.curvature))
    assert values[0] < 0.98 * SPECTRUM[0]
    assert values[-1] == pytest.approx(SPECTRUM[0], rel=0.01)


def test_the_walk_uses_the_rules_own_step_size():
    walked = []

    def loss(w, rest, j):
        jax.debug.callback(lambda w: walked.append(float(w[0])), w)
        return 2.0 * jnp.sum(w**2)

    rule = Edge(0.5)
    estimate = Estimate(jnp.array(0.0), jnp.array([1.0]))
    along_path(loss, jnp.array([1.0]), None, rule, 3, estimate, 0)
    jax.effects_barrier()
    # alpha = 0.5 / 4: each step multiplies w by 1/2.
    assert {round(w, 4) for w in walked} >= {1.0, 0.5, 0.25}


def test_unresolved_rules_are_estimated_where_they_are_used():
    one = ax.Task(hessian(1.6, 3), hessian(0.1, 4))
    method = ax.MetaGradient(ax.Inner(3, Edge()))
    expected = 1 / (1.6 * SPECTRUM[0])
    assert float(ax.adapt(PROBLEM, W, one, method.inner).info.stepsize) == pytest.approx(expected, rel=0.01)
    value, grad, info = method(PROBLEM, W, one)
    assert float(info.stepsize) == pytest.approx(expected, rel=0.01)
    # The step size counts as a constant: the gradient is that of the same number given by hand.
    fixed = ax.MetaGradient(ax.Inner(3, info.stepsize))(PROBLEM, W, one)
    assert relative((value, grad), fixed[:2]) < 1e-6
    adapted = jax.grad(lambda h: jnp.sum(ax.adapt(PROBLEM, W, ax.Task(h), ax.Inner(3, Edge())).params))(one.support)
    constant = jax.grad(lambda h: jnp.sum(ax.adapt(PROBLEM, W, ax.Task(h), ax.Inner(3, info.stepsize)).params))
    assert relative(adapted, constant(one.support)) < 1e-5


def test_a_batch_measures_the_first_tasks_of_its_rule():
    scales = [1.0, 1.5, 4.0]
    batch = tasks(*(hessian(s, k) for k, s in enumerate(scales)))
    for count, top in ((1, 1.0), (2, 1.5), (4, 4.0)):
        info = ax.MetaGradient(ax.Inner(3, Edge(tasks=count))).batch(PROBLEM, W, batch)[2]
        np.testing.assert_allclose(info.stepsize, np.full(3, 1 / (top * SPECTRUM[0])), rtol=0.01)


def test_a_resolved_step_size_does_not_depend_on_later_steps():
    inner = resolve(ax.Inner(4, Guaranteed()), PROBLEM, W, tasks(hessian()))
    longer = ax.Inner(16, inner.stepsize)
    assert float(longer.stepsize) == float(inner.stepsize)
    assert resolve(inner, PROBLEM, W, tasks(hessian(9.0))) is inner
    assert float(resolve(ax.Inner(16, Guaranteed()), PROBLEM, W, tasks(hessian())).stepsize) < float(inner.stepsize) / 3


def test_only_what_adapts_is_measured():
    diagonal = jnp.diag(jnp.array([7.0, 2.0]))
    problem = ax.FiniteSum(lambda w, h: 0.5 * (7 * w["a"] ** 2 + 2 * w["b"] ** 2) + 0 * h.sum(), no_tasks)
    params = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
    inner = resolve(ax.Inner(2, Edge(), adapt={"a": False, "b": True}), problem, params, tasks(diagonal))
    assert float(inner.stepsize) == pytest.approx(0.5, rel=0.01)


def test_negative_and_zero_curvature():
    concave = resolve(ax.Inner(3, Edge()), PROBLEM, W, tasks(hessian(spectrum=-SPECTRUM)))
    assert float(concave.stepsize) == pytest.approx(1 / SPECTRUM[0], rel=0.01)
    linear = ax.FiniteSum(lambda w, h: jnp.sum(w * h[0]), no_tasks)
    # A path of the length of w: alpha N |h| = |w| for gamma = 1.
    longest = float(jnp.linalg.norm(W) / jnp.linalg.norm(hessian()[0]))
    with pytest.warns(ax.stepsize.NoCurvature):
        assert float(resolve(ax.Inner(3, Edge(0.7)), linear, W, tasks(hessian())).stepsize) == pytest.approx(0.7 * longest / 3)
    with pytest.warns(ax.stepsize.NoCurvature):
        found = resolve(ax.Inner(4, Guaranteed()), linear, W, tasks(hessian())).stepsize
    assert float(found) == pytest.approx(longest / 4 / 32)


def test_noisy_losses():
    def draw(task, params, key, size):
        return task * (1 + 0.1 * jax.random.normal(key, (size, 1, 1)))

    problem = ax.Resampling(lambda w, h: quadratic(w, h.mean(0)), no_tasks, draw)
    batch, keys = jnp.stack([hessian(1.0, 0), hessian(2.0, 1)]), jax.random.split(jax.random.key(0), 2)
    inner = resolve(ax.Inner(5, Edge()), problem, W, batch, keys, samples=ax.Samples(step=25))
    # The largest of a few samples whose spread is 2 %.
    assert 0.9 < float(inner.stepsize) * 10 < 1.02
    again = resolve(ax.Inner(5, Edge()), problem, W, batch, keys, samples=ax.Samples(step=25))
    assert float(again.stepsize) == float(inner.stepsize)
    info = ax.MetaGradient(ax.Inner(5, Edge())).batch(problem, W, batch, keys)[2]
    assert 0.85 < float(info.stepsize[0]) * 10 < 1.05


def test_half_precision_parameters():
    inner = resolve(ax.Inner(3, Edge()), PROBLEM, W.astype(jnp.bfloat16), tasks(hessian().astype(jnp.bfloat16)))
    assert float(inner.stepsize) == pytest.approx(1 / SPECTRUM[0], rel=0.03)


def lines(seed, scale, name, w):
    """A piecewise linear problem with a task, and the inner loss: inputs of this scale, targets that fit some weights."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(scale * rng.normal(size=(20, 3)))
    y = x @ jnp.array([1.0, -2.0, 0.5]) + 0.1 * scale * jnp.asarray(rng.normal(size=20))
    signs = jnp.sign(y)
    loss = {
        "mean absolute error": lambda w, b: jnp.mean(jnp.abs(b[0] @ w - b[1])),
        "with an offset": lambda w, b: jnp.mean(jnp.abs(b[0] @ w - b[1])) - 7 * scale,
        "hinge": lambda w, b: jnp.mean(jax.nn.relu(1 - jnp.sign(b[1]) * (b[0] @ w))),
        "quantile": lambda w, b: jnp.mean(jnp.maximum(0.9 * (b[0] @ w - b[1]), -0.1 * (b[0] @ w - b[1]))),
        "largest error": lambda w, b: jnp.max(jnp.abs(b[0] @ w - b[1])),
        "linear": lambda w, b: jnp.mean(b[0] @ w),
    }[name]
    batch = (x, y if name != "hinge" else signs)
    return ax.FiniteSum(loss, lambda key: ax.Task(batch, batch)), ax.Task(batch, batch)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", ["mean absolute error", "with an offset", "hinge", "quantile", "largest error", "linear"])
def test_a_piecewise_linear_loss_does_not_rise_and_a_warning_says_so(x64, name, scale):
    for seed, w in enumerate((jnp.zeros(3), jnp.array([3.0, 1.0, -2.0]))):
        problem, task = lines(seed, scale, name, w)
        with pytest.warns(ax.stepsize.NoCurvature, match="piecewise linear.*Edge takes .*: a number of your own"):
            inner = resolve(ax.Inner(10, Edge()), problem, w, jax.tree.map(lambda leaf: leaf[None], task))
        found = ax.adapt(problem, w, task, inner)
        path = [*np.asarray(found.losses), float(problem.loss(found.params, task.support))]
        assert all(after <= before + 1e-9 * abs(before) for before, after in pairwise(path)), path
        # It does go down, by steps that are together no longer than the weights (1 at zero).
        assert path[-1] < path[0]
        assert jnp.linalg.norm(found.params - w) < 1.01 * (jnp.linalg.norm(w) or 1)


def test_nothing_is_said_of_curvature_where_no_step_is_taken():
    problem, task = lines(0, 1.0, "mean absolute error", jnp.zeros(3))
    inner = resolve(ax.Inner(0, Edge()), problem, jnp.zeros(3), jax.tree.map(lambda leaf: leaf[None], task))
    assert np.isfinite(inner.stepsize)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:No curvature")
def test_where_there_is_no_curvature_adapt_methods_evaluate_and_training_warn():
    w = jnp.zeros(3)
    problem, task = lines(0, 1e3, "mean absolute error", w)
    tasks, inner = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), task), ax.Inner(3, Edge())
    for use in (
        lambda: ax.adapt(problem, w, task, inner),
        lambda: ax.MetaGradient(inner)(problem, w, task),
        lambda: ax.MetaGradient(ax.Inner(3, Guaranteed())).batch(problem, w, tasks),
        lambda: ax.evaluate(problem, w, inner, [3], tasks, devices=jax.devices()[:1]),
        lambda: ax.train(problem, w, ax.MetaGradient(inner), steps=1, tasks_per_step=2, devices=jax.devices()[:1]),
    ):
        with pytest.warns(ax.stepsize.NoCurvature):
            use()


@pytest.mark.parametrize("rate", [optax.cosine_decay_schedule(0.3, 60), optax.exponential_decay(0.3, 10, 0.5)])
def test_a_schedule_of_optax_is_the_array_of_its_values(x64, rate):
    got = Schedule(rate).rates(50).tree
    np.testing.assert_allclose(got, [float(rate(j)) for j in range(50)], rtol=1e-6)
    assert got.dtype == jnp.result_type(float)


def test_schedules_that_cannot_be_evaluated_at_once_keep_their_values():
    calls = []

    def branching(j):
        calls.append(j)
        return jnp.asarray(0.1) if j < 7 else jnp.asarray(0.2)

    np.testing.assert_allclose(Schedule(branching).rates(20).tree, [0.1] * 7 + [0.2] * 13)
    # 10**j leaves the range of 32-bit integers.
    np.testing.assert_allclose(
        Schedule(lambda j: 1 / jnp.asarray(1.0 * 10**j)).rates(15).tree, 10.0 ** -np.arange(15), rtol=1e-6
    )
    np.testing.assert_allclose(Schedule(lambda j: np.float32(0.5) / (1 + j)).rates(12).tree, 0.5 / np.arange(1, 13), rtol=1e-6)


def test_a_schedule_of_jax_is_called_few_times():
    calls = []

    def rate(j):
        calls.append(j)
        return 0.1 * jnp.exp(-j / 1000)

    values = Schedule(rate).rates(10_000).tree
    np.testing.assert_allclose(values, 0.1 * np.exp(-np.arange(10_000) / 1000), rtol=1e-4)
    assert len(calls) < 20
