"""A function whose matrix products and convolutions round their factors, as accelerators do: TF32 on a machine without one."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

PRODUCTS = ("dot_general", "conv_general_dilated", "same_convolution", "filter_correlation")
# The digits of TF32, after the leading one.
MANTISSA = 10


def rounded(function: Callable, places: tuple[str, ...] = ("forward", "target", "backward")) -> Callable:
    """The same function with the factors of every product rounded, also of those that derivatives hold.

    Arguments:
        function: a function of pytrees, which may hold derivatives and loops.
        places: where to round: in loops that go forward, in those that go backward, outside of loops ("target").
    """

    def run(*arguments):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves = _run(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), "target", places)
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return run


def _run(jaxpr: Jaxpr, consts: list, arguments: list, place: str, places: tuple[str, ...]) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(x):
        return x.val if isinstance(x, Literal) else values[x]

    for step in jaxpr.eqns:
        name, given, params = step.primitive.name, [read(x) for x in step.invars], step.params
        if name == "scan":
            found = _scan(params, given, place, places)
        elif name in ("while", "cond"):
            if _holds(params):
                raise ValueError(f"{name} holds products that would not be rounded: write the loss without it.")
            found = step.primitive.bind(*given, **params)
        elif (inner := _called(params)) is not None:
            found = _run(inner.jaxpr, inner.consts, given, place, places)
        else:
            if name in PRODUCTS and place in places:
                given = [lax.reduce_precision(x, 8, MANTISSA) for x in given]
            found = step.primitive.bind(*given, **params)
        values.update(zip(step.outvars, found if step.primitive.multiple_results else [found], strict=True))
    return [read(x) for x in jaxpr.outvars]


def _scan(params: dict, given: list, place: str, places: tuple[str, ...]) -> list[Any]:
    body, constants, carried = params["jaxpr"], params["num_consts"], params["num_carry"]
    where = ("backward" if params["reverse"] else "forward") if place == "target" else place

    def step(carry, xs):
        out = _run(body.jaxpr, body.consts, [*given[:constants], *carry, *xs], where, places)
        return out[:carried], out[carried:]

    first, xs = given[constants : constants + carried], given[constants + carried :]
    carry, ys = lax.scan(step, first, xs, length=params["length"], reverse=params["reverse"])
    return [*carry, *ys]


def _called(params: dict) -> ClosedJaxpr | None:
    """The program that an operation calls, such as that of `jax.jit` or of a custom derivative."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if isinstance(inner := params.get(name), ClosedJaxpr):
            return inner
        if isinstance(inner, Jaxpr):
            return ClosedJaxpr(inner, [])
    return None


def _holds(params: dict) -> bool:
    return any(name in str(params) for name in PRODUCTS)
