"""Products of small matrices as sums of outer products, which a CPU's compiler fuses with what surrounds them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

# Up to so many terms an outer product is faster than a call of a matrix kernel: any, and where the result is small.
_TERMS, _TERMS_SMALL, _SMALL = 5, 16, 64 * 64


def unrolled(program: ClosedJaxpr) -> ClosedJaxpr:
    r"""The same program with $\sum_k x_{mk}y_{kn}$ written out over k in its loops, for few k (points of a task).

    The gradient by a layer's weights is such a product. Under `vmap` the compiler calls a kernel for each task, which takes
    longer than the arithmetic (10 points, 40 x 40 weights, 25 tasks: 31 µs, and 7 µs as one fused loop). Results are the same
    up to the order of sums. What is outside loops is formed once, and left as it is.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from adaptax._small_products import unrolled
        >>> step = lambda w, x: (w + x.T @ x, None)
        >>> program = jax.make_jaxpr(lambda xs: jax.lax.scan(step, jnp.eye(8), xs))(jnp.ones((5, 3, 8)))
        >>> "dot_general" in str(program), "dot_general" in str(unrolled(program))
        (True, False)
    """
    return _rewritten(program, in_loop=False)


def _rewritten(program: ClosedJaxpr, in_loop: bool) -> ClosedJaxpr:
    jaxpr = program.jaxpr
    return ClosedJaxpr(jaxpr.replace(eqns=[_step(step, in_loop) for step in jaxpr.eqns]), program.consts)


def _step(step: JaxprEqn, in_loop: bool) -> JaxprEqn:
    name = step.primitive.name
    if name == "dot_general":
        return _product(step) if in_loop and _gains(step) else step
    if name not in ("scan", "while", "cond", "jit", "pjit"):
        return step
    in_loop = in_loop or name in ("scan", "while")

    def inside(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(inside, value)) if any(isinstance(part, ClosedJaxpr) for part in value) else value
        return _rewritten(value, in_loop) if isinstance(value, ClosedJaxpr) else value

    return step.replace(params={key: inside(value) for key, value in step.params.items()})


def _gains(step: JaxprEqn) -> bool:
    x, y, out = map(_shape, (*step.invars, *step.outvars))
    (of_x, of_y), (batch, _) = step.params["dimension_numbers"]
    plain = x.ndim == y.ndim == 2 and len(of_x) == 1 and not batch
    if not plain or out.dtype not in (jnp.float32, jnp.float64) or not x.dtype == y.dtype == out.dtype:
        return False
    terms, small = x.shape[of_x[0]], out.size <= _SMALL
    if terms < 2:
        return False
    # With the terms along y's last axis a row of the result is read with strides.
    rows = of_y[0] == 0
    return (terms <= _TERMS and (rows or small)) or (terms <= _TERMS_SMALL and rows and small)


def _product(step: JaxprEqn) -> JaxprEqn:
    """The product as one call of a function that sums outer products."""
    (of_x,), (of_y,) = step.params["dimension_numbers"][0]

    def outer(x, y, k):
        left, right = (jax.lax.index_in_dim(z, k, axis, keepdims=False) for z, axis in ((x, of_x), (y, of_y)))
        return left[:, None] * right[None, :]

    def product(x, y):
        # Else the operands might be formed once more for every entry of the result.
        x, y = jax.lax.optimization_barrier((x, y))
        total = outer(x, y, 0)
        for k in range(1, x.shape[of_x]):
            total = total + outer(x, y, k)
        return total

    (call,) = jax.make_jaxpr(jax.jit(product))(*map(_shape, step.invars)).jaxpr.eqns
    return call.replace(invars=step.invars, outvars=step.outvars, source_info=step.source_info)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype)
