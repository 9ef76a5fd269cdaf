"""Spreading tasks over devices: one mesh axis, each device a share of the task batch."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adaptax import _processes as processes
from adaptax._checks import is_traced
from adaptax.errors import InputError

AXIS = "tasks"


def mesh_of(devices: Sequence[Any] | None, count: int, alone: bool = False) -> Mesh | None:
    """A mesh over the devices (default: those of all processes) that have work for `count` tasks; None for a single one.

    Where there are several processes, every one of them keeps all its devices, since none may miss the sums.

    Arguments:
        devices: the devices.
        count: the tasks.
        alone: whether this process may also work with devices of its own, apart from the others.
    """
    chosen = list(jax.devices() if devices is None else devices)
    if not chosen:
        raise InputError("devices= is empty: give at least one device, or None for all of them.")
    owners = {device.process_index for device in chosen}
    apart = alone and owners == {jax.process_index()}
    if processes.several() and not apart:
        if missing := sorted(set(range(jax.process_count())) - owners):
            text = f"devices= has no device of process {missing[0]}, though all {jax.process_count()} processes take part"
            raise InputError(f"{text}: give at least one of each, or leave devices= out.")
        mesh = Mesh(np.array(chosen), (AXIS,))
        processes.meet(mesh)
        return mesh
    chosen = chosen[: max(count, 1)]
    return None if len(chosen) == 1 and devices is None else Mesh(np.array(chosen), (AXIS,))


def spans(mesh: Mesh | None) -> bool:
    """Whether a mesh has devices of other processes."""
    return mesh is not None and mesh.is_multi_process


def share(mesh: Mesh | None, count: int) -> int:
    """How many tasks each device holds."""
    return count if mesh is None else -(-count // mesh.size)


def spread(mesh: Mesh | None, function: Callable[..., Any], shared: Any, split: Any) -> tuple[Any, Any]:
    """Run `function(shared, split) -> (same everywhere, one for each task)` with `split` cut along its leading axis."""
    if mesh is None:
        return function(shared, split)
    arrays, static = eqx.partition(shared, eqx.is_array)
    structure: list[Any] = []

    def local(arrays, split):
        outputs, static_outputs = eqx.partition(function(eqx.combine(arrays, static), split), eqx.is_array)
        structure.append(static_outputs)
        return outputs

    specs = (PartitionSpec(), PartitionSpec(AXIS))
    # The shared outputs are equal on all devices by construction: what differs between devices has been summed.
    outputs = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)(arrays, split)
    return eqx.combine(outputs, structure[-1])


def replicate(mesh: Mesh | None, tree: Any) -> Any:
    """The arrays of a tree on every device: programs that are fed their own results are then compiled once."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: _put(x, everywhere) if eqx.is_array(x) else x, tree)


def _put(x: Any, where: Any) -> Any:
    """An array at a place. Every process has the whole of it, so nothing is sent."""
    if where.is_fully_addressable:
        return jax.device_put(own_copy(x), where)
    if isinstance(x, jax.Array) and x.sharding == where:
        return x
    x = own_copy(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index], dtype=x.dtype)


def own_copy(tree: Any) -> Any:
    """The arrays of a replicated tree as this process has them, on one of its devices where others have them too."""

    def one(x):
        return x.addressable_data(0) if isinstance(x, jax.Array) and not x.is_fully_addressable else x

    return jax.tree.map(one, tree)


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """Inside a compiled program: values that are cut over the devices, whole on each, for the host to read."""
    if mesh is None or not spans(mesh):
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def beside(tree: Any, others: Any) -> Any:
    """The arrays of a tree on the devices of `others`, if some of them have been put on different ones."""

    def placed(tree):
        arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) and not is_traced(leaf)]
        return [leaf.sharding for leaf in arrays if leaf.committed]

    found = [*placed(others), *placed(tree)]
    if len({frozenset(sharding.device_set) for sharding in found}) < 2:
        return tree
    where = found[0]
    if isinstance(where, NamedSharding):
        where = NamedSharding(where.mesh, PartitionSpec())
    return jax.tree.map(lambda x: _put(x, where) if eqx.is_array(x) else x, tree)


def collect(mesh: Mesh | None, tree: Any) -> Any:
    """The arrays of a replicated tree as ordinary ones on the default device, free to be used anywhere."""

    def one(x):
        if not eqx.is_array(x):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jnp.asarray(np.asarray(x))

    return tree if mesh is None else jax.tree.map(one, own_copy(tree))


def device_index(mesh: Mesh | None) -> Any:
    """Which device of the mesh the program runs on."""
    return 0 if mesh is None else jax.lax.axis_index(AXIS)


def gather(mesh: Mesh | None, tree: Any) -> Any:
    """The shares of all devices in one, in their order, along the leading axis."""
    return tree if mesh is None else jax.lax.all_gather(tree, AXIS, tiled=True)


def least(mesh: Mesh | None, x: Any) -> Any:
    """The least over devices."""
    return x if mesh is None else jax.lax.pmin(x, AXIS)


def total(mesh: Mesh | None, tree: Any) -> Any:
    """The sum over devices."""
    return tree if mesh is None else jax.lax.psum(tree, AXIS)
