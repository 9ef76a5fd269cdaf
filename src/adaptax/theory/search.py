"""The least number of oracle calls with which a theorem keeps its promise: over real sizes, then over whole ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptax.errors import InputError
from adaptax.theory.constants import Constants, Expansion
from adaptax.theory.convergence import Ledger, finite_sum_ledger, resampling_ledger

# The sizes that a case chooses, beside the number of meta-steps.
CASES: dict[str, tuple[str, ...]] = {
    "finite-sum": ("tasks_per_step", "smoothness_tasks"),
    "resampling": (
        "tasks_per_step", "smoothness_tasks", "step_samples", "curvature_samples", "target_samples", "smoothness_samples",
    ),
}  # fmt: skip
# Above this, a size of one more or less changes nothing worth looking for.
_COARSE = 1000


@dataclass(frozen=True)
class Search:
    """What is minimised, and under which condition."""

    c: Constants
    path: Expansion
    case: str
    epsilon: float
    C_beta: float | None

    def ledger(self, sizes: dict[str, float], C_beta: float) -> Ledger:
        if self.case == "finite-sum":
            return finite_sum_ledger(self.path, self.c, C_beta, sizes, epsilon=self.epsilon)
        return resampling_ledger(self.path, self.c, C_beta, sizes)

    def calls(self, sizes: Mapping[str, Any]) -> tuple[Any, Any]:
        """Gradients and Hessian-vector products."""
        n, k, b = self.path.steps, sizes["iterations"], sizes["tasks_per_step"]
        s, d, t, d_l = (sizes.get(f"{name}_samples", 1) for name in ("step", "curvature", "target", "smoothness"))
        return k * (b * (n * s + t) + sizes["smoothness_tasks"] * d_l), k * b * n * d

    def iterations(self, sizes: dict[str, float], C_beta: float) -> float:
        """The least K (not made whole) for these sizes; infinite if there is none."""
        ledger = self.ledger(sizes | {"iterations": math.inf}, C_beta)
        left = 1 - ledger.share(self.epsilon)
        if left <= 0 or (self.case == "resampling" and ledger.m2 > C_beta):
            return math.inf
        first = self.ledger(sizes | {"iterations": 1.0}, C_beta).share(self.epsilon) - ledger.share(self.epsilon)
        return max(first / left, 1.0)

    def relaxed(self) -> tuple[float, float, dict[str, float]]:
        """The least number of calls, C_beta and the sizes, none of which need be whole."""
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
                raise InputError("No size suffices for this epsilon in floating-point numbers: raise epsilon.")
        bounds = [(0.0, 230.0)] * len(names) + [(math.log(0.5), 230.0)] * (self.C_beta is None)
        condition = {"type": "ineq", "fun": room}
        found = minimize(cost, z, method="SLSQP", bounds=bounds, constraints=condition, options={"maxiter": 500, "ftol": 1e-12})
        sizes, C_beta = unpack(np.maximum(found.x, [low for low, _ in bounds]))
        if math.isinf(k := self.iterations(sizes, C_beta)):
            # The search may stop a rounding error outside.
            sizes = {name: 1.001 * value for name, value in sizes.items()}
            C_beta, k = (C_beta if self.C_beta else 1.001 * C_beta), self.iterations(sizes, C_beta)
        relaxed = min(sum(self.calls(sizes | {"iterations": k})), math.exp(found.fun))
        return relaxed, C_beta, {name: sizes[name] for name in CASES[self.case]}

    def whole(self, sizes: dict[str, float]) -> dict[str, float]:
        """Sizes made whole, and the least K for them: one at a time, while that makes fewer calls."""

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
