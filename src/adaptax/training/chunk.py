"""Many meta-steps in one compiled program."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax import _devices as dev
from adaptax.stepsize.rules import AbstractRule
from adaptax.training.step import NOTED, State, Step


@eqx.filter_jit
def run_chunk(
    step: Step, state: State, count: Array, capacity: int, max_skipped: Array, tasks: PyTree = None
) -> tuple[State, dict, Array]:
    """Up to `count` meta-steps in one compiled program, fewer if too many in a row are skipped.

    `count` is an array and at most `capacity`, so that chunks of any length share one program. Batches from the host are
    stacked along a second axis of that length.

    Returns: the state, the records (arrays of length `capacity`), and how many meta-steps were taken.
    """
    few, rule = None, step.guard or step.method.inner.stepsize
    if tasks is not None:
        # A rule measures on the first tasks, which every device has; the others are cut over the devices.
        few = jax.tree.map(lambda leaf: leaf[: rule.tasks], tasks) if isinstance(rule, AbstractRule) else None
        tasks = step.split(tasks)

    def batch(batches, index):
        return None if batches is None else jax.tree.map(lambda leaf: leaf[:, index], batches)

    def run(shared, local):
        state, few, count, limit = shared
        arrays, static = eqx.partition(state, eqx.is_array)
        number = jnp.result_type(float)
        record = {name: jnp.zeros((capacity,), bool if name == "skipped" else number) for name in NOTED}

        def more(carry):
            taken, arrays, _ = carry
            return (taken < count) & (eqx.combine(arrays, static).skipped < limit)

        def take(carry):
            taken, arrays, record = carry
            state, info = step.advance(eqx.combine(arrays, static), batch(local, taken), batch(few, taken))
            record = {name: values.at[taken].set(info[name].astype(values.dtype)) for name, values in record.items()}
            return taken + 1, eqx.filter(state, eqx.is_array), record

        taken, arrays, record = jax.lax.while_loop(more, take, (jnp.zeros((), jnp.int32), arrays, record))
        return (eqx.combine(arrays, static), record, taken), ()

    return dev.spread(step.mesh, run, (state, few, count, max_skipped), tasks)[0]
