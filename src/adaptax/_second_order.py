"""Derivatives of gradients: forward over reverse, or reverse over reverse where a loss refuses forward mode."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, PyTree

from adaptax._tree import first_line
from adaptax.errors import InputError

# JAX stages this operation where forward mode meets a `jax.custom_vjp`, and refuses it when the program is compiled.
_REFUSED = "custom_lin"


def hessian_product(
    loss: Callable[[PyTree, PyTree], Array], w: PyTree, rest: PyTree, v: PyTree
) -> tuple[tuple[PyTree, PyTree], tuple[PyTree, PyTree]]:
    r"""The gradient of `loss(w, rest)`, and $\nabla\nabla_w l\,v$, each by (w, rest).

    Forward over reverse is the derivative of the gradient along v. Reverse over reverse is the derivative of
    $v^\top\nabla_w l$, which is the same as the Hessian is symmetric, and goes through a `jax.custom_vjp`.

    Errors: `InputError` where the loss has no second derivative.

    Example:
        >>> import jax.numpy as jnp
        >>> from adaptax._second_order import hessian_product
        >>> loss = lambda w, rest: jnp.sum(w**4) / 12
        >>> gradient, (product, _) = hessian_product(loss, jnp.array([1.0, 2.0]), None, jnp.ones(2))
        >>> product
        Array([1., 4.], dtype=float32)
    """

    def both(w, rest):
        return jax.grad(loss, argnums=(0, 1))(w, rest)

    def forward(w, v):
        return jax.jvp(lambda w: both(w, rest), (w,), (v,))

    if _goes_through(forward, w, v):
        return forward(w, v)
    with differentiated_twice():
        g, pull, g_rest = jax.vjp(both, w, rest, has_aux=True)
        return (g, g_rest), pull(v)


def linearized_gradient(loss: Callable[[PyTree], Array], w: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    r"""The gradient at w, and the map $v \mapsto \nabla^2 l(w)\,v$ for many products."""
    gradient = jax.grad(loss)
    if _goes_through(lambda w, v: jax.jvp(gradient, (w,), (v,)), w, w):
        return jax.linearize(gradient, w)
    with differentiated_twice():
        g, pull = jax.vjp(gradient, w)
    return g, lambda v: pull(v)[0]


def push_forward(function: Callable[[PyTree], PyTree], x: PyTree, v: PyTree) -> tuple[PyTree, PyTree]:
    """The value of a function that holds gradients, and its derivative along v."""

    def forward(x, v):
        return jax.jvp(function, (x,), (v,))

    if _goes_through(forward, x, v):
        return forward(x, v)
    with differentiated_twice():
        out, pull = jax.vjp(function, x)
        # The transpose of the transpose: the pull-back is linear.
        return out, jax.vjp(lambda u: pull(u)[0], optax.tree.zeros_like(out))[1](v)[0]


@contextlib.contextmanager
def differentiated_twice() -> Iterator[None]:
    """Turn what JAX says of a loss that has no second derivative into a sentence with the remedy."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        loops = "Reverse-mode differentiation does not work" in str(error)
        first = "make its loops jax.lax.scan, or a solver's adjoint diffrax.DirectAdjoint(); or " if loops else ""
        raise InputError(
            f"The loss cannot be differentiated twice ({first_line(error)}): {first}use ax.MetaGradient(inner, curvature) with "
            "ax.curvature.FiniteDifference() or FirstOrder(), and differences=True in a step-size rule."
        ) from error


def _goes_through(function: Callable, *args: PyTree) -> bool:
    """Whether forward mode goes through a function, which is only traced here."""
    try:
        return not _holds(jax.make_jaxpr(function)(*args).jaxpr)
    except InputError:
        raise
    except Exception:
        return False


def _holds(jaxpr: Jaxpr) -> bool:
    """Whether a program, or one inside it, holds the operation that is refused."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == _REFUSED:
            return True
        inner: list[Any] = [p for x in equation.params.values() for p in (x if isinstance(x, tuple | list) else [x])]
        if any(_holds(p.jaxpr if isinstance(p, ClosedJaxpr) else p) for p in inner if isinstance(p, ClosedJaxpr | Jaxpr)):
            return True
    return False
