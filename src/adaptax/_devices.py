"""Spreading tasks over devices, each a share of the task batch, and parameters over groups of them, each a part of every array.

A mesh has the axis "tasks", over which programs are written by hand (`spread`, `total`). Where parameters are cut, it has the
axis "parameters" too, which is left to the compiler: programs are written as for whole arrays, and it adds the messages.
"""

import contextlib
import functools
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

AXIS, PARAMETERS = "tasks", "parameters"
# Arrays of fewer entries are whole on every device: a message would take longer than it saves.
_SMALL = 1024


def mesh_of(devices: Sequence[Any] | None, count: int, alone: bool = False, shards: int = 1) -> Mesh | None:
    """A mesh over the devices (default: those of all processes) that have work for `count` tasks; None for a single one.

    Where there are several processes, every one of them keeps all its devices, since none may miss the sums.

    Arguments:
        devices: the devices.
        count: the tasks.
        alone: whether this process may also work with devices of its own, apart from the others.
        shards: how many devices share one copy of the parameters. They belong to one process, so that it has all of them.
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
        processes.check_same({"parameter_shards": shards})
        mesh = _arranged(chosen, shards)
        processes.meet(mesh)
        return mesh
    mesh = _arranged(chosen, shards, max(count, 1))
    return None if mesh.size == 1 and devices is None else mesh


def _arranged(devices: list[Any], shards: int, most: int | None = None) -> Mesh:
    """A mesh of at most so many shares of the tasks, each of which is `shards` devices of one process."""
    if shards == 1:
        return Mesh(np.array(devices[:most]), (AXIS,))
    devices = sorted(devices, key=lambda device: device.process_index)
    for owner in sorted({device.process_index for device in devices}):
        if (number := sum(device.process_index == owner for device in devices)) % shards:
            whose, remedy = "", ""
            if processes.several():
                whose, remedy = f" of process {owner}", ", or start one process for each machine"
            text = f"parameter_shards={shards} must divide the number of devices{whose}, which is {number}"
            fitting = ", ".join(str(k) for k in range(1, number + 1) if number % k == 0)
            raise InputError(f"{text}: take one of {fitting}{remedy}.")
    return Mesh(np.array(devices).reshape(-1, shards)[:most], (AXIS, PARAMETERS))


def rows(mesh: Mesh | None) -> int:
    """Over how many devices, or groups of devices, the tasks are spread."""
    return 1 if mesh is None else mesh.shape[AXIS]


def shards(mesh: Mesh | None) -> int:
    """Over how many devices each copy of the parameters is cut."""
    return 1 if mesh is None else mesh.shape.get(PARAMETERS, 1)


def is_cut(tree: Any) -> bool:
    """Whether a leaf lies in parts on several devices."""
    return any(isinstance(x, jax.Array) and not is_traced(x) and not x.is_fully_replicated for x in jax.tree.leaves(tree))


@functools.cache
def own(mesh: Mesh | None) -> Mesh | None:
    """The mesh for what this process does by itself with parameters that are cut; None where they are whole."""
    if mesh is None or shards(mesh) == 1:
        return None
    if not mesh.is_multi_process:
        return mesh
    row = next(row for row in mesh.devices if row[0].process_index == jax.process_index())
    return Mesh(row[None], mesh.axis_names)


def spans(mesh: Mesh | None) -> bool:
    """Whether a mesh has devices of other processes."""
    return mesh is not None and mesh.is_multi_process


def share(mesh: Mesh | None, count: int) -> int:
    """How many tasks each device, or group of devices, holds."""
    return -(-count // rows(mesh))


def spread(mesh: Mesh | None, function: Callable[..., Any], shared: Any, split: Any) -> tuple[Any, Any]:
    """Run `function(shared, split) -> (same everywhere, one for each task)` with `split` cut along its leading axis."""
    # The compiler cannot mix an axis of its own with one of a single device that is not.
    if mesh is None or rows(mesh) == 1:
        same, each = function(shared, split)
        return held(mesh, same), each
    arrays, static = eqx.partition(shared, eqx.is_array)
    structure: list[Any] = []

    def local(arrays, split):
        outputs, static_outputs = eqx.partition(function(eqx.combine(arrays, static), split), eqx.is_array)
        structure.append(static_outputs)
        return outputs

    specs = (PartitionSpec(), PartitionSpec(AXIS))
    # The shared outputs are equal on all devices by construction: what differs between devices has been summed.
    local = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs, axis_names={AXIS}, check_vma=False)
    same, each = eqx.combine(local(arrays, split), structure[-1])
    return held(mesh, same), each


def replicate(mesh: Mesh | None, tree: Any) -> Any:
    """The arrays of a tree whole on every device."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: _put(x, everywhere) if eqx.is_array(x) else x, tree)


def place(mesh: Mesh | None, tree: Any) -> Any:
    """The arrays of a state on all devices, cut as `_cut` says: programs that are fed their own results are compiled once."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: _put(x, NamedSharding(mesh, _cut(mesh, x))) if eqx.is_array(x) else x, tree)


def held(mesh: Mesh | None, tree: Any) -> Any:
    """Inside a compiled program: the arrays of a tree, cut as `place` cuts them."""
    if mesh is None or shards(mesh) == 1:
        return tree
    within = jax.sharding.get_abstract_mesh()
    over = mesh if within.empty else within

    def one(x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(over, _cut(mesh, x))) if eqx.is_array(x) else x

    return jax.tree.map(one, tree)


def made(mesh: Mesh | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function makes of arrays that are cut, itself cut, so that no device has the whole of it in between."""
    if mesh is None or shards(mesh) == 1:
        return function(*arguments)
    return eqx.filter_jit(lambda arguments: held(mesh, function(*arguments)))(arguments)


@contextlib.contextmanager
def without_host(mesh: Mesh | None):
    """Say in one sentence that a program calls the host, which the compiler refuses where it cuts arrays."""
    try:
        yield
    except NotImplementedError as error:
        if shards(mesh) == 1 or "callback" not in str(error):
            raise
        text = f"parameter_shards={shards(mesh)} needs a program without calls of the host (jax.pure_callback, jax.debug.print)"
        raise InputError(f"{text}: draw tasks with jax.random, or leave parameter_shards= out.") from error


def _cut(mesh: Mesh, x: Any) -> PartitionSpec:
    """How an array lies on a mesh: floating-point numbers are cut along the longest axis that the shards divide."""
    count = shards(mesh)
    lengths = [n if n % count == 0 else 0 for n in x.shape]
    if count == 1 or x.size < _SMALL or not jnp.issubdtype(x.dtype, jnp.inexact) or not any(lengths):
        return PartitionSpec()
    return PartitionSpec(*[None] * lengths.index(max(lengths)), PARAMETERS)


def _put(x: Any, where: Any) -> Any:
    """An array at a place. Every process has the whole of it, so nothing is sent."""
    if where.is_fully_addressable:
        return jax.device_put(own_copy(x), where)
    if isinstance(x, jax.Array) and x.sharding == where:
        return x
    x = own_copy(x)
    if len(where.spec):
        x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index], dtype=x.dtype)


def own_copy(tree: Any) -> Any:
    """The arrays of a state as this process has them, on as few of its devices as hold them where others have them too."""

    def one(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        where: Any = x.sharding
        if (mesh := own(where.mesh)) is None:
            return x.addressable_data(0)
        parts = [part.data for part in x.addressable_shards if part.device in mesh.devices]
        return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(mesh, where.spec), parts)

    return jax.tree.map(one, tree)


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """Inside a compiled program: values that are cut over the devices, whole on each, for the host to read."""
    return on_all(mesh, tree) if spans(mesh) else tree


def on_all(mesh: Mesh | None, tree: Any) -> Any:
    """Inside a compiled program: values whole on every device."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def own_tasks(mesh: Mesh, count: int) -> int:
    """How many of `count` tasks the devices of this process hold.

    Errors: `InputError` where the devices do not divide them.
    """
    if count % rows(mesh):
        text = f"local_tasks=True needs as many tasks for every device, and tasks_per_step={count} has no share for each of"
        raise InputError(f"{text} {rows(mesh)}: make it a multiple of {rows(mesh)}.")
    here = sum(row[0].process_index == jax.process_index() for row in mesh.devices.reshape(rows(mesh), -1))
    return here * share(mesh, count)


def joined(mesh: Mesh, tree: Any, count: int) -> Any:
    """Arrays of `count` tasks, of which each process has those of its own devices."""
    tasks = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(tasks, np.asarray(x), (count, *x.shape[1:])), tree)


def whole(mesh: Mesh | None, tree: Any) -> Any:
    """The arrays of a tree, whole in each process, wherever they lie."""
    if mesh is None or not spans(mesh):
        return tree
    return own_copy(_gathering(mesh)(tree))


@functools.cache
def _gathering(mesh: Mesh) -> Callable[[Any], Any]:
    """The program of `whole`, compiled once for arrays of the same shapes."""
    return jax.jit(lambda tree: everywhere(mesh, tree))


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
    """The arrays of a state as ordinary ones on the default device, free to be used anywhere; those that are cut stay so."""

    def one(x):
        if not eqx.is_array(x):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jnp.asarray(np.asarray(x))

    if mesh is None or shards(mesh) > 1:
        return own_copy(tree)
    return jax.tree.map(one, own_copy(tree))


def device_index(mesh: Mesh | None) -> Any:
    """Which of the `rows` the program runs on."""
    return 0 if rows(mesh) == 1 else jax.lax.axis_index(AXIS)


def gather(mesh: Mesh | None, tree: Any) -> Any:
    """The shares of all rows in one, in their order, along the leading axis."""
    return tree if rows(mesh) == 1 else jax.lax.all_gather(tree, AXIS, tiled=True)


def least(mesh: Mesh | None, x: Any) -> Any:
    """The least over rows."""
    return x if rows(mesh) == 1 else jax.lax.pmin(x, AXIS)


def total(mesh: Mesh | None, tree: Any) -> Any:
    """The sum over rows. Processes send all numbers of one type in one message; whole parameters alone can be put together."""
    if rows(mesh) == 1:
        return tree
    if not spans(mesh) or shards(mesh) > 1:
        return jax.lax.psum(tree, AXIS)
    leaves, structure = jax.tree.flatten(tree)
    shapes = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    for dtype in dict.fromkeys(shape.dtype for shape in shapes):  # in the same order in every process
        chosen = [i for i, shape in enumerate(shapes) if shape.dtype == dtype]
        sums = jax.lax.psum(jnp.concatenate([jnp.ravel(leaves[i]) for i in chosen]), AXIS)
        parts = jnp.split(sums, np.cumsum([shapes[i].size for i in chosen])[:-1])
        for i, part in zip(chosen, parts, strict=True):
            leaves[i] = part.reshape(shapes[i].shape)
    return jax.tree.unflatten(structure, leaves)
