"""All cores: JAX shows a CPU as one device unless told otherwise before it starts."""

import os


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores() -> None:
    """One host device for each core; the user's own setting, and a JAX that has started already, are left alone.

    Accelerators are not concerned: where there are any, JAX takes them and no CPU device.
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
