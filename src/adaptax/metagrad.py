"""The nested meta-gradient: multi-step MAML and its variants."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from adaptax import _tree
from adaptax.curvature import AbstractCurvature, Exact
from adaptax.errors import InputError
from adaptax.gradients import AutoDiff
from adaptax.inner import Info, Inner
from adaptax.method import AbstractMethod, check_parts
from adaptax.objective import CURVATURE, LAST, STEP, TARGET, factors, fold, plain, step_loss
from adaptax.problem import Samples
from adaptax.recursion import check_store, forward, recomputed_steps, reverse
from adaptax.stepsize.learned import Learned, Meta
from adaptax.stepsize.rates import Rates
from adaptax.unchanging import precompute


class MultiStep(eqx.Module):
    r"""Weights $c_1..c_N$ of an outer loss at every inner step, $\sum_{j=1}^N c_j\,l_T(w_j)$, moved to the last one.

    At meta-step k the weight of each earlier step is $\frac1N\max(0, 1 - k/\text{anneal})$, and the last one has the rest.
    Outside `ax.train` and `ax.make_step` the weights are those of meta-step 0; `method.at(step)` gives another's.

    Arguments:
        anneal: meta-steps until only the last step counts (default None: all steps count alike throughout).

    Errors: `InputError` if anneal is not a positive whole number.

    Example:
        >>> import adaptax as ax
        >>> [round(float(c), 2) for c in ax.MultiStep(anneal=100).at(50).weights(4)]
        [0.12, 0.12, 0.12, 0.62]

    Source: Antoniou et al. (2019), MAML++, arXiv 1810.09502.
    """

    anneal: int | None = eqx.field(static=True, default=None)
    step: Any = eqx.field(default=0, kw_only=True)

    def __check_init__(self):
        anneal = self.anneal
        if anneal is not None and (isinstance(anneal, bool) or not hasattr(anneal, "__index__") or anneal < 1):
            raise InputError(f"MultiStep(anneal={anneal!r}) must be a whole number of at least 1, or None.")

    def at(self, step: Any) -> "MultiStep":
        """The weights at a meta-step."""
        return MultiStep(self.anneal, step=jnp.asarray(step))

    def weights(self, steps: int) -> Array:
        """c_1..c_N."""
        left = 1.0 if self.anneal is None else jnp.maximum(1 - jnp.asarray(self.step) / self.anneal, 0)
        early = jnp.full((max(steps - 1, 0),), 1 / max(steps, 1)) * left
        return jnp.concatenate([early, (1 - jnp.sum(early))[None]])


class MetaGradient(AbstractMethod):
    r"""The nested meta-gradient $\nabla\mathcal L_i(w) = \prod_{j=0}^{N-1}(I - \alpha\nabla^2 l_i(w_j))\,\nabla l_i(w_N)$.

    One reverse recursion: $v \leftarrow \nabla l_T(w_N)$, then $v \leftarrow v - \alpha\hat H_j v$ for j = N-1 ... 0.
    Only the iterates are kept, so memory does not grow with the computation graphs of N steps. Inner optimisers,
    proximal terms and losses at earlier steps are carried by the same recursion. If only some leaves adapt
    (`Inner(adapt=...)`), what they do not reach in a finite-sum loss is computed and differentiated once, unless it is
    inside a function that is compiled with the rest.

    Arguments:
        inner: the inner loop (`method.inner`).
        curvature: how $\hat H_j v$ is formed (default `ax.curvature.Exact()`).
        mode: "recursion" (default), or "backprop": plain backpropagation through the loop, an independent check.
        store: "iterates" (default) keeps all N iterates; "sqrt" keeps about $\sqrt N$ and recomputes the others, which
            costs one more gradient a step.
        samples: sample sizes S, D, T of a resampling problem.
        independent_curvature: whether Hessian factors draw samples of their own (default): an estimate of the gradient
            of the exact-path objective, unbiased given the path. False reuses the step's samples: the gradient of the
            sampled path, as backpropagation gives. Without effect on finite-sum problems, which draw nothing.
        multi_step: `ax.MultiStep(anneal)`: an outer loss at every inner step (default: at the last). The value reported
            stays the target loss at w_N.

    Errors: `InputError` for an unknown mode or store, and for "backprop" of a resampling problem with independent
    curvature, which backpropagation cannot have.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), lambda key: None)
        >>> method = ax.MetaGradient(ax.Inner(steps=2, stepsize=0.5))
        >>> value, grad, info = method(problem, jnp.zeros(2), ax.Task(jnp.ones(2), jnp.ones(2)))
        >>> float(value), grad, info.losses  # w_2 = 3/4, gradient (1 - 1/2)^2 (w_2 - 1)
        (0.0625, Array([-0.0625, -0.0625], dtype=float32), Array([1.  , 0.25], dtype=float32))

    Source: docs/theory.md, sections 1 to 3; cf. Ji, Yang, Liang (2022), JMLR 23.
    """

    inner: Inner
    curvature: AbstractCurvature
    mode: str = eqx.field(static=True)
    store: str = eqx.field(static=True)
    samples: Samples
    independent_curvature: bool = eqx.field(static=True)
    multi_step: MultiStep | None

    def __init__(
        self,
        inner: Inner,
        curvature: AbstractCurvature = Exact(),  # noqa: B008
        *,
        mode: str = "recursion",
        store: str = "iterates",
        samples: Samples = Samples(),  # noqa: B008
        independent_curvature: bool = True,
        multi_step: MultiStep | None = None,
    ):
        check_parts("MetaGradient", inner, samples)
        if not isinstance(curvature, AbstractCurvature):
            raise InputError("curvature= must be a strategy such as ax.curvature.Exact().")
        if mode not in ("recursion", "backprop"):
            raise InputError(f'mode={mode!r} must be "recursion" or "backprop".')
        if mode == "backprop" and not (isinstance(curvature, Exact) and isinstance(inner.gradients, AutoDiff)):
            raise InputError(
                'mode="backprop" differentiates exactly: use curvature=ax.curvature.Exact() and gradients that are '
                'differentiated, or mode="recursion".'
            )
        if multi_step is not None and not isinstance(multi_step, MultiStep):
            raise InputError("multi_step= must be ax.MultiStep(anneal).")
        check_store(store)
        self.inner, self.curvature, self.mode, self.store = inner, curvature, mode, store
        self.samples, self.independent_curvature, self.multi_step = samples, bool(independent_curvature), multi_step

    @property
    def stochastic(self):
        return self.curvature.stochastic or self.inner.gradients.stochastic

    def at(self, step):
        multi_step = None if self.multi_step is None else self.multi_step.at(step)
        return MetaGradient(
            self.inner, self.curvature.at(step), mode=self.mode, store=self.store, samples=self.samples,
            independent_curvature=self.independent_curvature, multi_step=multi_step,
        )  # fmt: skip

    def cost(self):
        steps, gradient = self.inner.steps, self.inner.gradients.cost()
        by_rates = isinstance(self.inner.stepsize, Learned)
        gradients = steps + (steps if self.multi_step is not None and steps else 1)
        if self.mode == "recursion":
            again = not self.inner.update.linear or (by_rates and not self.curvature.gives_gradient)
            gradients += recomputed_steps(steps, self.store) + (steps if again else 0)
        return gradient.times(gradients).plus(self.curvature.cost(gradient).times(steps))

    def check(self, problem, key):
        super().check(problem, key)
        if self.mode == "backprop" and problem.stochastic and self.independent_curvature:
            raise InputError('mode="backprop" reuses the step samples: pass independent_curvature=False with it.')

    def _precomputes(self, problem, split) -> bool:
        """Whether a part of the loss is the same at all inner steps, and all that is asked of it is exact derivatives."""
        exact = isinstance(self.curvature, Exact) and isinstance(self.inner.gradients, AutoDiff)
        return exact and not problem.stochastic and self.multi_step is None and bool(jax.tree.leaves(split.frozen))

    def one_task(self, problem, params, task, key):
        inner, samples, given = self.inner, self.samples, params
        learned = isinstance(inner.stepsize, Learned)
        params, rates = inner.unpack(params)
        split = inner.split(params)
        rebuild = plain(problem, task, split.static)
        loss = step_loss(rebuild, key, STEP, samples.step)
        descent = inner.descent(loss, key)
        # c_1..c_{N-1}, and the last weight.
        weights = None if self.multi_step is None or not inner.steps else self.multi_step.weights(inner.steps)

        def target(w, frozen, j):
            _, _, params = rebuild(w, frozen)
            # Losses at earlier steps draw samples of their own.
            fresh = fold(key, TARGET) if j is None else fold(key, TARGET, j)
            return problem.target_loss(params, problem.target_batch(task, params, fresh, samples.target))

        if self.mode == "backprop":

            def through(w, frozen, tree):
                path = forward(descent, w, frozen, Rates(tree, rates.per_step), inner.steps, "iterates")
                value = last = target(path.final, frozen, None)
                if weights is not None:
                    early = jax.tree.map(lambda leaf: leaf[1:], path.iterates[0])
                    at = jax.vmap(lambda w, j: target(w, frozen, j))(early, jnp.arange(1, inner.steps))
                    value = jnp.sum(weights[:-1] * at) + weights[-1] * last
                return value, (last, path.losses)

            (_, (value, losses)), (v, v_frozen, rates_bar) = jax.value_and_grad(through, argnums=(0, 1, 2), has_aux=True)(
                split.adapting, split.frozen, rates.tree
            )
        else:
            rest, remainder = split.frozen, None
            if self._precomputes(problem, split):
                remainder = precompute(loss, split.adapting, split.frozen)
                rest, loss = remainder.known, remainder.loss
                descent = inner.descent(loss, key)
            path = forward(descent, split.adapting, rest, rates, inner.steps, self.store)
            losses = path.losses

            def by_both(w, frozen, j):
                use = fold(key, LAST) if j is None else fold(key, LAST, j)
                return inner.gradients.value_and_gradient(lambda x: target(x[0], x[1], j), (w, frozen), use)

            value, cotangent = by_both(path.final, split.frozen, None)
            targets = None
            if weights is not None:
                cotangent = _tree.scale(weights[-1], cotangent)
                early = jnp.concatenate([jnp.zeros((1,)), weights[:-1]])
                targets = early, lambda w, frozen, j: by_both(w, frozen, j)[1]
            purpose, size = (CURVATURE, samples.curvature) if self.independent_curvature else (STEP, samples.step)
            loss = step_loss(rebuild, key, purpose, size) if remainder is None else loss
            product, gradient = factors(self.curvature, inner.gradients, loss, key)
            last = cotangent if remainder is None else (cotangent[0], _tree.zeros_like(rest))
            v, v_frozen, rates_bar, _ = reverse(
                product, gradient, descent, path, rest, rates, last, by_rates=learned, targets=targets
            )
            v_frozen = v_frozen if remainder is None else _tree.add(cotangent[1], remainder.pull_back(v_frozen))
        plain_given = given.params if learned else given
        grad = inner.pull_back(plain_given, eqx.combine(v, v_frozen))
        info = Info(rates.mean(), losses, value)
        return value, Meta(grad, rates_bar) if learned else grad, info
