"""Numbers that enter a program while it is traced, from outside JAX, and then stay: two tracings of a function tell.

A function is traced twice, once for each function in a process. The two programs differ where NumPy, Python, a clock or an
iterator gave other numbers the second time; the states of NumPy's and Python's random numbers tell too, and are set back.
A function under `jax.jit` that has been called before is looked at without the `jit`, since JAX remembers what is inside.
"""

import functools
import random
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from adaptax.errors import DrawnOnce

_seen: Any = weakref.WeakSet()


def traced(function: Callable, *arguments: Any, said: str, remedy: str, call: Callable | None = None) -> tuple[Any, Any]:
    """The shapes that a function returns and, the first time, the traced program; a warning if two tracings of it differ.

    Arguments:
        function: the user's function.
        arguments: what it is called with; arrays may be given by their shapes.
        said: the function as it is named in the warning.
        remedy: what to do instead of drawing outside JAX.
        call: how it is called, if not directly.
    """
    user = _plain(function)
    run: Any = call or user
    key = _key(user)
    if _known(key):
        return eqx.filter_eval_shape(run, *arguments), None
    before = _states()
    program, dynamic, static = eqx.filter_make_jaxpr(run)(*arguments)
    again = eqx.filter_make_jaxpr(run)(*arguments)[0]
    moved = [who for who, state in _states().items() if not _same(state, before[who])]
    _restore(before)
    _seen.add(key)
    if moved or not _same(program, again):
        who = " and ".join(moved) or "something other than JAX"
        name = getattr(user, "__qualname__", type(user).__name__)
        text = f"{said} ({name}) takes numbers from {who}, which are drawn once, when the program is made"
        warnings.warn(f"{text}: {remedy}.", DrawnOnce, stacklevel=2)
    return eqx.combine(dynamic, static), program


def depends(program: ClosedJaxpr) -> bool:
    """Whether any output of a traced program may depend on its inputs; true if there are no outputs."""
    reached = set(program.jaxpr.invars)
    for equation in program.jaxpr.eqns:
        if any(not isinstance(v, Literal) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    outputs = program.jaxpr.outvars
    return not outputs or any(not isinstance(v, Literal) and v in reached for v in outputs)


def _key(user: Any) -> Any:
    """What stands for a function: itself, or the class of a module, which is made anew in each program."""
    try:
        weakref.ref(user)
    except TypeError:
        return type(user)
    return type(user) if isinstance(user, eqx.Module) else user


def _known(key: Any) -> bool:
    try:
        return key in _seen
    except TypeError:  # it cannot be hashed, so that it would be looked at each time
        return True


def _plain(function: Any) -> Any:
    """The user's own function, out of partial functions without arguments and `jit`."""
    while True:
        if isinstance(function, functools.partial) and not (function.args or function.keywords):
            function = function.func
        elif isinstance(function, _JITTED) and (wrapped := getattr(function, "__wrapped__", None)) is not None:
            function = wrapped
        else:
            return function


_JITTED: Any = (type(jax.jit(lambda: None)), type(eqx.filter_jit(lambda: None)))


def _states() -> dict[str, Any]:
    # The global state is what users draw from; this library does not.
    return {"NumPy's random numbers": np.random.get_state(legacy=False), "Python's random numbers": random.getstate()}  # noqa: NPY002


def _restore(states: dict[str, Any]) -> None:
    state, of_python = states.values()
    np.random.set_state(state)  # noqa: NPY002
    random.setstate(of_python)


def _same(a: Any, b: Any) -> bool:
    """Whether two programs, or parts of them, are the same; functions and objects inside count as the same."""
    if a is b or isinstance(a, Tracer) or isinstance(b, Tracer):
        return True
    if hasattr(a, "dtype") and hasattr(a, "shape"):
        return hasattr(b, "dtype") and a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, ClosedJaxpr):
        return _same(a.jaxpr, b.jaxpr) and _same(list(a.consts), list(b.consts))
    if isinstance(a, Jaxpr):
        return len(a.eqns) == len(b.eqns) and all(map(_same_equation, a.eqns, b.eqns)) and _same(a.outvars, b.outvars)
    if isinstance(a, Literal):
        return _same(a.val, b.val)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    return repr(a) == repr(b) if isinstance(a, bool | int | float | complex | str) else True


def _same_equation(a: Any, b: Any) -> bool:
    return a.primitive is b.primitive and _same(a.params, b.params) and _same(a.invars, b.invars)


def _bytes(array: Any) -> bytes:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array).tobytes()
