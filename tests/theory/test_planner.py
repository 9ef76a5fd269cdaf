"""The planner: its sizes suffice, cost least, and scale as the theorems say."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from adaptax import theory
from adaptax.errors import InputError

CONSTANTS = theory.Constants(L=2.0, rho=1.0, sigma=0.7, sigma_g=0.9, sigma_H=0.5, b=0.2, gap=3.0)
CASES = ("finite-sum", "resampling")
SIZES = {
    "finite-sum": ("tasks_per_step", "smoothness_tasks"),
    "resampling": (
        "tasks_per_step", "step_samples", "curvature_samples", "target_samples", "smoothness_tasks", "smoothness_samples",
    ),
}  # fmt: skip


def random_constants(rng):
    L = 10 ** rng.uniform(-1, 1)

    def spread(low, high):
        return 10 ** rng.uniform(low, high)

    return theory.Constants(
        L=L, rho=L * spread(-1, 1), sigma=spread(-2, 1), sigma_g=spread(-1, 1), sigma_H=L * spread(-1, 1),
        b=spread(-2, 0), gap=spread(-1, 1),
    )  # fmt: skip


def calls(case, steps, sizes):
    k, b, b_l = (sizes[name] for name in ("iterations", "tasks_per_step", "smoothness_tasks"))
    if case == "finite-sum":
        return k * (b * (steps + 1) + b_l), k * b * steps
    s, d, t, d_l = (sizes[f"{name}_samples"] for name in ("step", "curvature", "target", "smoothness"))
    return k * (b * (steps * s + t) + b_l * d_l), k * b * steps * d


def bound(case, c, alpha, steps, C_beta, sizes):
    return (theory.finite_sum if case == "finite-sum" else theory.resampling)(c, alpha, steps, C_beta=C_beta, **sizes)


@pytest.mark.parametrize("case", CASES)
def test_plans_keep_their_promise_at_no_more_than_it_takes(case):
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(40):
        c, steps = random_constants(rng), int(rng.choice([1, 2, 5, 16, 64]))
        plan = theory.plan(c, epsilon=0.1 * 10 ** rng.uniform(-1, 1), steps=steps, case=case)
        sizes = {name: getattr(plan, name) for name in ("iterations", *SIZES[case])}
        assert all(isinstance(size, int) and size >= 1 for size in sizes.values())
        assert plan.alpha == 1 / 8 / (steps * c.L)
        found = bound(case, c, plan.alpha, steps, 2.0, sizes)
        assert found == plan.bound() and found.kappa > 0
        assert plan.epsilon**2 / (found.a + found.c * plan.epsilon) * (1 + 1e-12) >= found.R
        assert found.gradient <= plan.epsilon * (1 + 1e-12)
        assert (plan.gradients, plan.hessian_vector_products) == calls(case, steps, sizes)
        ratios.append(plan.oracle_calls / plan.relaxed)
        # One meta-step fewer would not do.
        if plan.iterations > 1:
            fewer = bound(case, c, plan.alpha, steps, 2.0, sizes | {"iterations": plan.iterations - 1})
            assert plan.epsilon**2 / (fewer.a + fewer.c * plan.epsilon) < fewer.R
    assert min(ratios) > 1 - 1e-6 and np.median(ratios) < 1.01


def test_no_other_sizes_cost_less_finite_sum():
    c = dataclasses.replace(CONSTANTS, gap=1.0)
    plan = theory.plan(c, epsilon=0.5, steps=3)
    least = math.inf
    for b, b_l, k in itertools.product(range(1, 40), range(1, 25), range(1, 120)):
        sizes = {"iterations": k, "tasks_per_step": b, "smoothness_tasks": b_l}
        if sum(cost := calls("finite-sum", 3, sizes)) >= least:
            break_even = True
            continue
        try:
            good = theory.finite_sum(c, plan.alpha, 3, **sizes).gradient <= 0.5
        except InputError:
            good = False
        if good:
            least = sum(cost)
    assert break_even
    assert plan.oracle_calls <= 1.02 * least


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("free", [False, True])
def test_the_relaxed_problem_has_no_better_neighbour(case, free):
    # In the logarithms the problem is convex: a point without a better neighbour is the global minimum.
    rng = np.random.default_rng(1)
    for _ in range(4):
        c, steps = random_constants(rng), int(rng.choice([1, 8, 64]))
        plan = theory.plan(c, epsilon=0.1, steps=steps, case=case, C_beta=None if free else 2.0)
        alpha = plan.alpha
        for _ in range(300):
            factor = np.exp(rng.normal(size=len(SIZES[case])) * 0.2)
            sizes = {n: max(getattr(plan, n) * f, 1.0) for n, f in zip(SIZES[case], factor, strict=True)}
            C_beta = plan.C_beta * (np.exp(rng.normal() * 0.2) if free else 1)
            try:
                endless = bound(case, c, alpha, steps, C_beta, sizes | {"iterations": 1e300})
            except InputError:
                continue
            left = 0.1**2 / (endless.a + endless.c * 0.1) - endless.noise
            if left > 0:
                k = max(C_beta * c.gap / (endless.kappa * left), 1.0)
                # The planner's theta is the best one for the share of epsilon, this one for R: both are feasible.
                assert sum(calls(case, steps, sizes | {"iterations": k})) > plan.relaxed * (1 - 1e-3)


@pytest.mark.parametrize("case", CASES)
def test_half_the_epsilon_needs_four_times_the_meta_steps(case):
    one, two = (theory.plan(CONSTANTS, epsilon=epsilon, steps=5, case=case) for epsilon in (0.04, 0.02))
    assert abs(two.iterations / one.iterations - 4) < 0.1
    exponents = theory.plan(CONSTANTS, epsilon=1e-3 if case == "finite-sum" else 1e-5, steps=5, case=case).exponents()
    expected = {"iterations": 2, "tasks_per_step": 2, "oracle_calls": 4 if case == "finite-sum" else 6}
    if case == "resampling":
        # D = 1 would suffice, but with S samples for a step about sqrt(S) samples for a Hessian factor cost less in all.
        expected |= {"step_samples": 2, "curvature_samples": 1, "hessian_vector_products": 5}
    for name, exponent in expected.items():
        assert abs(exponents[name] - exponent) < 0.1, name


def test_cost_grows_linearly_in_n_and_samples_of_a_step_fall():
    finite = theory.plan(CONSTANTS, epsilon=0.01, steps=4).exponents("steps")
    assert abs(finite["oracle_calls"] - 1) < 0.05 and abs(finite["iterations"]) < 0.05
    assert abs(finite["tasks_per_step"]) < 0.05
    sampled = theory.plan(CONSTANTS, epsilon=1e-6, steps=4, case="resampling").exponents("steps")
    # The product N S matters: noise averages out along the path, and the total cost does not depend on N.
    assert abs(sampled["step_samples"] + 1) < 0.05 and abs(sampled["iterations"]) < 0.05
    assert abs(sampled["oracle_calls"]) < 0.1


def test_choosing_c_beta_costs_no_more():
    for case in CASES:
        fixed, free = (theory.plan(CONSTANTS, epsilon=0.02, steps=5, case=case, C_beta=C) for C in (2.0, None))
        assert free.oracle_calls <= fixed.oracle_calls * 1.001
        assert free.bound().gradient <= 0.02


def test_the_plan_explains_itself():
    text = theory.plan(CONSTANTS, epsilon=0.1, steps=5, case="resampling").explain()
    words = ("q = (1 + αL)^(2N) = 1.28", "κ = ", "from the distance at the start", "worst case", "lower estimates", "ReLU")
    assert [word for word in words if word not in text] == []
    rows = theory.plan(CONSTANTS, epsilon=0.1, steps=5).rows()
    assert [row[0] for row in rows] == [
        "α", "C_β", "K", "B", "B'", "gradients", "hessian vector products",
    ]  # fmt: skip


ADAPTED = theory.Constants(L=1.5, rho=0.5, sigma=0.0, sigma_g=0.2, sigma_H=0.3, gap=1.0, lam=1.2, mu=0.1)


@pytest.mark.parametrize("case", CASES)
def test_plans_by_adapted_gradients_keep_their_promise(case):
    rng = np.random.default_rng(2)
    for k in range(12):
        lam, steps = 10 ** rng.uniform(-1, 0.5), int(rng.choice([1, 3, 10, 40]))
        mu = (0.0, lam * rng.uniform(0, 1), -lam * rng.uniform(0, 0.9))[k % 3]
        c = dataclasses.replace(ADAPTED, L=1.2 * lam, lam=lam, mu=mu, rho=10 ** rng.uniform(-1, 0))
        A, spread = rng.uniform(0.2, 1), (None, 0.1)[k % 2]
        options = {"rule": "two-sided", "adapted_gradient": A, "spread": spread, "gamma": 0.2, "gamma_plus": 0.9}
        plan = theory.plan(c, epsilon=0.1, steps=steps, case=case, **options)
        assert plan.alpha == theory.two_sided_alpha(lam, mu, steps, gamma=0.2, gamma_plus=0.9)
        sizes = {name: getattr(plan, name) for name in ("iterations", *SIZES[case])}
        known = {"adapted_gradient": A, "spread": spread, "case": case, "C_beta": 2.0}
        path = c.path(plan.alpha, steps)
        floor = max(path.q * c.L, theory.jacobian_lipschitz(path, c.rho) * A)
        found = theory.adapted_convergence(c, plan.alpha, steps, floor=floor, **known, **sizes)
        assert found == plan.bound() and found.gradient <= 0.1 * (1 + 1e-12)
        if plan.iterations > 1:
            sizes["iterations"] -= 1
            assert theory.adapted_convergence(c, plan.alpha, steps, floor=floor, **known, **sizes).gradient > 0.1
        n, k, b, b_l = steps, plan.iterations, plan.tasks_per_step, plan.smoothness_tasks
        s, d, t, d_l = (getattr(plan, name) or 1 for name in ("step_samples", "curvature_samples", "target_samples",
                                                               "smoothness_samples"))  # fmt: skip
        assert (plan.gradients, plan.hessian_vector_products) == (k * (b * (n * s + t) + b_l * (n * s + d_l)), k * b * n * d)
        assert plan.relaxed <= plan.oracle_calls * (1 + 1e-9)


def test_cost_by_adapted_gradients_grows_linearly_in_n_and_alpha_falls_for_negative_curvature_alone():
    options = {"epsilon": 0.05, "rule": "two-sided", "adapted_gradient": 0.5}
    cost = theory.plan(ADAPTED, steps=8, **options).exponents("steps")
    assert abs(cost["oracle_calls"] - 1) < 0.02 and abs(cost["iterations"]) < 0.02
    convex = dataclasses.replace(ADAPTED, mu=0.0)
    one, many = (theory.plan(convex, steps=n, **options) for n in (8, 800))
    assert one.alpha == many.alpha == 1 / 1.2 and abs(many.iterations / one.iterations / 100 - 1) < 0.02
    # With strong convexity an ever longer path leaves less and less to do.
    strong = dataclasses.replace(ADAPTED, mu=-0.3)
    assert theory.plan(strong, steps=60, **options).oracle_calls < theory.plan(strong, steps=6, **options).oracle_calls
    text = theory.plan(convex, steps=8, **options).explain()
    words = (
        "no condition in 1/N",
        "αN = 6.667",
        "Taken for granted",
        "above r^(2N) L = 1.5",
        "spread over tasks by at most 0.5",
    )
    assert [word for word in words if word not in text] == []
    assert ("α", "0.8333", "inner step size, min(γ₊/λ, γ/(Nμ))") in theory.plan(convex, steps=8, **options).rows()


def test_chebyshev_s_certificate():
    path = theory.Expansion(0.02, 1.0, 4)
    c = theory.Constants(L=1.0, rho=0.0, sigma=0.8, b=0.3)
    # The error that the mean may have is exactly the spread over tasks at this norm divided by sqrt(eta M).
    for norm in (0.0, 0.2, 5.0):
        off = theory.task_spread(path, c, norm) / math.sqrt(0.1 * 50)
        if norm > off:
            assert abs(theory.certified_gradient(path, c, norm - off, 50, confidence=0.9) / norm - 1) < 1e-12
    assert theory.certified_gradient(path, c, 0.0, 1, confidence=0.999999) == math.inf
    with pytest.raises(InputError, match=r"confidence=1\.0.* must be a positive number below 1: change"):
        theory.certified_gradient(path, c, 0.0, 10, confidence=1.0)


BAD = [
    ({"epsilon": 0}, "epsilon=0.* above 1e-100"),
    ({"steps": 0}, "steps=0.* at least 1"),
    ({"case": "online"}, 'must be "finite-sum" or "resampling"'),
    ({"gamma": 0.5}, "q < 2: give gamma= below 0.3589"),
    ({"C_beta": 0.5}, "raise C_beta above 0.5"),
    ({"C_beta": 1.0, "case": "resampling"}, "raise C_beta above 1"),
    ({"epsilon": 1e-200}, "above 1e-100"),
    ({"rule": "fixed"}, 'must be "guaranteed" or "two-sided"'),
    ({"rule": "two-sided"}, "give both rule and bound"),
    ({"adapted_gradient": 1.0}, "give both rule and bound"),
    ({"spread": 1.0}, "give both rule and bound"),
    ({"rule": "two-sided", "adapted_gradient": -1.0}, "adapted_gradient=-1"),
    ({"rule": "two-sided", "adapted_gradient": 1.0, "gamma_plus": 2.5}, "gamma_plus=2.5"),
    ({"rule": "two-sided", "adapted_gradient": 1.0, "spread": -1}, "spread=-1"),
]


@pytest.mark.parametrize("options, sentence", BAD)
def test_bad_arguments(options, sentence):
    with pytest.raises(InputError, match=sentence):
        theory.plan(CONSTANTS, **({"epsilon": 0.1, "steps": 5} | options))


def test_what_a_bound_needs_is_named():
    c, small = CONSTANTS, {"iterations": 100, "smoothness_tasks": 5}
    with pytest.raises(InputError, match=r"raise C_beta from 0\.4"):
        theory.finite_sum(c, 0.01, 5, tasks_per_step=10, C_beta=0.4, **small)
    samples = dict.fromkeys(SIZES["resampling"][1:4], 10) | {"smoothness_samples": 10}
    with pytest.raises(InputError, match="raise tasks_per_step from 1, which"):
        theory.resampling(c, 0.01, 5, tasks_per_step=1, **small, **samples)
    noisy = dataclasses.replace(c, sigma_g=1e5)
    with pytest.raises(InputError, match="raise step_samples from 10, which"):
        theory.resampling(noisy, 0.01, 5, tasks_per_step=100, **small | {"smoothness_tasks": 10**14}, **samples)
    with pytest.raises(InputError, match="raise C_beta or smoothness_tasks"):
        theory.resampling(noisy, 0.01, 5, tasks_per_step=100, C_beta=1.0, **small, **samples)
    with pytest.raises(InputError, match="gap"):
        theory.plan(dataclasses.replace(c, gap=None), epsilon=0.1, steps=5)
    with pytest.raises(InputError, match="tasks_per_step=0 must be a finite number of at least 1"):
        theory.finite_sum(c, 0.01, 5, tasks_per_step=0, **small)
    with pytest.raises(InputError, match=r"L=0.* must be a positive number"):
        theory.Constants(L=0, rho=1, sigma=1)
    with pytest.raises(InputError, match=r"sigma=-1.* of at least 0"):
        theory.Constants(L=1, rho=1, sigma=-1)


def test_numbers_of_numpy():
    c = theory.Constants(L=np.float32(2), rho=np.int64(1), sigma=np.float64(0.5), gap=np.float32(3))
    assert c == theory.Constants(L=2.0, rho=1.0, sigma=0.5, gap=3.0) and type(c.L) is type(c.rho) is type(c.gap) is float
    one, two = (
        theory.plan(c, epsilon=kind(0.125), steps=n, gamma=kind(0.125)) for kind, n in ((np.float32, np.int64(5)), (float, 5))
    )
    assert one == two and json.dumps(dataclasses.asdict(one)) == json.dumps(dataclasses.asdict(two))
    assert theory.guaranteed_alpha(np.float32(2), np.int64(5)) == theory.guaranteed_alpha(2.0, 5)
    for wrong, words in (
        ({"lam": 3.0}, "lam=3"),
        ({"lam": -0.1}, "lam=-0.1"),
        ({"mu": 2.1}, "mu=2.1"),
        ({"lam": 1.0, "mu": -1.1}, "mu=-1.1"),
    ):
        for make in (lambda **o: theory.Constants(2.0, 1.0, 1.0, **o), lambda **o: theory.Expansion(0.1, 2.0, 3, **o)):
            with pytest.raises(InputError, match=words):
                make(**wrong)
    assert type(theory.Constants(2, 1, 1, lam=np.float32(1), mu=np.int64(0)).mu) is float
    for wrong in ({"lam": 0.0}, {"mu": -1.1}, {"gamma": 0.0}, {"gamma_plus": 2.1}, {"steps": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            theory.two_sided_alpha(**({"lam": 1.0, "mu": 0.0, "steps": 3} | wrong))
    with pytest.raises(InputError, match=r"rho=None\) must be a finite number"):
        theory.Constants(L=1.0, rho=None, sigma=1.0)
    with pytest.raises(InputError, match=r"halvings=1\) must be a whole number of at least 2"):
        one.exponents(halvings=1)
