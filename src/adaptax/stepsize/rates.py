"""Step sizes as the recursion uses them: a prefix tree of arrays, either one for all steps or one for each step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax._tree import first_line, prefix_map
from adaptax.errors import InputError


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
    """A step size for each step, from a function of the step number j = 0, 1, ..., called with Python integers."""

    function: Callable[[int], Any] = eqx.field(static=True)

    def rates(self, steps: int) -> Rates:
        # Evaluated while tracing, so any Python function of j will do and the program does not grow with N.
        with jax.ensure_compile_time_eval():
            try:
                values = [jnp.asarray(self.function(j), jnp.result_type(float)) for j in range(steps)]
            except Exception as error:
                text = f"The step-size schedule fails ({first_line(error)})"
                raise InputError(f"{text}: let it return one positive finite number for every j.") from error
            values = jnp.stack(values) if values else jnp.ones((1,))
            if values.ndim != 1 or not bool(jnp.all((values > 0) & jnp.isfinite(values))):
                raise InputError("The step-size schedule must return one positive finite number for every step j.")
        return Rates(values, per_step=True)
