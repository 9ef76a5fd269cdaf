"""The convolution and the max pool of the networks, fast at any order of differentiation.

`primitives` and `pooling` define JAX primitives of their own, for which they use parts of JAX that are not promised to stay
(`jax.extend`, `jax.interpreters`). With a version of JAX that lacks one of these, both functions come from `plain`, which
computes the same by ordinary operations, more slowly.
"""

import warnings

from adaptax.models.kernels import plain

try:
    from adaptax.models.kernels.pooling import max_pool
    from adaptax.models.kernels.primitives import convolve
except (ImportError, AttributeError, TypeError) as error:
    warnings.warn(
        f"This version of JAX lacks what adaptax's fast convolutions need ({error}): plain ones are used.", stacklevel=2
    )
    convolve, max_pool = plain.convolve, plain.max_pool

__all__ = ["convolve", "max_pool"]
