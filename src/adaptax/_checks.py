"""Checks of single arguments. NumPy's numbers and arrays of shape () count as numbers; booleans do not. Imports no JAX."""

import contextlib
import math
import operator
import sys
from numbers import Real
from typing import Any

from adaptax.errors import InputError


def check_whole(where: str, name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number within bounds, as a Python integer.

    Arguments:
        where: the function or class that takes the argument, for the message; "" for none.
        name: of the argument.
        value: the argument.
        least, most: the bounds, both included (default: at least 1).

    Errors: `InputError` for anything else.

    Example:
        >>> import numpy as np
        >>> from adaptax._checks import check_whole
        >>> check_whole("few_shot", "ways", np.int64(5), least=2)
        5
        >>> check_whole("few_shot", "ways", True, least=2)
        Traceback (most recent call last):
        adaptax.errors.InputError: few_shot(ways=True) must be a whole number of at least 2: change ways=.
    """
    number = None
    if not _is_boolean(value):
        with contextlib.suppress(TypeError):
            number = operator.index(value)
    if number is None or number < least or (most is not None and number > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{_written(where, name, value)} must be a whole number {bounds}: change {name}=.")
    return number


def check_real(
    where: str, name: str, value: Any, *, least: float | None = None, above: float | None = None,
    most: float | None = None, below: float | None = None,
) -> Any:  # fmt: skip
    """A finite number within bounds, as a Python float; a traced value is returned as it is, since it is not known yet.

    Arguments:
        where, name, value: as for `check_whole`.
        least, above: the lower bound, itself included (`least`) or not (`above`).
        most, below: the upper bound, itself included (`most`) or not (`below`).

    Errors: `InputError` for anything else.

    Example:
        >>> import numpy as np
        >>> from adaptax._checks import check_real
        >>> check_real("Edge", "gamma", np.float32(0.5), above=0)
        0.5
        >>> check_real("Edge", "decay", 1.5, least=0, most=1)
        Traceback (most recent call last):
        adaptax.errors.InputError: Edge(decay=1.5) must be a finite number of at least 0 and at most 1: change decay=.
    """
    if is_traced(value):
        return value
    number = _float(value)
    outside = (
        number is None
        or not math.isfinite(number)
        or (least is not None and number < least)
        or (above is not None and number <= above)
        or (most is not None and number > most)
        or (below is not None and number >= below)
    )
    if outside:
        kind = "positive" if above == 0 else "finite"
        bounds = [
            ("of at least", least),
            ("above", above or None),
            ("of at most" if least is None else "at most", most),
            ("below", below),
        ]
        text = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
        raise InputError(f"{_written(where, name, value)} must be a {kind} number {text}".rstrip() + f": change {name}=.")
    return number


def check_true_or_false(where: str, name: str, value: Any) -> bool:
    """True or False, as a Python boolean; `InputError` for anything else."""
    if not _is_boolean(value):
        raise InputError(f"{_written(where, name, value)} must be True or False: change {name}=.")
    return bool(value)


def is_traced(value: Any) -> bool:
    """Whether a value is only known when a compiled program runs."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"


def _float(value: Any) -> float | None:
    scalar = isinstance(value, Real) or (hasattr(value, "dtype") and getattr(value, "shape", None) == ())
    if _is_boolean(value) or not scalar:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _written(where: str, name: str, value: Any) -> str:
    return f"{where}({name}={value!r})" if where else f"{name}={value!r}"
