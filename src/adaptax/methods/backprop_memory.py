"""How much backpropagation keeps of an inner step, from shapes alone."""

from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from adaptax.inner_path import TaskPath


def keeps_no_more(path: TaskPath) -> bool:
    r"""Whether backpropagation through a step of gradient descent keeps no more than the iterate, which the recursion keeps.

    It then takes less time too, since the recursion forms $\nabla l(w_j)$ twice. That is so where the parameters are many and
    the intermediate values few: many features or wide layers, and few examples. Nothing is computed.

    Arguments:
        path: the inner path of one task, with at least one step.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> from adaptax.inner_path import TaskPath
        >>> from adaptax.methods.backprop_memory import keeps_no_more
        >>> problem = ax.FiniteSum(lambda net, batch: jnp.mean((net(batch[0]) - batch[1]) ** 2), lambda key: None)
        >>> def light(width, points):
        ...     net, x = ax.models.mlp([width, width, 1], key=jax.random.key(0)), jnp.ones((points, width))
        ...     batch = (x, x[:, :1])
        ...     return keeps_no_more(TaskPath(problem, ax.Inner(5, 0.1), net, ax.Task(batch, batch), None, ax.Samples()))
        >>> light(4, 10), light(400, 10), light(400, 500)
        (False, True, False)
    """

    def keeps(w: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(lambda w: jax.grad(path.loss)(w, path.rest, 0), w)[1])

    try:
        program = jax.make_jaxpr(keeps)(path.split.adapting).jaxpr
    except Exception:  # a loss that has no second derivative, of which the method says so itself
        return False
    # What does not depend on the iterate, such as the task's points, is kept once for all steps.
    kept = {x for x in program.outvars if not isinstance(x, Literal)} - set(program.constvars)
    return _bytes(kept) <= _bytes(program.invars)


def _bytes(values: Any) -> int:
    return sum(int(np.prod(x.aval.shape)) * x.aval.dtype.itemsize for x in values)
