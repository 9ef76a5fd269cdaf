"""JAX as the command line sets it up: all cores in use, runs on a GPU that repeat exactly, products at full precision."""

import importlib.util
import os

_REPEATS = "xla_gpu_deterministic_ops"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_to_own_cores(sharing: int, number: int) -> None:
    """Bind this process to its equal part of the cores, where all of them are free: unbound processes get in each other's way.

    It must be called before JAX starts its threads, which inherit this. Processes that are bound already, and those that are
    more than the cores, are left alone.
    """
    if not hasattr(os, "sched_setaffinity") or cores() != os.cpu_count():
        return
    free, size = sorted(os.sched_getaffinity(0)), cores() // sharing
    if sharing > 1 and size:
        os.sched_setaffinity(0, free[number * size : (number + 1) * size])


def use_all_cores(sharing: int = 1) -> None:
    """Make each core a device of its own, so that tasks spread over all of them; JAX shows a CPU as one device.

    Processes that share the cores take an equal part of them each, at least one. The user's own setting, and a JAX that has
    started already, are left alone. Accelerators are not concerned: where there are any, JAX uses them and no CPU device.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    import jax

    # Any other value than JAX's default, -1, was set in the environment or from Python.
    if jax.config.jax_num_cpu_devices != -1:  # type: ignore[attr-defined]
        return
    try:
        jax.config.update("jax_num_cpu_devices", max(cores() // sharing, 1))
    except RuntimeError:  # JAX has started
        return


def repeat_exactly() -> None:
    """Make two runs of one seed equal on a GPU.

    The compiler otherwise chooses algorithms by timing them, and sums in any order.

    The user's own setting is left alone, and nothing is set where JAX has no plugin for an accelerator. It must be called
    before JAX starts.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _REPEATS not in flags and importlib.util.find_spec("jax_plugins") is not None:
        os.environ["XLA_FLAGS"] = f"{flags} --{_REPEATS}=true".lstrip()


def keep_precision() -> None:
    """Multiply matrices in float32 on accelerators, where JAX rounds the factors by default.

    The rounding spoils exact meta-gradients of many steps. The user's own setting is left alone. This starts JAX.
    """
    import jax

    if jax.config.jax_default_matmul_precision is None and jax.default_backend() != "cpu":  # type: ignore[attr-defined]
        jax.config.update("jax_default_matmul_precision", "float32")
