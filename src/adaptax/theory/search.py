"""The planner's search for the sizes with the fewest oracle calls: among real numbers, then among whole ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptax.errors import InputError
from adaptax.theory.adapted import Adapted, adapted_ledger
from adaptax.theory.constants import Constants, Expansion
from adaptax.theory.convergence import Ledger, finite_sum_ledger, resampling_ledger

# The sizes to choose in each case, beside the number of meta-steps.
CASES: dict[str, tuple[str, ...]] = {
    "finite-sum": ("tasks_per_step", "smoothness_tasks"),
    "resampling": (
        "tasks_per_step", "smoothness_tasks", "step_samples", "curvature_samples", "target_samples", "smoothness_samples",
    ),
}  # fmt: skip
# Sizes above this are not varied by one: the number of calls would hardly change.
_COARSE = 1000


@dataclass(frozen=True)
class Search:
    """The planner's problem: the fewest oracle calls for which a theorem gives the accuracy epsilon."""

    c: Constants
    path: Expansion
    case: str
    epsilon: float
    C_beta: float | None
    # Of the adapted gradients, for the theorem that needs it.
    known: Adapted | None = None

    def ledger(self, sizes: dict[str, float], C_beta: float) -> Ledger:
        """The theorem's terms for these sizes."""
        if self.known is not None:
            return adapted_ledger(self.path, self.c, C_beta, sizes, self.known, self.case)
        if self.case == "finite-sum":
            return finite_sum_ledger(self.path, self.c, C_beta, sizes, epsilon=self.epsilon)
        return resampling_ledger(self.path, self.c, C_beta, sizes)

    def calls(self, sizes: Mapping[str, Any]) -> tuple[Any, Any]:
        """The numbers of gradients and of Hessian-vector products."""
        n, k, b = self.path.steps, sizes["iterations"], sizes["tasks_per_step"]
        s, d, t, d_l = (sizes.get(f"{name}_samples", 1) for name in ("step", "curvature", "target", "smoothness"))
        measured = d_l if self.known is None else n * s + d_l
        return k * (b * (n * s + t) + sizes["smoothness_tasks"] * measured), k * b * n * d

    def iterations(self, sizes: dict[str, float], C_beta: float) -> float:
        """The least K for these sizes, not rounded; infinite if no K suffices."""
        ledger = self.ledger(sizes | {"iterations": math.inf}, C_beta)
        left = 1 - ledger.share(self.epsilon)
        if left <= 0 or (self.case == "resampling" and ledger.m2 > C_beta):
            return math.inf
        first = self.ledger(sizes | {"iterations": 1.0}, C_beta).share(self.epsilon) - ledger.share(self.epsilon)
        return max(first / left, 1.0)

    def relaxed(self) -> tuple[float, float, dict[str, float]]:
        """Minimise over real numbers: the number of calls, C_beta and the sizes."""
        from scipy.optimize import minimize

        names = ("iterations", *CASES[self.case])

        def unpack(z) -> tuple[dict[str, float], float]:
            values = np.exp(z).tolist()
            return dict(zip(names, values, strict=False)), (values[-1] if self.C_beta is None else self.C_beta)

        def cost(z):
            return math.log(sum(self.calls(unpack(z)[0])))

        def room(z):
            ledger = self.ledger(*unpack(z))
            room: list[float] = [-math.log(ledger.share(self.epsilon))]
            return room if self.case == "finite-sum" else [*room, math.log(unpack(z)[1] / ledger.m2)]

        z = np.zeros(len(names) + (self.C_beta is None))
        if self.C_beta is None:
            z[-1] = math.log(2.0)
        while min(room(z)) < 0:
            z[: len(names)] += math.log(2.0)
            if z[0] > 200:
                raise InputError(f"No size suffices for epsilon={self.epsilon:g} in floating-point numbers: raise epsilon=.")
        bounds = [(0.0, 230.0)] * len(names) + [(math.log(0.5), 230.0)] * (self.C_beta is None)
        condition = {"type": "ineq", "fun": room}
        found = minimize(cost, z, method="SLSQP", bounds=bounds, constraints=condition, options={"maxiter": 500, "ftol": 1e-12})
        sizes, C_beta = unpack(np.maximum(found.x, [low for low, _ in bounds]))
        if math.isinf(k := self.iterations(sizes, C_beta)):
            # The search may stop where the condition fails by a rounding error.
            sizes = {name: 1.001 * value for name, value in sizes.items()}
            C_beta, k = (C_beta if self.C_beta else 1.001 * C_beta), self.iterations(sizes, C_beta)
        relaxed = min(sum(self.calls(sizes | {"iterations": k})), math.exp(found.fun))
        return relaxed, C_beta, {name: sizes[name] for name in CASES[self.case]}

    def whole(self, sizes: dict[str, float]) -> dict[str, float]:
        """Round sizes up, then change one at a time by one while that makes fewer calls; K is the least for them."""

        def total(sizes):
            k = self.iterations(sizes, self.C_beta or 0.0)
            return math.inf if math.isinf(k) else sum(self.calls(sizes | {"iterations": math.ceil(k)}))

        sizes = {name: float(math.ceil(value - 1e-9)) for name, value in sizes.items()}
        least, moved = total(sizes), True
        while moved:
            moved = False
            for name, by in ((name, by) for name in sizes for by in (-1.0, 1.0) if sizes[name] <= _COARSE):
                if sizes[name] + by >= 1 and (calls := total(sizes | {name: sizes[name] + by})) < least:
                    sizes, least, moved = sizes | {name: sizes[name] + by}, calls, True
        return sizes | {"iterations": float(math.ceil(self.iterations(sizes, self.C_beta or 0.0)))}
