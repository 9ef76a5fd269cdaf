"""Several gradient steps on one meta-step's samples: the outer step of proximal meta-policy search, for optax."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError
from adaptax.outer.trust_region import Divergence, HasAdaptedPath, region_of


class Proximal(optax.GradientTransformationExtraArgs):
    r"""`epochs` steps of an optimiser on $\frac1B\sum_i f(w^i_N(w); \tau_i) + \eta D(w_k, w; \tau_{i0})$, batches held fixed.

    $\tau_i$ was collected at the adapted parameters $w^i_N(w_k)$, and $w^i_N(w)$ is the adaptation from w on the batches that
    the inner steps at $w_k$ collected: each epoch's gradient goes through it. f limits how far the adapted parameters are
    trusted to move (`ax.tasks.rl.Clipped`), $\eta D$ holds back those before adaptation. The gradient of the first epoch is
    the meta-gradient with `independent_curvature=False` if f and the target loss have one gradient at the collection. The
    method's own meta-gradient is recorded, and a meta-step where it is not finite is skipped; it is not followed. `ax.train`
    and `ax.make_step` hand over the adapted path.

    Arguments:
        loss: f, `loss(params, batch) -> scalar` at adapted parameters, on the target batch of a task.
        optimizer: any optax transformation that needs no more than gradients and parameters (default `optax.adam(1e-3)`);
            its state is this one's, and goes on from meta-step to meta-step.
        epochs: gradient steps a meta-step (default 5).
        divergence: D, `divergence(old, new, batch) -> scalar` at parameters before adaptation, on the first inner step's
            batch, such as `ax.tasks.rl.mean_kl` (default None: no such term).
        weight: $\eta$ (default 5e-4).
        radius: epochs end before one at which D between the adapted parameters, on the target batches, is beyond this (default
            None: all are taken; the first always is). Adam's steps else leave the region in which the batches tell anything.

    Errors: `InputError` for wrong arguments, such as a radius without a divergence, and in a loop that does not feed it.

    Example:
        >>> import adaptax as ax, optax
        >>> rl = ax.tasks.rl
        >>> family = rl.tabular(states=2, actions=2, horizon=2)
        >>> outer = ax.outer.Proximal(rl.Clipped(0.9), optax.adam(1e-2), epochs=3, divergence=rl.mean_kl)
        >>> method = ax.MetaGradient(ax.Inner(1, 0.1))
        >>> state, _ = ax.train(family.resampling(rl.LVC(0.9)), family.policy(), method, optimizer=outer, steps=2)
        >>> int(state.opt_state[0].count)
        6

    Source: Rothfuss et al. (2019), ProMP, ICLR, algorithm 1; Schulman et al. (2017), PPO, arXiv 1707.06347.
    """

    # The training step then draws the batches once, for the meta-gradient too.
    on_adapted_path: ClassVar[bool] = True

    def __new__(
        cls, loss: Callable[[PyTree, PyTree], Array], optimizer: optax.GradientTransformation | None = None, epochs: int = 5, *,
        divergence: Divergence | None = None, weight: float = 5e-4, radius: float | None = None,
    ):  # fmt: skip
        if not callable(loss):
            raise InputError("Proximal(loss=...) must be a function such as ax.tasks.rl.Clipped().")
        if divergence is not None and not callable(divergence):
            raise InputError("Proximal(divergence=...) must be a function such as ax.tasks.rl.mean_kl, or None.")
        optimizer = optax.adam(1e-3) if optimizer is None else optimizer
        if not isinstance(optimizer, optax.GradientTransformation):
            raise InputError("Proximal(optimizer=...) must be an optax transformation such as optax.adam(1e-3).")
        epochs = check_whole("Proximal", "epochs", epochs)
        weight = check_real("Proximal", "weight", weight, above=0)
        if radius is not None:
            radius = check_real("Proximal", "radius", radius, above=0)
            if divergence is None:
                raise InputError("Proximal(radius=...) needs a divergence, such as divergence=ax.tasks.rl.mean_kl.")
        inner = optax.with_extra_args_support(optimizer)

        def update(
            updates: Any, state: Any, params: Any = None, *, adapted_path: HasAdaptedPath | None = None, **extra: Any
        ) -> Any:
            region = region_of(adapted_path, params, "Proximal", divergence or _no_divergence)

            def epoch(carry):
                number, floats, state, _ = carry
                step, new = inner.update(region.gradient(floats, loss, weight), state, floats)
                # Some optimisers compute in a wider type than that of the parameters.
                moved = optax.apply_updates(floats, step), optax.tree.cast_like(new, state)
                if radius is None:
                    return number + 1, *moved, jnp.array(True)
                within = region.evaluate(moved[0])[1] <= radius
                # The first is taken all the same, so that training cannot stand still without a word.
                return number + 1, *_tree.select(within | (number == 0), moved, (floats, state)), within

            start = jnp.zeros((), jnp.int32), params, state, jnp.array(True)
            final, state = jax.lax.while_loop(lambda carry: (carry[0] < epochs) & carry[3], epoch, start)[1:3]
            return optax.tree.sub(final, params), state

        return super().__new__(cls, optimizer.init, update)


def _no_divergence(old: PyTree, new: PyTree, batch: PyTree) -> Array:
    return jnp.zeros(())
