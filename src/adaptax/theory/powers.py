r"""Powers and geometric sums near 1, without cancellation, for numbers and arrays, traced ones too. It imports no JAX."""

import sys
from numbers import Real
from typing import Any

import numpy as np


def geometric(rate: Any, steps: int) -> Any:
    r"""$\sum_{j<n}(1+x)^j$ for $x \ge -1$.

    It is computed by doubling: with $S_n$ the sum, $S_{m+n} = S_m + (1+xS_m)S_n$, and $1 + xS_m = (1+x)^m$ is not negative.

    Arguments:
        rate: x.
        steps: n, a whole number of at least 0.

    Example:
        >>> geometric(1.0, 3), geometric(0.0, 5), geometric(-0.5, 2)
        (7.0, 5.0, 1.5)
    """
    total, block = 0.0, 1.0
    while steps:
        if steps & 1:
            total = total + block * (1 + rate * total)
        block, steps = block * (2 + rate * block), steps >> 1
    return total


def excess(rate: Any, steps: int) -> Any:
    r"""$(1 + x)^n - 1$ for $x \ge -1$.

    Arguments:
        rate: x.
        steps: n, a whole number of at least 0.

    Example:
        >>> excess(1e-18, 3) / 1e-18, excess(1.0, 10)
        (3.0, 1023.0)
    """
    return rate * geometric(rate, steps)


def power(rate: Any, steps: int) -> Any:
    r"""$(1 + x)^n$ for $x \ge -1$, with a relative error of about $n|x|$ roundings also where it is tiny.

    Arguments:
        rate: x.
        steps: n, a whole number of at least 0.

    Example:
        >>> power(-0.5, 3), power(0.5, 2)
        (0.125, 2.25)
    """
    total, block, over = 1.0, 1 + rate, rate
    while steps:
        if steps & 1:
            total = total * block
        # 1 + ((1+x)^m - 1) is exact to one rounding until the power is small; from there on squares keep its digits.
        over = over * (2 + over)
        block, steps = where(over > -0.5, 1 + over, block * block), steps >> 1
    return total


def maximum(one: Any, other: Any) -> Any:
    """The larger of two numbers, or of each pair of entries of arrays."""
    return max(one, other) if isinstance(one, Real) and isinstance(other, Real) else _library(one, other).maximum(one, other)


def where(condition: Any, one: Any, other: Any) -> Any:
    """`one` where the condition holds, else `other`."""
    if isinstance(condition, bool | np.bool_):
        return one if condition else other
    return _library(condition, one, other).where(condition, one, other)


def _library(*values: Any) -> Any:
    """JAX's functions for JAX's arrays, NumPy's for all else."""
    jax = sys.modules.get("jax")
    return jax.numpy if jax is not None and any(isinstance(value, jax.Array) for value in values) else np
