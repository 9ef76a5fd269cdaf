"""All cores, runs that repeat, and products in the precision of their factors: what JAX does by default is something else."""

import importlib.util
import os

_REPEATS = "xla_gpu_deterministic_ops"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores() -> None:
    """One host device for each core, where JAX would show a CPU as one.

    The user's own setting, and a JAX that has started already, are left alone. Accelerators are not concerned: where there
    are any, JAX takes them and no CPU device.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    import jax

    # Set in the environment or from Python before this was called; -1 is JAX's default.
    if jax.config.jax_num_cpu_devices != -1:  # type: ignore[attr-defined]
        return
    try:
        jax.config.update("jax_num_cpu_devices", cores())
    except RuntimeError:  # JAX has started
        return


def repeat_exactly() -> None:
    """On a GPU the compiler times its ways to compute and sums in any order: two runs of one seed differ; not with this.

    The user's own setting is left alone. Nothing is set where JAX has no plugin for an accelerator. Call it before JAX starts.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _REPEATS not in flags and importlib.util.find_spec("jax_plugins") is not None:
        os.environ["XLA_FLAGS"] = f"{flags} --{_REPEATS}=true".lstrip()


def keep_precision() -> None:
    """On accelerators JAX rounds the factors of products, which exact meta-gradients of many steps do not survive.

    The user's own setting is left alone. Starts JAX.
    """
    import jax

    if jax.config.jax_default_matmul_precision is None and jax.default_backend() != "cpu":  # type: ignore[attr-defined]
        jax.config.update("jax_default_matmul_precision", "float32")
