"""Memory that does not suffice, in a sentence that names what takes less."""

import contextlib

import jax

from adaptax._tree import first_line

_REMEDY = (
    'hold fewer tasks at a time (in_flight=1), keep fewer iterates (ax.MetaGradient(store="sqrt")), form losses by parts of a '
    "batch (microbatches=), or take fewer tasks a meta-step (tasks_per_step=)"
)


@contextlib.contextmanager
def explained():
    """Raise `MemoryError` with the remedy where a device has no memory left; other errors pass."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"The device has too little memory ({first_line(error)}): {_REMEDY}.") from error
