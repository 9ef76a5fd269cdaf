"""How a primitive runs outside a compiled program."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive


def compiled(primitive: Primitive, *options: str) -> Callable[..., Any]:
    """A primitive as a program of its own, also under `jax.disable_jit`, where it has no other form.

    Arguments:
        primitive: the primitive.
        options: the names of its parameters.
    """
    program = jax.jit(primitive.bind, static_argnames=options)

    def run(*operands, **given):
        with jax.disable_jit(False):
            return program(*operands, **given)

    return run
