"""Step sizes that nobody tunes: measured once, learned from there, and held below the edge of stability."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax._checks import check_real, check_true_or_false
from adaptax.stepsize.learned import LearnedRates, check_per, zeros
from adaptax.stepsize.rules import AbstractRule


class Auto(AbstractRule):
    r"""The default step sizes: measured once, learned from there, and held below the edge of stability.

    - **Measured**: at first $\alpha = \gamma/\hat\lambda$, with the largest curvature along the inner paths of a few tasks; in
      the resampling case $\gamma/(N\hat\lambda)$, so that the noise of N steps does not add up.
    - **Learned**: training moves the logarithms of the step sizes together with the parameters, by the exact derivative that
      `Learned` has, with the same outer optimiser. Every parameter has its own; in the resampling case every array, since the
      derivative by one parameter's own is mostly noise there, and for N = 1 alone: for more steps they grow to where the
      policies learn worse (docs/benchmarks.md, navigation), and the measured one is held.
    - **Held below the edge**: every few meta-steps the curvature in the norm of the step sizes,
      $\lambda_A = \|A^{1/2}\nabla^2l(w_j)A^{1/2}\|$, is measured along the paths that they walk. Where it is beyond the edge,
      the step sizes that make it up are lowered, by the smallest change of their logarithms that brings it back. A step
      multiplies a distance along a direction of curvature $\lambda_A > 2$ by $\lambda_A - 1$, so the edge is $1 + c^{1/N}$,
      where N steps multiply it by c = `growth`: 11 for N = 3, 3 for N = 10, 2.07 for N = 100. After a meta-step that had to
      be skipped it is measured at the next one; all step sizes are halved if a path is not finite.

    A rule that follows the curvature down, as `Edge`, lets it grow: the meta-gradient takes the step size as a constant, so
    nothing pays for curvature, and N steps move ever less. Step sizes that stay let the meta-gradient keep the curvature.

    In `ax.train` and `ax.make_step` the state's parameters stay the user's own, and `state.inner` holds the learned step sizes.
    A method that gives no derivative by step sizes (`ax.Reptile`, `ax.Implicit`) keeps the measured one, held below the edge;
    so does training with `learn=False`. `ax.adapt`, `ax.evaluate` and a method called by itself take the measured one.

    Arguments:
        gamma: the safety factor of the first value (default 1.0).
        learn: whether training learns from there (default None: for `ax.FiniteSum` and `ax.Sequential`, and for
            `ax.Resampling` with N = 1).
        per: the parameters that share a step size: "parameter" (each has its own, as many numbers as adapt), "leaf" (each
            array), "scalar" (default None: "parameter" for `ax.FiniteSum`, "leaf" for `ax.Resampling`).
        per_step: whether each inner step has its own (default False).
        most: the largest multiple of the first value that training may reach, at least 1 (default 100): parameters that hardly
            matter on most tasks would else get step sizes that break down on the others.
        growth: c, the most that N steps may multiply a distance by along one direction (default 1000: the largest curvature
            of many points and tasks is measured, and a path is beyond 2 at few of them).
        tasks: how many tasks are measured on (default 8).
        every, iterations, differences: as in `Edge`.

    Errors: `InputError` for values out of range.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> float(ax.stepsize.Auto().alpha(jnp.array(4.0), steps=10))
        0.25

    Source: docs/theory.md, sections 1 and 5; Li et al. (2017), Meta-SGD, arXiv 1707.09835.
    """

    gamma: float = 1.0
    learn: bool | None = eqx.field(static=True, default=None, kw_only=True)
    per: str | None = eqx.field(static=True, default=None, kw_only=True)
    per_step: bool = eqx.field(static=True, default=False, kw_only=True)
    most: float = eqx.field(static=True, default=100.0, kw_only=True)
    tasks: int = eqx.field(static=True, default=8, kw_only=True)
    growth: float = eqx.field(static=True, default=1000.0, kw_only=True)
    every: int = eqx.field(static=True, default=10, kw_only=True)
    iterations: int = eqx.field(static=True, default=3, kw_only=True)
    differences: bool = eqx.field(static=True, default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.learn is not None:
            self.learn = check_true_or_false("Auto", "learn", self.learn)
        self.per_step = check_true_or_false("Auto", "per_step", self.per_step)
        if self.per is not None:
            check_per("Auto", self.per)
        self.growth = check_real("Auto", "growth", self.growth, above=0)
        self.most = check_real("Auto", "most", self.most, least=1)

    def alpha(self, curvature, steps):
        return self.gamma / jnp.where(curvature > 0, curvature, 1)

    def first_of(self, estimate, steps, stochastic):
        return self.alpha_of(estimate, steps) / (max(steps, 1) if stochastic else 1)

    def learns(self, steps: int, stochastic: bool) -> bool:
        """Whether training learns from the measured value."""
        return (steps == 1 or not stochastic) if self.learn is None else self.learn

    def edge(self, steps: int) -> float:
        """The largest curvature in the norm of the step sizes for N = `steps`."""
        return 1 + self.growth ** (1 / max(steps, 1))

    def start(self, alpha: Array, adapting: PyTree, steps: int, stochastic: bool = False) -> LearnedRates:
        """The step sizes that training learns, all equal to the measured one at first; `stochastic` in the resampling case."""
        free = zeros(adapting, self.per or ("leaf" if stochastic else "parameter"), max(steps, 1) if self.per_step else None)
        return LearnedRates(alpha, free, self.per_step, most=self.most)
