"""Step sizes as the recursion uses them: a prefix tree of arrays, either one for all steps or one for each step."""

import contextlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from adaptax._tree import first_line, prefix_map
from adaptax.errors import InputError

# At how many steps the values of a schedule computed at once are compared with those computed one by one.
_PROBES = 8


class Rates(eqx.Module):
    r"""The diagonals $a_j$ of $A_j$ in $w_{j+1} = w_j - A_j\nabla l(w_j)$.

    Arguments:
        tree: a prefix of the adapting parameters; each leaf broadcasts over the parameters it stands for.
        per_step: whether every leaf has a leading axis over the steps; past its end the last entry is repeated.

    Example:
        >>> import jax.numpy as jnp
        >>> from adaptax.stepsize import Rates
        >>> Rates(jnp.array([0.1, 0.2]), per_step=True).stacked(3)
        Array([0.1, 0.2, 0.2], dtype=float32)

    Source: docs/theory.md, section 1.
    """

    tree: PyTree
    per_step: bool = eqx.field(static=True, default=False)

    def stacked(self, steps: int) -> PyTree:
        """One entry for each of `steps` steps, or None where all steps share one."""
        if not self.per_step:
            return None
        return jax.tree.map(lambda leaf: leaf[jnp.minimum(jnp.arange(steps), leaf.shape[0] - 1)], self.tree)

    def mean(self) -> Array:
        """The mean over steps and entries, for reports."""
        return jnp.mean(jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(self.tree)]))


def multiply(rate: PyTree, v: PyTree) -> PyTree:
    r"""$A v$: each leaf of the prefix `rate` times the leaves of `v` it stands for, in the type of `v`."""
    return prefix_map(lambda r, leaf: jnp.broadcast_to(r.astype(leaf.dtype), leaf.shape) * leaf, rate, v)


def check_rates(rates: Rates, adapting: PyTree) -> None:
    """Refuse step sizes whose structure or shapes do not fit the parameters."""

    def fits(rate, leaf):
        if rates.per_step and (rate.ndim == 0 or len(rate) == 0):
            raise ValueError("a step size without an axis over the steps")
        shape = rate.shape[1:] if rates.per_step else rate.shape
        if jnp.broadcast_shapes(shape, leaf.shape) != leaf.shape:
            raise ValueError(f"a step size of shape {shape} for a parameter of shape {leaf.shape}")

    try:
        prefix_map(fits, rates.tree, adapting)
    except (ValueError, IndexError) as error:
        raise InputError(
            f"The step sizes do not fit the parameters ({first_line(error)}): give a number, or a prefix of the parameters' "
            "structure whose leaves broadcast to theirs (with a leading axis of length N if per step)."
        ) from error


class Schedule(eqx.Module):
    """A step size for each step, from a function of the step number j = 0, 1, ..., a Python integer or a traced one."""

    function: Callable[[int], Any] = eqx.field(static=True)

    def rates(self, steps: int) -> Rates:
        # Evaluated while tracing, so any Python function of j will do and the program does not grow with N.
        with jax.ensure_compile_time_eval():
            try:
                with np.errstate(over="ignore"):
                    values = np.asarray(self._values(steps), jnp.result_type(float))
            except Exception as error:
                text = f"The step-size schedule fails ({first_line(error)})"
                raise InputError(f"{text}: let it return one positive finite number for every j.") from error
            if values.ndim != 1 or not np.all((values > 0) & np.isfinite(values)):
                raise InputError("The step-size schedule must return one positive finite number for every step j.")
            return Rates(jnp.asarray(values), per_step=True)

    def _values(self, steps: int) -> Any:
        """All values: at once where the function computes with JAX, as optax's schedules do, and one by one otherwise."""
        if not steps:
            return np.ones(1)
        if steps > _PROBES and isinstance(self.function(0), jax.Array):
            # A function that branches on j cannot be traced, and one that computes with large integers overflows.
            with contextlib.suppress(Exception):
                values = np.asarray(jax.jit(jax.vmap(self.function))(jnp.arange(steps)))
                probes = np.linspace(0, steps - 1, _PROBES).astype(int)
                if np.allclose(values[probes], [self.function(int(j)) for j in probes], rtol=1e-4, atol=0):
                    return values
        return [self.function(j) for j in range(steps)]
