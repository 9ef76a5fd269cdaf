r"""The planner: the numbers of meta-steps, tasks and samples that suffice for an accuracy with the fewest oracle calls."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError
from adaptax.theory.adapted import Adapted, adapted_convergence
from adaptax.theory.constants import Constants, Expansion, largest_alpha
from adaptax.theory.convergence import Bound, finite_sum, resampling
from adaptax.theory.rules import guaranteed_alpha, two_sided_alpha
from adaptax.theory.search import CASES, Search
from adaptax.theory.smoothness import jacobian_lipschitz

_MEANING = {
    "alpha": ("α", "inner step size"),
    "C_beta": ("C_β", "constant of the outer step β = 1/(C_β L̂)"),
    "iterations": ("K", "meta-steps"),
    "tasks_per_step": ("B", "tasks for a meta-step"),
    "step_samples": ("S", "samples for an inner step"),
    "curvature_samples": ("D", "samples for a Hessian factor"),
    "target_samples": ("T", "samples for the last gradient"),
    "smoothness_tasks": ("B'", "tasks that L̂ is measured on, apart from those of the meta-step"),
    "smoothness_samples": ("D_L", "samples for each gradient in L̂"),
    "gradients": ("", "number of gradients"),
    "hessian_vector_products": ("", "number of Hessian-vector products"),
}
_KEPT = ("case", "gamma", "rule", "gamma_plus", "adapted_gradient", "spread")
_RULES = {"guaranteed": "γ/(NL)", "two-sided": "min(γ₊/λ, γ/(Nμ))"}
_CASE_OF_GRADIENTS = {"finite-sum": "each of a whole support or target set", "resampling": "each of one sample"}


@dataclass(frozen=True)
class Plan:
    """Sizes that suffice, by a convergence theorem, for E||∇L(w_ζ)|| ≤ epsilon; made by `plan`.

    The counts are worst-case ones: they say how the cost scales, not how much a run will need. Numbers of samples are None in
    the finite-sum case, where every gradient is that of a whole set.
    """

    constants: Constants
    epsilon: float
    steps: int
    case: str
    gamma: float
    alpha: float
    C_beta: float
    iterations: int
    tasks_per_step: int
    step_samples: int | None
    curvature_samples: int | None
    target_samples: int | None
    smoothness_tasks: int
    smoothness_samples: int | None
    gradients: int
    hessian_vector_products: int
    relaxed: float
    free_C_beta: bool = False
    rule: str = "guaranteed"
    gamma_plus: float = 1.0
    adapted_gradient: float | None = None
    spread: float | None = None
    floor: float | None = None

    @property
    def oracle_calls(self) -> int:
        """Gradients and Hessian-vector products together; at least `relaxed`, their number if sizes need not be whole."""
        return self.gradients + self.hessian_vector_products

    def bound(self) -> Bound:
        """The theorem's bound for a run of these sizes."""
        sizes = {name: getattr(self, name) for name in ("iterations", *CASES[self.case])}
        if self.adapted_gradient is not None:
            known: Any = {"adapted_gradient": self.adapted_gradient, "spread": self.spread, "floor": self.floor} | sizes
            return adapted_convergence(self.constants, self.alpha, self.steps, C_beta=self.C_beta, case=self.case, **known)
        theorem = finite_sum if self.case == "finite-sum" else resampling
        return theorem(self.constants, self.alpha, self.steps, C_beta=self.C_beta, **sizes)

    def rows(self) -> list[tuple[str, str, str]]:
        """Symbol, value and meaning of every quantity, for a table."""
        rows = []
        for name, (symbol, meaning) in _MEANING.items():
            if (value := getattr(self, name)) is not None:
                text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
                of = {"gradients": f", {_CASE_OF_GRADIENTS[self.case]}", "alpha": f", {_RULES[self.rule]}"}.get(name, "")
                rows.append((symbol or name.replace("_", " "), text, meaning + of))
        return rows

    def explain(self) -> str:
        """The reasons for these numbers: the path's constants, the share of each part of the bound, and its limits."""
        bound = self.bound()
        allowed = self.epsilon**2 / (bound.a + bound.c * self.epsilon)
        lines = [
            f"Case: {self.case}; N = {self.steps} inner steps; target: E||∇L(w)|| ≤ {self.epsilon:g} at a random iterate.",
            *(self._by_path(bound) if self.adapted_gradient is None else self._by_adapted_gradients()),
            f"κ = {bound.kappa:.4g}: the share of the descent that noise leaves.",
            f"R = {bound.R:.4g} of the {allowed:.4g} that ε allows: {bound.start / bound.R:.0%} from the distance at the start "
            f"(less with more meta-steps), {bound.noise / bound.R:.0%} from sampling (less with larger batches)."
            if bound.R > 0
            else "R = 0: there is nothing left to do.",
            f"So E||∇L(w)|| ≤ {bound.gradient:.4g} after {self.iterations:,} meta-steps: {self.oracle_calls:,} oracle calls, "
            f"{self.oracle_calls / max(self.relaxed, 1):.3f} times their number if sizes need not be whole.",
            "This is a worst case over all losses with these constants: it says how the cost scales, not how much a run needs. "
            "Measured constants are lower estimates, and networks with ReLU have no finite rho: for them the plan is a "
            "diagnostic, not a guarantee. The theorem covers neither the rule Edge nor optimisers such as Adam.",
        ]
        return "\n".join(lines)

    def _by_path(self, bound: Bound) -> list[str]:
        q = Expansion(self.alpha, self.constants.L, self.steps).q
        return [
            f"α = γ/(NL) = {self.alpha:.4g} with γ = {self.gamma:g}: q = (1 + αL)^(2N) = {q:.4g}, and must be below 2.",
            f"β = 1/(C_β L̂) with C_β = {self.C_beta:.4g}; the mean of L̂ is at most {bound.a:.4g} + {bound.c:.4g} ||∇L||.",
        ]

    def _by_adapted_gradients(self) -> list[str]:
        c, path = self.constants, self.constants.path(self.alpha, self.steps)
        lam, mu = (c.L if value is None else value for value in (c.lam, c.mu))
        known = Adapted.checked("plan", path, c, self.adapted_gradient, self.spread, floor=self.floor)
        slope, least = jacobian_lipschitz(path, c.rho), path.q * c.L
        raised = f" (above r^(2N) L = {least:.4g}, so that L̂ varies little)" if known.floor > least else ""
        return [
            f"α = min(γ₊/λ, γ/(Nμ)) = {self.alpha:.4g} with γ₊ = {self.gamma_plus:g}, λ = {lam:.4g}, γ = {self.gamma:g}, "
            f"μ = {mu:.4g}"
            + (", so that no condition in 1/N is left" if mu <= 0 else "")
            + f": r^(2N) = {path.q:.4g}, and may be any number; total adaptation αN = {self.alpha * self.steps:.4g}.",
            f"β = 1/(C_β L̂) with C_β = {self.C_beta:.4g}; L̂ = {known.floor:.4g}{raised} + {slope:.4g} times the mean norm of "
            f"adapted gradients: in the mean at most {known.floor + slope * known.gradient:.4g}.",
            "Taken for granted at all parameters of the run: adapted gradients of root mean square at most "
            + f"{known.gradient:.4g}"
            + (f", meta-gradients that spread over tasks by at most {known.spread:.4g}." if self.case == "finite-sum" else "."),
        ]

    def exponents(self, over: str = "epsilon", halvings: int = 6) -> dict[str, float]:
        r"""How the plan scales: slopes of log-log fits to plans for other $\varepsilon$ or N.

        Arguments:
            over: "epsilon" (default): exponents of $1/\varepsilon$, by halving it; "steps": exponents of N, by doubling it.
            halvings: how many times it is halved or doubled (default 6).

        Returns: the fitted exponents by field, from the larger half of the points, where the leading terms dominate.

        Errors: `InputError` for another name, or if `halvings` is not a whole number of at least 2.

        Example:
            >>> from adaptax import theory
            >>> c = theory.Constants(L=1.0, rho=0.5, sigma=0.2, gap=1.0)
            >>> {k: round(v, 1) for k, v in theory.plan(c, epsilon=0.1, steps=5).exponents().items() if k == "iterations"}
            {'iterations': 2.0}
        """
        if over not in ("epsilon", "steps"):
            raise InputError(f'exponents(over={over!r}) must be "epsilon" or "steps".')
        halvings = check_whole("exponents", "halvings", halvings, least=2)
        plans = []
        for k in range(halvings + 1):
            epsilon, steps = (self.epsilon / 2**k, self.steps) if over == "epsilon" else (self.epsilon, self.steps * 2**k)
            C_beta = None if self.free_C_beta else self.C_beta
            same: Any = {name: getattr(self, name) for name in _KEPT}
            plans.append(plan(self.constants, epsilon=epsilon, steps=steps, C_beta=C_beta, **same))
        half = len(plans) // 2
        x = np.log(2) * np.arange(len(plans))[half:]
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), int) and f.name in _MEANING]
        y = {name: np.log([float(max(getattr(p, name), 1)) for p in plans[half:]]) for name in names}
        y["oracle_calls"] = np.log([float(p.oracle_calls) for p in plans[half:]])
        return {name: float(np.polyfit(x, values, 1)[0]) for name, values in y.items()}


def plan(
    constants: Constants,
    *,
    epsilon: float,
    steps: int,
    case: str = "finite-sum",
    gamma: float = 1 / 8,
    C_beta: float | None = 2.0,
    rule: str = "guaranteed",
    gamma_plus: float = 1.0,
    adapted_gradient: float | None = None,
    spread: float | None = None,
) -> Plan:
    r"""The cheapest sizes for which a theorem promises $E\|\nabla\mathcal L(w_\zeta)\| \le \varepsilon$.

    The rule "guaranteed" takes $\alpha = \gamma/(NL)$ and the theorem by gradients before adaptation (`finite_sum`,
    `resampling`), "two-sided" $\alpha = \min(\gamma_+/\lambda, \gamma/(N\mu))$ and `adapted_convergence`, which needs bounds on
    the adapted gradients: they are assumptions about all parameters that the run visits.

    The cost is the number of gradients and Hessian-vector products together: $K(B(2N+1) + B')$ in the finite-sum case,
    $K(B(NS + T + ND) + B'D_L)$ in the resampling case; "two-sided" has $B'(N+1)$ and $B'(NS + D_L)$ in place of $B'$ and
    $B'D_L$. In the logarithms of the sizes the problem is convex (a geometric
    programme), so that the minimum found over real numbers, `relaxed`, is the global one. The sizes are then rounded to whole
    numbers.

    Arguments:
        constants: L, rho, gap, and what the case needs (sigma_g, sigma_H or b); "guaranteed": sigma; "two-sided": lam and mu.
        epsilon: $\varepsilon$, positive [loss / w].
        steps: N, at least 1.
        case: "finite-sum" (default) or "resampling".
        gamma: $\gamma$ (default 1/8); "guaranteed": at most $\frac12\ln2$ for every N.
        C_beta: constant of the outer step $\beta_k = 1/(C_\beta\hat L_k)$ (default 2); None chooses it with the sizes.
        rule: "guaranteed" (default) or "two-sided".
        gamma_plus: $\gamma_+$ of "two-sided", at most 2 (default 1).
        adapted_gradient: A of `adapted_convergence`, which "two-sided" needs [loss / w].
        spread: $\sqrt V$ there (default: $r^NA$).

    Returns: a `Plan`: `alpha`, `C_beta`, sizes, oracle counts, `explain()`, `exponents()`, `bound()`.

    Errors: `InputError` for numbers out of range, an unknown gap, "guaranteed" with q at least 2, "two-sided" without
        adapted_gradient, or a C_beta with which no size suffices.

    Example:
        >>> from adaptax import theory
        >>> c = theory.Constants(L=1.0, rho=0.5, sigma=0.2, gap=1.0)
        >>> p = theory.plan(c, epsilon=0.1, steps=5)
        >>> p.alpha, p.bound().gradient <= 0.1
        (0.025, True)
        >>> convex = theory.Constants(L=1.0, rho=0.5, sigma=0.2, gap=1.0, mu=0.0)
        >>> p = theory.plan(convex, epsilon=0.1, steps=5, rule="two-sided", adapted_gradient=0.5)
        >>> p.alpha, p.bound().gradient <= 0.1
        (1.0, True)

    Source: docs/theory.md, sections 6 and 6.1.
    """
    if case not in CASES:
        raise InputError(f'plan(case={case!r}) must be "finite-sum" or "resampling".')
    epsilon = check_real("plan", "epsilon", epsilon, above=1e-100)
    steps = check_whole("plan", "steps", steps)
    gamma = check_real("plan", "gamma", gamma, above=0)
    if constants.gap is None:
        raise InputError("The gap between the first and the least meta-loss is not known: give Constants(gap=...).")
    least = 0.5 if case == "finite-sum" else 1.0
    if C_beta is not None:
        C_beta = float(check_real("plan", "C_beta", C_beta, above=0))
        if C_beta <= least:
            raise InputError(f"C_beta is {C_beta:g}, with which no size suffices: raise C_beta above {least:g}.")
    if rule not in _RULES:
        raise InputError(f'plan(rule={rule!r}) must be "guaranteed" or "two-sided".')
    if (rule == "two-sided") != (adapted_gradient is not None) or (rule == "guaranteed" and spread is not None):
        raise InputError(
            'plan(rule="two-sided") needs a bound on the adapted gradients, adapted_gradient=, and only that rule takes it and '
            "spread=: give both rule and bound, or neither."
        )
    if adapted_gradient is not None:
        adapted_gradient = float(check_real("plan", "adapted_gradient", adapted_gradient, least=0))
        lam, mu = (constants.L if value is None else value for value in (constants.lam, constants.mu))
        alpha = two_sided_alpha(lam, mu, steps, gamma_plus=gamma_plus, gamma=gamma)
        path = constants.path(alpha, steps)
        # With this floor the outer step varies little, and the mean of its inverse is at most twice what it would be.
        floor = max(path.q * constants.L, jacobian_lipschitz(path, constants.rho) * adapted_gradient)
        known = Adapted.checked("plan", path, constants, adapted_gradient, spread, floor=floor)
    else:
        alpha, known, floor = guaranteed_alpha(constants.L, steps, gamma), None, None
        path = Expansion(alpha, constants.L, steps)
        if path.margin <= 0:
            most = largest_alpha(constants.L, steps) * steps * constants.L
            text = f"plan(gamma={gamma:g}) makes q = (1 + alpha L)^(2N) {path.q:.4g}, and the theorem needs q < 2"
            raise InputError(f"{text}: give gamma= below {most:.4f}.")
    problem = Search(constants, path, case, epsilon, C_beta, known)
    relaxed, chosen, sizes = problem.relaxed()
    problem = replace(problem, C_beta=chosen)
    sizes = {name: int(size) for name, size in problem.whole(sizes).items()}
    gradients, products = problem.calls(sizes)
    names = {name: sizes.get(name) for name in ("iterations", *CASES["resampling"])}
    given: Any = {"gamma": gamma, "alpha": alpha, "C_beta": float(chosen), "relaxed": relaxed, "rule": rule}
    given |= {"gamma_plus": gamma_plus, "adapted_gradient": adapted_gradient, "spread": spread, "floor": floor}
    return Plan(
        constants, epsilon, steps, case, gradients=gradients, hessian_vector_products=products,
        free_C_beta=C_beta is None, **names, **given,
    )  # fmt: skip
