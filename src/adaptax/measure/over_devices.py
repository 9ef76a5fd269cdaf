"""Measurements spread over the devices of all processes: which devices, and what they share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jax.sharding import Mesh

from adaptax import _devices as dev
from adaptax import _processes as processes
from adaptax import errors
from adaptax.errors import InputError
from adaptax.problem import AbstractProblem
from adaptax.sequential import on_one_device


def mesh_for(
    problem: AbstractProblem, params: Any, devices: Sequence[Any] | None, count: int, arrays: dict[str, Any], **numbers: Any
) -> Mesh | None:
    """The mesh for `count` tasks; None for one device, and for parameters that are cut, which the compiler spreads itself.

    `arrays` (trees by name) and `numbers` must be those of all processes.

    Errors: `InputError` for devices that do not do, and where another process has other ones.
    """
    alone = on_one_device(problem, devices)
    if dev.is_cut(params):
        if devices is not None:
            raise InputError("devices= needs parameters that are whole, and these are cut over devices: leave devices= out.")
        return None
    mesh = None if alone else dev.mesh_of(devices, count, alone=True)
    if dev.spans(mesh):
        arrays = {"params": params, "problem": problem, **arrays}
        sums = {name: processes.checksum(tree) for name, tree in arrays.items()}
        processes.check_same({**sums, "number of tasks": count, **numbers})
    return mesh


@contextmanager
def measuring(mesh: Mesh | None) -> Iterator[None]:
    """Raise what failed on the host, and the loss of another process, as one sentence."""
    errors.forget_failures()
    with processes.watching():
        yield
    (processes.raise_failure if dev.spans(mesh) else errors.raise_failure)()
