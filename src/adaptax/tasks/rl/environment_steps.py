"""The number of environment steps that a meta-gradient takes."""

from typing import Any

from adaptax._checks import check_whole
from adaptax.errors import InputError
from adaptax.problem import Resampling
from adaptax.tasks.rl.environment import Rollouts


def environment_steps(method: Any, problem: Resampling, tasks: int = 1) -> int:
    r"""Environment steps of one meta-gradient, $BH\,(NSc_g + NDc_H + Tc_g)$, if no episode ends early.

    B tasks take N inner steps each; S, D and T are the episodes of an inner step, a Hessian factor and the last gradient
    (`ax.Samples`), and H is the horizon.

    Every loss, gradient or Hessian-vector product at new parameters or with new samples takes a batch of episodes. $c_g$ and
    $c_H$ are the numbers of batches that a gradient and a product take: 1 and 1 by differentiation, 2 for a product by
    finite differences. The count leaves out episodes that are drawn again, with the same key at the same parameters, to save
    memory, and those of the measurement of a step size.

    Arguments:
        method: an `ax.MetaGradient`.
        problem: one made by `ax.tasks.rl.problem`, `navigation`, `cheetah`, `ant` or `gymnasium_family`.
        tasks: B, the number of tasks of a meta-step (default 1).

    Returns: a Python integer.

    Errors: `InputError` for another method or problem, or a number of tasks that is not a positive whole number.

    Example:
        >>> import adaptax as ax
        >>> method = ax.MetaGradient(ax.Inner(1, 0.1), samples=ax.Samples(20, 20, 20))
        >>> ax.tasks.rl.environment_steps(method, ax.tasks.rl.navigation(), tasks=20)
        120000

    Source: docs/theory.md, sections 2.1 and 7.
    """
    if not all(hasattr(method, name) for name in ("inner", "samples", "curvature", "independent_curvature", "multi_step")):
        raise InputError(f"environment_steps counts the steps of ax.MetaGradient, not of {type(method).__name__}: pass one.")
    draw = getattr(problem, "draw", None)
    if not isinstance(draw, Rollouts):
        raise InputError("environment_steps needs a problem made by ax.tasks.rl.problem, such as ax.tasks.rl.navigation().")
    tasks = check_whole("environment_steps", "tasks", tasks)
    steps, samples = method.inner.steps, method.samples
    gradient = method.inner.gradients.cost()
    product = method.curvature.cost(gradient)
    fresh = samples.curvature if method.independent_curvature else samples.step
    # A product by differentiation alone needs no new episodes where it takes the samples of the step.
    reused = not method.independent_curvature and product.hessian_vector_products == sum(product)
    targets = steps if method.multi_step is not None and steps else 1
    episodes = sum(gradient) * (steps * samples.step + targets * samples.target)
    episodes += 0 if reused else sum(product) * steps * fresh
    return tasks * draw.environment.horizon * episodes
