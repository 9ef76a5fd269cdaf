"""Loop-invariant hoisting: the part of an inner loss that no inner step changes is computed once, before the loop.

Where only the head adapts, that part is the features: N steps then take one forward and one backward pass of the network.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array, PyTree

from adaptax._recursion import StepLoss


class Hoisted(NamedTuple):
    """An inner loss whose loop-invariant part has been computed.

    Arguments:
        loss: `loss(w, known, j)`, the part that is left; `known` takes the place of the rest of the variables.
        known: the floating-point results of the loop-invariant part.
        pull_back: takes the derivative by `known` to that by the rest.
    """

    loss: StepLoss
    known: list[Array]
    pull_back: Callable[[list[Array]], PyTree]


def hoist(loss: StepLoss, w: PyTree, rest: PyTree) -> Hoisted:
    """Compute the part of the loss that depends neither on w nor on j.

    The loss is traced, and its outermost operations are sorted: an operation that w or j reaches stays in the loop, any other
    is done now. The results that cross over are kept; constants are made anew where they are used.
    """
    (w_leaves, w_tree), (rest_leaves, rest_tree) = jax.tree.flatten(w), jax.tree.flatten(rest)

    def flat(w_leaves, rest_leaves, j):
        return loss(jax.tree.unflatten(w_tree, w_leaves), jax.tree.unflatten(rest_tree, rest_leaves), j)

    traced = jax.make_jaxpr(flat)(w_leaves, rest_leaves, jnp.zeros((), int))
    jaxpr = traced.jaxpr
    of_w, of_rest = jaxpr.invars[: len(w_leaves)], jaxpr.invars[len(w_leaves) : -1]
    of_j, out = jaxpr.invars[-1], jaxpr.outvars
    late, free, early_steps, late_steps = {*of_w, of_j}, set(), [], []
    for step in jaxpr.eqns:
        taken = [x for x in step.invars if not isinstance(x, Literal)]
        if any(x in late for x in taken):
            late.update(step.outvars)
            late_steps.append(step)
        elif all(x in free for x in taken):
            free.update(step.outvars)
            early_steps.append(step)
            late_steps.append(step)
        else:
            early_steps.append(step)
    wanted = [x for step in late_steps for x in step.invars] + list(out)
    crossing = list(dict.fromkeys(x for x in wanted if not isinstance(x, Literal) and x not in late and x not in free))

    real = [jnp.issubdtype(x.aval.dtype, jnp.floating) for x in crossing]
    first = _program(jaxpr, [*jaxpr.constvars, *of_rest], crossing, early_steps)
    second = _program(jaxpr, [*of_w, of_j, *crossing], out, late_steps)

    def early(rest_leaves):
        found = first(*traced.consts, *rest_leaves)
        return tuple([x for x, kind in zip(found, real, strict=True) if kind is wanted] for wanted in (True, False))

    known, pull, others = jax.vjp(early, rest_leaves, has_aux=True)  # type: ignore[call-overload]

    def remainder(w, known, j):
        floats, fixed = iter(known), iter(others)
        kept = [next(floats if kind else fixed) for kind in real]
        return second(*jax.tree.leaves(w), jnp.asarray(j, int), *kept)[0]

    dtypes = [x.dtype for x in known]

    def wide_remainder(w, wide, j):
        return remainder(w, _cast(wide, dtypes), j)

    # Derivatives by what is known are summed over the steps, in single precision where the loss has less.
    wide = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in known]
    return Hoisted(wide_remainder, wide, lambda cotangent: jax.tree.unflatten(rest_tree, pull(_cast(cotangent, dtypes))[0]))


def _cast(leaves: list[Array], dtypes: list) -> list[Array]:
    return [x.astype(dtype) for x, dtype in zip(leaves, dtypes, strict=True)]


def _program(jaxpr: Jaxpr, inputs, outputs, steps) -> Callable[..., list[Array]]:
    return jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(constvars=[], invars=inputs, outvars=outputs, eqns=steps), []))
