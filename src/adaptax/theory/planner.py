r"""The theorems inverted: how many meta-steps, tasks and samples suffice for a given accuracy, with the fewest oracle calls."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from adaptax.errors import InputError
from adaptax.theory.constants import Constants, Expansion, check_number, check_whole, guaranteed_alpha
from adaptax.theory.convergence import Bound, finite_sum, resampling
from adaptax.theory.search import CASES, Search

_MEANING = {
    "alpha": ("α", "inner step size, γ/(NL)"),
    "C_beta": ("C_β", "of the outer step β = 1/(C_β L̂)"),
    "iterations": ("K", "meta-steps"),
    "tasks_per_step": ("B", "tasks of a meta-step"),
    "step_samples": ("S", "samples of an inner step"),
    "curvature_samples": ("D", "samples of a Hessian factor"),
    "target_samples": ("T", "samples of the last gradient"),
    "smoothness_tasks": ("B'", "tasks that L̂ is measured on, apart from those of the meta-step"),
    "smoothness_samples": ("D_L", "samples of each gradient in L̂"),
    "gradients": ("", "gradients in all"),
    "hessian_vector_products": ("", "Hessian-vector products in all"),
}
_CASE_OF_GRADIENTS = {"finite-sum": "of a whole support or target set", "resampling": "of one sample"}


@dataclass(frozen=True)
class Plan:
    """Sizes that suffice, by the convergence theorem, for E||∇L(w_ζ)|| ≤ epsilon; made by `plan`.

    Worst-case counts: they say how cost scales, not what a run will need. Sizes of samples are None in the finite-sum
    case, where gradients are those of whole sets.
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

    @property
    def oracle_calls(self) -> int:
        """Gradients and Hessian-vector products together; at least `relaxed`, what sizes that need not be whole would take."""
        return self.gradients + self.hessian_vector_products

    def bound(self) -> Bound:
        """What the theorem says of a run of these sizes."""
        sizes = {name: getattr(self, name) for name in ("iterations", *CASES[self.case])}
        theorem = finite_sum if self.case == "finite-sum" else resampling
        return theorem(self.constants, self.alpha, self.steps, C_beta=self.C_beta, **sizes)

    def rows(self) -> list[tuple[str, str, str]]:
        """Symbol, value and meaning of every quantity, for a table."""
        rows = []
        for name, (symbol, meaning) in _MEANING.items():
            if (value := getattr(self, name)) is not None:
                text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
                of = f", {_CASE_OF_GRADIENTS[self.case]}" if name == "gradients" else ""
                rows.append((symbol or name.replace("_", " "), text, meaning + of))
        return rows

    def explain(self) -> str:
        """Why these numbers: the constants of the path, what each part of the bound uses up, and what it is not."""
        bound, path = self.bound(), Expansion(self.alpha, self.constants.L, self.steps)
        allowed = self.epsilon**2 / (bound.a + bound.c * self.epsilon)
        lines = [
            f"Case: {self.case}; N = {self.steps} inner steps; target: E||∇L(w)|| ≤ {self.epsilon:g} at a random iterate.",
            f"α = γ/(NL) = {self.alpha:.4g} with γ = {self.gamma:g}: q = (1 + αL)^(2N) = {path.q:.4g}, and 2 is too much.",
            f"β = 1/(C_β L̂) with C_β = {self.C_beta:.4g}; the mean of L̂ is at most {bound.a:.4g} + {bound.c:.4g} ||∇L||.",
            f"κ = {bound.kappa:.4g} of the descent is left by noise.",
            f"R = {bound.R:.4g} of the {allowed:.4g} that ε allows: {bound.start / bound.R:.0%} from the distance at the start "
            f"(less with more meta-steps), {bound.noise / bound.R:.0%} from sampling (less with larger batches)."
            if bound.R > 0
            else "R = 0: there is nothing left to do.",
            f"So E||∇L(w)|| ≤ {bound.gradient:.4g} after {self.iterations:,} meta-steps: {self.oracle_calls:,} oracle calls, "
            f"{self.oracle_calls / max(self.relaxed, 1):.3f} times what sizes that need not be whole would take.",
            "This is a worst case over all losses with these constants: it says how cost scales, not what a run will need. "
            "Constants that were measured are lower estimates, and networks with ReLU have no finite rho: there it is a "
            "diagnostic, not a guarantee. Edge, Adam and other outer optimisers are outside the theorem.",
        ]
        return "\n".join(lines)

    def exponents(self, over: str = "epsilon", halvings: int = 6) -> dict[str, float]:
        r"""How the plan scales: slopes of log-log fits to its own output.

        Arguments:
            over: "epsilon": exponents of $1/\varepsilon$, halving it; "steps": exponents of N, doubling it.
            halvings: how many times (default 6).

        Returns: by field, the fitted exponent; of the larger half of the points, where the leading terms rule.

        Errors: `InputError` for another name.

        Example:
            >>> from adaptax import theory
            >>> c = theory.Constants(L=1.0, rho=0.5, sigma=0.2, gap=1.0)
            >>> {k: round(v, 1) for k, v in theory.plan(c, epsilon=0.1, steps=5).exponents().items() if k == "iterations"}
            {'iterations': 2.0}
        """
        if over not in ("epsilon", "steps"):
            raise InputError(f'exponents(over={over!r}) must be "epsilon" or "steps".')
        plans = []
        for k in range(halvings + 1):
            epsilon, steps = (self.epsilon / 2**k, self.steps) if over == "epsilon" else (self.epsilon, self.steps * 2**k)
            C_beta = None if self.free_C_beta else self.C_beta
            plans.append(plan(self.constants, epsilon=epsilon, steps=steps, case=self.case, gamma=self.gamma, C_beta=C_beta))
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
) -> Plan:
    r"""The cheapest sizes for which the theorem promises $E\|\nabla\mathcal L(w_\zeta)\| \le \varepsilon$.

    Least is the number of gradients and Hessian-vector products together: finite-sum $K(B(2N+1) + B')$, resampling
    $K(B(NS + T + ND) + B'D_L)$. In the logarithms of the sizes this is a convex problem (a geometric programme), so that
    the minimum found before rounding, `relaxed`, is the global one; sizes are then made whole.

    Arguments:
        constants: L, rho, sigma, gap, and what the case needs (sigma_g, sigma_H or b).
        epsilon: $\varepsilon$, positive [loss / w].
        steps: N, at least 1.
        case: "finite-sum" or "resampling".
        gamma: of $\alpha = \gamma/(NL)$; at most $\frac12\ln2$ for every N (default 1/8).
        C_beta: of $\beta_k = 1/(C_\beta\hat L_k)$ (default 2); None: chosen with the sizes.

    Returns: a `Plan`: `alpha`, `C_beta`, sizes, oracle counts, `explain()`, `exponents()`, `bound()`.

    Errors: `InputError` for numbers out of range, an unknown gap, q at least 2, or a C_beta with which no size suffices.

    Example:
        >>> from adaptax import theory
        >>> c = theory.Constants(L=1.0, rho=0.5, sigma=0.2, gap=1.0)
        >>> p = theory.plan(c, epsilon=0.1, steps=5)
        >>> p.alpha, p.bound().gradient <= 0.1
        (0.025, True)

    Source: docs/theory.md, section 6.
    """
    if case not in CASES:
        raise InputError(f'plan(case={case!r}) must be "finite-sum" or "resampling".')
    check_number("plan", "epsilon", epsilon, above=1e-100)
    check_whole("plan", "steps", steps, 1)
    if constants.gap is None:
        raise InputError("The gap between the first and the least meta-loss is not known: give Constants(gap=...).")
    least = 0.5 if case == "finite-sum" else 1.0
    if C_beta is not None:
        check_number("plan", "C_beta", C_beta, above=0)
        if C_beta <= least:
            raise InputError(f"C_beta is {C_beta:g}, with which no size suffices: raise C_beta above {least:g}.")
    alpha = guaranteed_alpha(constants.L, steps, gamma)
    problem = Search(constants, Expansion(alpha, constants.L, steps).contracted(), case, epsilon, C_beta)
    relaxed, chosen, sizes = problem.relaxed()
    problem = replace(problem, C_beta=chosen)
    sizes = {name: int(size) for name, size in problem.whole(sizes).items()}
    gradients, products = problem.calls(sizes)
    names = {name: sizes.get(name) for name in ("iterations", *CASES["resampling"])}
    known: Any = {"gamma": float(gamma), "alpha": alpha, "C_beta": float(chosen), "relaxed": relaxed}
    return Plan(
        constants, float(epsilon), int(steps), case, gradients=gradients, hessian_vector_products=products,
        free_C_beta=C_beta is None, **names, **known,
    )  # fmt: skip
