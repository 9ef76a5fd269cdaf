"""The experiments compile many small programs."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """For programs that take longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
