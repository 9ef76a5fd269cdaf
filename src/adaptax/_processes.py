"""Several processes that take one run together: what one tells the others, and that a mistake of one stops them all.

Messages are bytes that the collectives of the run carry. All functions must be called by all processes, in the same order.
"""

import functools
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adaptax import errors
from adaptax._tree import arrays_of, first_line, with_arrays
from adaptax.errors import CheckpointError, HostFailure, InputError, ProcessLost

_AXIS = "processes"
# How long the first to arrive wait for the last to read its data and to compile. The transport itself waits 30 seconds.
_HOURS = 2
_GONE = re.compile(r"gloo|nccl|connection (closed|reset)|socket|coordination|heartbeat|barrier", re.IGNORECASE)
_SHARED = {kind.__name__: kind for kind in (InputError, HostFailure, CheckpointError)}
_meetings, _looks = itertools.count(), itertools.count(1)


def several() -> bool:
    """Whether `jax.distributed` has joined this process with others. It starts no backend where there are none."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, the one that writes and prints."""
    return jax.process_index() == 0


@functools.cache
def meet(mesh: Mesh) -> None:
    """Wait for all processes, and connect the devices of a mesh, and those along each of its axes, once."""
    from orbax.checkpoint import multihost

    nowhere, axes = PartitionSpec(), mesh.axis_names
    groups = {axes, *((axis,) for axis in axes)}

    def sums(x):
        return [jax.lax.psum(x, group) for group in sorted(groups)]

    total = jax.shard_map(sums, mesh=mesh, in_specs=nowhere, out_specs=nowhere, check_vma=False)
    with watching():
        multihost.get_barrier_sync_fn()(key=f"adaptax-{next(_meetings)}", timeout_ms=_HOURS * 3_600_000)
        one = jax.make_array_from_callback((), NamedSharding(mesh, nowhere), lambda _: np.ones((), np.float32))
        jax.block_until_ready(jax.jit(total)(one))


@functools.cache
def _one_each() -> Mesh:
    """A mesh with one device of every process."""
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([firsts[index] for index in sorted(firsts)]), (_AXIS,))
    meet(mesh)
    return mesh


@functools.cache
def _programs(mesh: Mesh) -> tuple[Callable, Callable]:
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = jax.jit(lambda x: x, out_shardings=everywhere)
    total = jax.jit(lambda x: x.sum(axis=0, dtype=x.dtype), out_shardings=everywhere)
    return rows, total


def _exchange(row: np.ndarray, program: int) -> np.ndarray:
    with watching():
        mesh = _one_each()
        rows = NamedSharding(mesh, PartitionSpec(_AXIS))
        array = jax.make_array_from_process_local_data(rows, row[None], (mesh.size, *row.shape))
        return np.asarray(_programs(mesh)[program](array))


def gather(number: int | float, kind: Any = np.float32) -> np.ndarray:
    """Everybody's number, by process."""
    return _exchange(np.asarray([number], kind), 0)[:, 0]


def send(data: bytes, source: int = 0) -> bytes:
    """The bytes of one process, in all of them."""
    size = int(gather(len(data), np.uint32)[source])
    # Few lengths, so that few programs are compiled.
    buffer = np.zeros(1 << max(size - 1, 255).bit_length(), np.uint8)
    if jax.process_index() == source:
        buffer[:size] = np.frombuffer(data, np.uint8)
    return _exchange(buffer, 1)[:size].tobytes()


def everybodys(value: Any) -> list[Any]:
    """Everybody's value for JSON, by process."""
    data = json.dumps(value).encode()
    sizes = gather(len(data), np.uint32).astype(int)
    buffer = np.zeros(1 << max(int(sizes.max()) - 1, 255).bit_length(), np.uint8)
    buffer[: len(data)] = np.frombuffer(data, np.uint8)
    return [json.loads(row[:size].tobytes()) for row, size in zip(_exchange(buffer, 0), sizes, strict=True)]


def together(function: Callable[[], Any]) -> Any:
    """What a function returns here; if it fails in one process, all of them fail, with that one's sentence."""
    if not several():
        return function()
    result: Any = None
    failure: Exception | None = None
    try:
        result = function()
    except ProcessLost:
        raise
    except Exception as error:
        if getattr(error, "told", False):
            raise
        failure = error
    failed = gather(failure is not None)
    if failed.any():
        source = int(np.argmax(failed))
        said = b"" if failure is None else json.dumps([type(failure).__name__, str(failure)]).encode()
        kind, text = json.loads(send(said, source))
        if failure is None:
            text = text if kind in _SHARED else f"Process {source} stopped ({kind}: {first_line(Exception(text))})."
            failure = _SHARED.get(kind, HostFailure)(text)
        failure.told = True  # type: ignore[attr-defined]
        raise failure
    return result


def on_first(function: Callable[[], Any]) -> Any:
    """What process 0 alone finds, in all processes: None, numbers or text, also in lists and dicts."""
    if not several():
        return function()
    found = together(lambda: json.dumps(function()).encode() if is_first() else b"")
    return json.loads(send(found))


def arrays_of_first(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """The arrays of process 0, in all processes."""
    given = arrays or {}
    names = on_first(lambda: {name: [array.dtype.name, list(array.shape)] for name, array in given.items()})
    found = {}
    for name, (dtype, shape) in names.items():
        data = send(np.ascontiguousarray(given[name]).tobytes() if is_first() else b"")
        found[name] = np.frombuffer(data, jax.numpy.dtype(dtype)).reshape(shape)
    return found


def as_first(tree: Any) -> Any:
    """A tree with the arrays of process 0, where another's differ, such as numbers that other hardware measured."""
    sums = gather(checksum(tree), np.uint32)
    if (sums == sums[0]).all():
        return tree
    return with_arrays(tree, arrays_of_first(arrays_of(tree)))


def check_same(what: dict[str, Any]) -> None:
    """Refuse to begin where processes were given different things: values for JSON by name."""
    here = json.loads(json.dumps(what))
    first = json.loads(send(json.dumps(what).encode()))
    other = sorted(name for name in {*first, *here} if first.get(name) != here.get(name))
    differs = gather(bool(other))
    if differs.any():
        source = int(np.argmax(differs))
        names = send(", ".join(other).encode(), source).decode()
        text = f"Process {source} was started with another {names} than process 0"
        raise InputError(f"{text}: start every process with the same arguments.")


def largest(number: float) -> float:
    """The largest of everybody's numbers."""
    return float(gather(number).max()) if several() else number


def preempted() -> bool | None:
    """Whether JAX has told all of a SIGTERM to one process, and all have come to this call; None if it does not.

    JAX lets processes agree on the number of a call, so they must call it equally often.
    """
    if not jax.distributed.is_initialized():
        return None
    from jax.experimental import multihost_utils

    try:
        return multihost_utils.reached_preemption_sync_point(next(_looks))
    except RuntimeError:  # jax_enable_preemption_service was off when the processes joined
        return None


def checksum(tree: Any) -> int:
    """A checksum of the arrays of a tree."""
    found = 0
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "dtype"):
            plain = jax.random.key_data(leaf) if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
            found = zlib.crc32(np.ascontiguousarray(plain).tobytes(), found)
    return found


def raise_failure() -> None:
    """Raise `HostFailure` in every process, if a call of the host failed in one of them."""
    together(errors.raise_failure)


@contextmanager
def watching() -> Iterator[None]:
    """Say in one sentence that another process is gone, where the transport would say it in its own words."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        known = isinstance(error, (InputError, HostFailure, CheckpointError, ProcessLost))
        if known or not several() or not _GONE.search(str(error)):
            raise
        text = f"Another process of this run has ended or cannot be reached ({first_line(error)[:150]})"
        remedy = "its own output says why; start all processes again, and a run with a folder goes on from its last checkpoint"
        raise ProcessLost(f"{text}: {remedy}.") from error
