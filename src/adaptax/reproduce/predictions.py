r"""Predicted variances and biases of one product on a quadratic, for one random direction u (docs/theory.md, section 7).

In all formulas t is the trace of H, $s = u^\top Hu$, and X is $E[s^2(u^\top v)^2]$.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def ggs_variance(h: Float[Array, "d d"], v: Float[Array, " d"]) -> Float[Array, ""]:
    r"""The variance of GGS, $\|H\|_F^2\|v\|^2 + \|Hv\|^2$ (section 7, c)."""
    return jnp.sum(h**2) * jnp.vdot(v, v) + jnp.vdot(h @ v, h @ v)


def stein_variance(h: Float[Array, "d d"], v: Float[Array, " d"]) -> Float[Array, ""]:
    r"""The variance of Stein's form (section 7, e).

    It is $\tfrac14(d+5)(t^2+2\|H\|_F^2)\|v\|^2 + (d+4)(t\,v^\top Hv+2\|Hv\|^2) - \|Hv\|^2$.

    Example:
        >>> import jax.numpy as jnp
        >>> float(stein_variance(jnp.eye(1), jnp.ones(1)))  # u in one dimension: the variance of (u^4 - u^2) / 2
        18.5
    """
    d, t, hv = v.size, jnp.trace(h), h @ v
    first = (t**2 + 2 * jnp.sum(h**2)) * jnp.vdot(v, v)
    return (d + 5) / 4 * first + (d + 4) * (t * jnp.vdot(v, hv) + 2 * jnp.vdot(hv, hv)) - jnp.vdot(hv, hv)


def uncorrected_variance(h: Float[Array, "d d"], v: Float[Array, " d"]) -> Float[Array, ""]:
    r"""The variance of the uncorrected form (section 7, e).

    It is $\tfrac14(d+6)X - \|Hv + \tfrac12 t v\|^2$, since $\|u\|^2s^2(u^\top v)^2$ has the mean $(d+6)X$.
    """
    d, t, hv = v.size, jnp.trace(h), h @ v
    x = (t**2 + 2 * jnp.sum(h**2)) * jnp.vdot(v, v) + 4 * t * jnp.vdot(v, hv) + 8 * jnp.vdot(hv, hv)
    mean = hv + t / 2 * v
    return (d + 6) / 4 * x - jnp.vdot(mean, mean)


def uncorrected_bias(h: Float[Array, "d d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
    r"""The bias of the uncorrected form, $\tfrac12 t v$, which no number of directions removes (section 7, b)."""
    return jnp.trace(h) / 2 * v
