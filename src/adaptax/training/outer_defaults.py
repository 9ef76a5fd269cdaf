"""The outer optimiser that training takes where none is given."""

import functools
from collections.abc import Callable

import optax

# Chosen on validation tasks: sinusoids that no table judges.
LEARNING_RATE, CLIP, WARM_UP = 1e-2, 1.0, 100
# The step size rises over this share of all meta-steps at most.
_SHARE = 0.05


def outer_optimizer(
    optimizer: Callable[..., optax.GradientTransformation], learning_rate: float, steps: int | None, clip: float | None,
    warm_up: int = WARM_UP,
) -> optax.GradientTransformation:  # fmt: skip
    r"""An optimiser behind a meta-gradient clipped by its norm, whose step size rises, then falls to zero as a cosine.

    Arguments:
        optimizer: `optax.adam` or another function of a step size.
        learning_rate: the largest step size.
        steps: the meta-steps of the whole run (None: the step size is constant).
        clip: the largest norm of the meta-gradient (None: any).
        warm_up: the meta-steps over which the step size rises, at most a twentieth of all (default 100).

    Source: Pascanu, Mikolov, Bengio (2013), ICML (clipping by norm); Loshchilov, Hutter (2017), SGDR, arXiv 1608.03983.
    """
    rate: float | optax.Schedule = learning_rate
    if steps is not None:
        rising = min(warm_up, int(_SHARE * steps))
        rate = optax.cosine_decay_schedule(learning_rate, max(steps - rising, 1))
        if rising:
            # It starts above zero, so that the first meta-step moves something.
            up = optax.linear_schedule(learning_rate / (rising + 1), learning_rate, rising)
            rate = optax.join_schedules([up, rate], [rising])
    made = optimizer(rate)
    return made if clip is None else optax.chain(optax.clip_by_global_norm(clip), made)


@functools.cache
def default_optimizer(steps: int) -> optax.GradientTransformation:
    """One object for the same number of meta-steps, so that runs share a compiled program."""
    return outer_optimizer(optax.adam, LEARNING_RATE, steps, CLIP)
