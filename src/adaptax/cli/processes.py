"""Several processes that train, evaluate or measure together, by one command: how they find each other, and how they leave."""

import os
import sys
import time
import warnings
from typing import TYPE_CHECKING

from adaptax.errors import InputError

if TYPE_CHECKING:
    from adaptax.cli.commands import Evaluate, Measure
    from adaptax.cli.training import Training

_LOOPBACK = ("localhost", "127.", "[::1]")
# Process 0 holds the service that the others watch: it leaves last, so that they can say why they stop.
_GRACE = 3
# Where launchers say which process this is.
_NUMBERS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")
_own: list[int] = []


def join(command: "Training | Evaluate | Measure") -> bool:
    """Join the other processes, if there are any, before JAX starts; returns whether there are.

    They are named by --coordinator, --processes and --process-id; where these are left out, by SLURM, Open MPI or Kubernetes
    as JAX finds them.

    Errors: `InputError` for options that do not go together, and processes that cannot be found or joined.
    """
    given = {"coordinator_address": command.coordinator, "num_processes": command.processes, "process_id": command.process_id}
    missing = [name for name, value in given.items() if value is None]
    if command.processes == 1:
        return False
    number = command.process_id if len(missing) < 3 else _launched()[1]
    if number is None and len(missing) == 3:
        return False
    if 0 < len(missing) < 3:
        text = "--coordinator, --processes and --process-id belong together"
        raise InputError(f"{text}: give all three, or none under SLURM, Open MPI or Kubernetes.")
    if command.processes is not None and (command.process_id or 0) >= command.processes:
        text = f"--process-id {command.process_id} must be from 0 to {command.processes - 1}"
        raise InputError(f"{text}, one less than --processes: number the processes from 0.")
    if command.coordinator is not None and not command.coordinator.rpartition(":")[2].isdigit():
        text = f"--coordinator {command.coordinator} must be HOST:PORT"
        raise InputError(f"{text}, with a port that is free on the machine of process 0.")
    import jax

    # With it, SIGTERM would only be noted, and the process would go on.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**({} if missing else given))  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        text = f"The other processes cannot be joined ({_short(error)})"
        raise InputError(f"{text}: start all of them, with the same --coordinator and --processes.") from error
    _own.append(number or 0)
    if is_silent():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        warnings.simplefilter("ignore")
    return True


def refuse(prog: str) -> None:
    """Refuse a command that takes one process, where a launcher has started several: they would do the same, and write it.

    Errors: `InputError`.
    """
    try:
        count, _ = _launched()
    except InputError:  # where JAX cannot tell, this process is one
        return
    if count > 1:
        text = f"{prog} takes one process, and {count} were started: start one (srun --ntasks 1, mpirun -n 1)"
        known = [name for name in _NUMBERS if name in os.environ]
        raise InputError(f"{text}, or take {known[0]} out of their environment to run them apart." if known else f"{text}.")


def _launched() -> tuple[int, int | None]:
    """How many processes a launcher that JAX knows has started, and which of them this one is: (1, None) if it is alone."""
    try:
        from jax._src.clusters import ClusterEnv

        find = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):  # the internals of another version of JAX
        return 1, None
    try:
        _, count, number, _ = find(None, None, None, None, None, 60)
    except Exception as error:
        text = f"The processes of this job cannot be found ({_short(error)})"
        remedy = "give --coordinator, --processes and --process-id, or --processes 1 to train alone"
        raise InputError(f"{text}: {remedy}.") from error
    return (count, number) if count is not None and count > 1 else (1, None)


def meet() -> None:
    """Connect with the others once; what the transport prints then goes to stderr, for stdout has results alone."""
    from adaptax import _devices, _processes

    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        _devices.mesh_of(None, 1)
        _processes.gather(0)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def sharing(command: "Training | Evaluate | Measure") -> int:
    """How many processes of the run are known to share this machine's cores; a launcher binds each to its own."""
    near = command.coordinator is not None and command.coordinator.startswith(_LOOPBACK)
    return command.processes if near and command.processes is not None else 1


def joined() -> bool:
    """Whether this process has joined others."""
    return bool(_own)


def is_silent() -> bool:
    """Whether another process prints what is to be printed."""
    return joined() and _own[0] > 0


def leave(code: int) -> None:
    """End at once: the usual way out would wait for the others, who may be waiting for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not is_silent():
        time.sleep(_GRACE)
    os._exit(code)


def _short(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".:")[:150]
