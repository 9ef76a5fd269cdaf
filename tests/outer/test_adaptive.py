"""The adaptive outer step size: its value, what it is fed, and what it refuses."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.outer import AdaptiveOuter

W = np.array([0.7, -1.2, 0.4])
COSINE = ax.tasks.cosine(dim=3, tasks=6, difference=0.8)
CONSTANTS = COSINE.constants
ALPHA, N = 0.05, 4


def method():
    return ax.MetaGradient(ax.Inner(N, ALPHA))


def norms(w=W):
    gradient = jax.grad(COSINE.finite_sum.target_loss)
    return np.array(jax.vmap(lambda task: jnp.linalg.norm(gradient(jnp.asarray(w), task)))(COSINE.tasks.target))


def smoothness(mean_norm, b):
    r, (L, rho) = 1 + ALPHA * CONSTANTS.L, (CONSTANTS.L, CONSTANTS.rho)
    p = r**N
    return p**2 * L + rho / L * r ** (N - 1) * (p - 1) * (p * mean_norm + (p - 1) * b)


@pytest.mark.parametrize("case, gap", [("finite_sum", CONSTANTS.b), ("resampling", 0.0)])
def test_the_step_follows_the_formula(x64, case, gap):
    # One task in the pool and noise of no size: the mean of norms is known.
    one = dataclasses.replace(
        COSINE,
        noise=(0.0, 0.0),
        **{name: getattr(COSINE, name)[:1] for name in vars(COSINE) if name.endswith(("phases", "offsets"))},
    )
    problem = getattr(one, case)
    step = ax.make_step(problem, method(), AdaptiveOuter(CONSTANTS, C_beta=3.0, tasks=2, samples=5), tasks_per_step=2)
    state, _ = step(step.init(jnp.asarray(W), seed=1))
    expected = smoothness(norms()[0], gap)
    assert abs(float(state.opt_state.smoothness) / expected - 1) < 1e-12
    assert abs(float(state.opt_state.beta) * 3 * expected - 1) < 1e-12
    task = problem.sample_task(jax.random.key(0))
    gradient = method()(problem, jnp.asarray(W), task, jax.random.key(0))[1]
    np.testing.assert_allclose(state.params, W - gradient / (3 * expected), rtol=1e-12)


LAM, MU = 0.9 * CONSTANTS.L, 0.3 * CONSTANTS.L


def adapted(mean_norm, lam=LAM, mu=MU, alpha=ALPHA):
    r = max(1 + alpha * mu, alpha * lam - 1)
    return r ** (2 * N) * CONSTANTS.L + alpha * CONSTANTS.rho * r ** (N - 1) * sum(r**j for j in range(N)) * mean_norm


def adapted_norms(alpha=ALPHA):
    """The norms of the target gradients after N steps from W, of all tasks of the pool."""
    problem, inner = COSINE.finite_sum, ax.Inner(N, alpha)

    def norm(task):
        return jnp.linalg.norm(
            jax.grad(problem.target_loss)(ax.adapt(problem, jnp.asarray(W), task, inner).params, task.target)
        )

    return np.array(jax.vmap(norm)(COSINE.tasks))


@pytest.mark.parametrize("case, alpha", [("finite_sum", ALPHA), ("finite_sum", 3.0 / CONSTANTS.L), ("resampling", ALPHA)])
def test_the_adapted_form_follows_its_formula(x64, case, alpha):
    one = dataclasses.replace(
        COSINE,
        noise=(0.0, 0.0),
        **{name: getattr(COSINE, name)[:1] for name in vars(COSINE) if name.endswith(("phases", "offsets"))},
    )
    constants = dataclasses.replace(CONSTANTS, lam=LAM, mu=MU, sigma_g=0.7)
    outer = AdaptiveOuter(constants, C_beta=3.0, tasks=2, samples=5, smoothness="adapted")
    step = ax.make_step(getattr(one, case), ax.MetaGradient(ax.Inner(N, alpha)), outer, tasks_per_step=2)
    state, _ = step(step.init(jnp.asarray(W), seed=1))
    if case == "finite_sum":
        norm = adapted_norms(alpha)[0]
    else:
        # One loss for steps and target; and what is added for paths that would be noisy.
        task = one.resampling.sample_task(jax.random.key(0))
        done = ax.adapt(one.resampling, jnp.asarray(W), task, ax.Inner(N, alpha), jax.random.key(0)).params
        batch = one.resampling.target_batch(task, done, jax.random.key(0), 1)
        r = max(1 + alpha * MU, alpha * LAM - 1)
        strayed = alpha * np.sqrt(sum(r ** (2 * j) for j in range(N))) * 0.7 / np.sqrt(5)
        norm = float(jnp.linalg.norm(jax.grad(one.resampling.target_loss)(done, batch))) + CONSTANTS.L * strayed
    assert float(state.opt_state.smoothness) == pytest.approx(adapted(norm, alpha=alpha), rel=1e-9)
    assert float(state.opt_state.beta) == pytest.approx(1 / (3 * adapted(norm, alpha=alpha)), rel=1e-9)
    # Without lam and mu both are L.
    unknown = dataclasses.replace(CONSTANTS, lam=None, mu=None)
    plain = AdaptiveOuter(unknown, smoothness="adapted").init(jnp.zeros(2)).constants
    assert float(plain.lam) == float(plain.mu) == pytest.approx(CONSTANTS.L)


def draws(outer):
    """The smoothness of one meta-step, and the loss of its own tasks, for 4,000 seeds."""
    step = ax.make_step(COSINE.finite_sum, method(), outer, tasks_per_step=2)
    start = step.init(jnp.asarray(W), seed=0)

    @jax.jit
    @jax.vmap
    def draw(seed):
        state, info = step(dataclasses.replace(start, key=jax.random.key(seed)))
        return state.opt_state.smoothness, info["loss"]

    return map(np.asarray, draw(jnp.arange(4000)))


def test_the_adapted_norms_are_unbiased_and_independent_of_the_meta_step(x64):
    constants = dataclasses.replace(CONSTANTS, lam=LAM, mu=MU)
    bend, loss = draws(AdaptiveOuter(constants, tasks=3, smoothness="adapted"))
    assert abs(bend.mean() - adapted(adapted_norms().mean())) < 4 * bend.std() / np.sqrt(len(bend))
    slope = adapted(1.0) - adapted(0.0)
    assert abs(bend.std() / (slope * adapted_norms().std() / np.sqrt(3)) - 1) < 0.05
    assert abs(np.corrcoef(bend, loss)[0, 1]) < 4 / np.sqrt(len(bend))


def test_both_ends_are_measured_for_the_adapted_form(x64):
    with pytest.warns(UserWarning, match="lower estimates"):
        outer = AdaptiveOuter(tasks=4, smoothness="adapted")
    problem, w = COSINE.finite_sum, 2 * jnp.asarray(W)
    step = ax.make_step(problem, method(), outer, tasks_per_step=2)
    state, _ = step(step.init(w))
    found = state.opt_state.constants

    def spectra(task):
        end = ax.adapt(problem, w, task, ax.Inner(N, ALPHA)).params
        return jnp.stack([jnp.linalg.eigvalsh(jax.hessian(problem.loss)(at, task.support)) for at in (w, end)])

    # Of each task of the pool; four draws of them are measured.
    by_task = np.asarray(jax.vmap(spectra)(COSINE.tasks))
    for value, exact in ((found.lam, by_task.max((1, 2))), (found.mu, -by_task.min((1, 2)))):
        assert exact.min() <= value * (1 + 1e-9) and np.abs(exact - float(value)).min() < 1e-9
    assert found.lam <= found.L <= CONSTANTS.L and 0.3 * CONSTANTS.rho < found.rho <= CONSTANTS.rho * 1.01
    assert float(found.sigma_g) == 0 and 0 < float(state.opt_state.beta) < np.inf


def test_the_norms_are_unbiased_and_independent_of_the_meta_step(x64):
    bend, loss = draws(AdaptiveOuter(CONSTANTS, tasks=3))
    assert abs(bend.mean() - smoothness(norms().mean(), CONSTANTS.b)) < 4 * bend.std() / np.sqrt(len(bend))
    # Its spread is that of a mean of three norms, and it says nothing of the meta-step's own tasks.
    slope = smoothness(1.0, 0.0) - smoothness(0.0, 0.0)
    assert abs(bend.std() / (slope * norms().std() / np.sqrt(3)) - 1) < 0.05
    assert abs(np.corrcoef(bend, loss)[0, 1]) < 4 / np.sqrt(len(bend))


def test_samples_are_those_asked_for(x64):
    noisy = dataclasses.replace(COSINE, noise=(3.0, 0.0)).resampling
    mean = {}
    for samples in (1, 100):
        step = ax.make_step(noisy, method(), AdaptiveOuter(CONSTANTS, tasks=100, samples=samples), tasks_per_step=1)
        mean[samples] = float(step(step.init(jnp.asarray(W), seed=0))[0].opt_state.smoothness)
    # A norm of a vector of three with noise of standard deviation 3 is about 5, without it that of the mean gradient.
    slope = smoothness(1.0, 0.0) - smoothness(0.0, 0.0)
    assert (mean[1] - mean[100]) / slope > 2
    assert abs((mean[100] - smoothness(0.0, 0.0)) / slope / norms().mean() - 1) < 0.1


@pytest.mark.parametrize("case", ["finite_sum", pytest.param("resampling", marks=pytest.mark.slow)])
def test_what_is_measured_is_below_the_constants_and_near_them(case):
    with pytest.warns(UserWarning, match="lower estimates"):
        outer = AdaptiveOuter(tasks=8, every=2)
    problem = getattr(COSINE, case)
    state, _ = ax.train(problem, 2 * jnp.asarray(W, jnp.float32), method(), optimizer=outer, steps=6, tasks_per_step=2)
    found = state.opt_state.constants
    assert 0.7 * CONSTANTS.L < found.L <= 1.05 * CONSTANTS.L
    assert 0.3 * CONSTANTS.rho < found.rho <= CONSTANTS.rho * 1.01
    assert found.b == 0 if case == "resampling" else 0.3 * CONSTANTS.b < found.b < 1.3 * CONSTANTS.b


def test_inside_a_chain_and_on_two_devices():
    results = []
    for devices in (jax.devices()[:1], jax.devices()[:2]):
        outer = optax.chain(optax.clip_by_global_norm(1e6), AdaptiveOuter(CONSTANTS))
        state, _ = ax.train(
            COSINE.finite_sum,
            jnp.asarray(W, jnp.float32),
            method(),
            optimizer=outer,
            steps=3,
            tasks_per_step=4,
            devices=devices,
        )
        results.append(np.asarray(state.params))
    np.testing.assert_allclose(*results, rtol=1e-5)
    assert np.linalg.norm(results[0] - W) > 0.05


BAD = [
    (lambda: AdaptiveOuter(CONSTANTS, C_beta=0.0), "C_beta=0.0.* must be a positive number"),
    (lambda: AdaptiveOuter(CONSTANTS, tasks=0), "tasks=0.* must be a whole number of at least 1"),
    (lambda: AdaptiveOuter(CONSTANTS, smoothness="both"), 'smoothness=\'both\'.* must be "initial" or "adapted"'),
    (lambda: AdaptiveOuter(2.0), "must be ax.theory.Constants or None, not float"),
    (
        lambda: AdaptiveOuter(CONSTANTS).update(W, AdaptiveOuter(CONSTANTS).init(W)),
        "needs gradients before adaptation, which ax.train",
    ),
]


@pytest.mark.parametrize("make, sentence", BAD)
def test_bad_arguments(make, sentence):
    with pytest.raises(ax.InputError, match=sentence):
        make()


@pytest.mark.parametrize(
    "inner",
    [
        ax.Inner(2, [0.1, 0.2]),
        ax.Inner(2, ax.stepsize.Learned(0.1)),
        ax.Inner(2, optimizer=optax.sgd(0.1)),
        ax.Inner(2, 0.1, proximal=1.0),
        ax.Inner(2, 0.1, start=lambda w: w),
    ],
)
def test_other_inner_loops_are_refused(inner):
    with pytest.raises(ax.InputError, match="plain inner gradient descent only"):
        ax.train(COSINE.finite_sum, jnp.asarray(W), ax.MetaGradient(inner), optimizer=AdaptiveOuter(CONSTANTS), steps=1)


def test_tasks_from_the_host_are_refused():
    with pytest.raises(ax.InputError, match="draws tasks of its own"):
        ax.train(
            COSINE.finite_sum, jnp.asarray(W), method(),
            optimizer=AdaptiveOuter(CONSTANTS), steps=1, tasks_per_step=6, tasks=[COSINE.tasks],
        )  # fmt: skip


def test_known_constants_warn_of_nothing():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        AdaptiveOuter(CONSTANTS)
    assert said == []


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:AdaptiveOuter:UserWarning")
@pytest.mark.parametrize("case", ["finite_sum", pytest.param("resampling", marks=pytest.mark.slow)])
def test_parameters_may_be_a_module_whose_functions_are_no_arrays(case):
    """Constants are measured on networks and policies too, and each meta-step has a finite step size."""
    if case == "finite_sum":
        problem, params = ax.tasks.sinusoid(5, 5), ax.models.mlp((1, 4, 1), key=jax.random.key(0))
    else:
        rl = ax.tasks.rl
        problem = rl.navigation(horizon=5)
        params = rl.GaussianPolicy(ax.models.mlp((2, 4, 2), key=jax.random.key(0)), 2)
    method = ax.MetaGradient(ax.Inner(1, 0.01), samples=ax.Samples(5, 5, 5))
    state, history = ax.train(problem, params, method, optimizer=AdaptiveOuter(tasks=2), steps=3, tasks_per_step=2)
    assert not history["skipped"].any() and 0 < float(state.opt_state.beta) < np.inf
    assert float(state.opt_state.constants.L) > 0
