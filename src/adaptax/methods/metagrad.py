"""The nested meta-gradient: multi-step MAML and its variants."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from adaptax import _tree
from adaptax._checks import check_true_or_false, check_whole
from adaptax._hoist import hoist
from adaptax._optimizers import check_optimizer
from adaptax._precision import check_precision
from adaptax._recursion import Point, check_store, forward, map_rest, recomputed_steps, reverse, threaded
from adaptax._second_order import differentiated_twice
from adaptax.curvature import AbstractCurvature, Exact, FirstOrder
from adaptax.errors import InputError
from adaptax.gradients import AutoDiff
from adaptax.inner import Inner
from adaptax.inner_path import TaskPath
from adaptax.methods.backprop_memory import keeps_no_more
from adaptax.methods.base import AbstractMethod, check_parts
from adaptax.problem import Samples
from adaptax.sequential import Sequential
from adaptax.stepsize.rates import Rates


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

    def __post_init__(self):
        self.anneal = None if self.anneal is None else check_whole("MultiStep", "anneal", self.anneal)

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
    Only the iterates are kept, so memory does not grow with the computation graphs of N steps. The same recursion carries
    inner optimisers, proximal terms and losses at earlier steps. If only some leaves adapt (`Inner(adapt=...)`), the part of
    a finite-sum loss that they do not reach is computed and differentiated once, unless it is inside a function with a
    `jax.jit` of its own.

    Arguments:
        inner: the inner loop (`method.inner`).
        curvature: how $\hat H_j v$ is formed (default `ax.curvature.Exact()`).
        mode: "recursion"; "backprop", plain backpropagation through the loop, an independent check; or "auto" (default): the
            recursion, except where backpropagation gives the same gradient with no more memory and in less time: exact
            derivatives of gradient descent on whole support sets whose intermediate values take less room than the parameters
            that adapt (many features, few examples). It is decided from shapes.
        store: "iterates" (default) keeps all N iterates. A whole number k keeps k of them and takes the steps between them
            again, as few as can be: each at most r times, with r the least number for which $\binom{k+r+1}{k} \ge N$
            (k = 8: 3.3 gradients more a step at N = 1,024). "sqrt" is the k of about $\sqrt{2N}$ at which no step is
            taken again more than once. "offload" keeps all of them in the memory of the host, where the device has one of its
            own: a step's copies go there while the next step is taken, and come back one at a time.
        truncate: K: only the last K steps are differentiated, $\prod_{j=N-K}^{N-1}(I - \alpha\hat H_j)\,\nabla l_i(w_N)$, and
            only their iterates are kept (default None: all). The error is at most $((1+\alpha L)^{N-K} - 1)$ times the
            result; docs/theory.md, section 1, says when it is small.
        microbatches: m: every loss is the mean of the losses of m equal parts of its batch, cut along the leading axis of
            all leaves, and gradients and products are summed over the parts with one part in memory (default None: whole
            batches). The same as the whole for a loss that is a mean over examples. `ax.adapt` and evaluation take whole
            batches.
        samples: sample sizes S, D, T of a resampling problem.
        independent_curvature: whether Hessian factors draw samples of their own (default): an estimate of the gradient
            of the exact-path objective, unbiased given the path. False reuses the step's samples: the gradient of the
            sampled path, as backpropagation gives. Without effect on finite-sum problems, which draw nothing.
        multi_step: `ax.MultiStep(anneal)`: an outer loss at every inner step (default: at the last). The value reported
            stays the target loss at w_N.
        precision: the arithmetic of the losses. Iterates, derivatives on their way back, sums over steps and tasks, and a
            loss's state keep the type of the parameters. None (default): the type of the parameters; products of float32 are
            formed in full, also on devices that would round their factors, unless `jax_default_matmul_precision` is set.
            "bfloat16_curvature": Hessian-vector products in bfloat16, about two thirds of the work, and the steps as by None.
            "tensorfloat32_curvature": the same with TF32, on devices that have it. "bfloat16": everything in bfloat16.
            `ax.adapt`, evaluation and step-size rules go by None. [Errors](benchmarks.md#errors-by-precision).

    Errors: `InputError` for an unknown mode, store or precision, for "bfloat16" with a strategy that takes differences, and for
    "backprop" of a resampling problem with independent curvature, which backpropagation cannot have.

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
    store: str | int = eqx.field(static=True)
    samples: Samples
    independent_curvature: bool = eqx.field(static=True)
    multi_step: MultiStep | None
    precision: str | None = eqx.field(static=True)
    truncate: int | None = eqx.field(static=True)
    microbatches: int | None = eqx.field(static=True)

    def __init__(
        self,
        inner: Inner,
        curvature: AbstractCurvature = Exact(),  # noqa: B008
        *,
        mode: str = "auto",
        store: str | int = "iterates",
        samples: Samples = Samples(),  # noqa: B008
        independent_curvature: bool = True,
        multi_step: MultiStep | None = None,
        precision: str | None = None,
        truncate: int | None = None,
        microbatches: int | None = None,
    ):
        check_parts("MetaGradient", inner, samples)
        if not isinstance(curvature, AbstractCurvature):
            raise InputError("curvature= must be a strategy such as ax.curvature.Exact().")
        if mode not in ("auto", "recursion", "backprop"):
            raise InputError(f'mode={mode!r} must be "auto", "recursion" or "backprop".')
        if mode == "backprop" and not (isinstance(curvature, Exact) and isinstance(inner.gradients, AutoDiff)):
            raise InputError(
                'mode="backprop" differentiates exactly: use curvature=ax.curvature.Exact() and gradients that are '
                'differentiated, or mode="recursion".'
            )
        if multi_step is not None and not isinstance(multi_step, MultiStep):
            raise InputError("multi_step= must be ax.MultiStep(anneal).")
        check_store(store)
        check_precision(precision, mode, curvature, inner.gradients)
        self.inner, self.curvature, self.mode, self.store = inner, curvature, mode, store
        self.samples, self.multi_step, self.precision = samples, multi_step, precision
        self.truncate = None if truncate is None else check_whole("MetaGradient", "truncate", truncate)
        self.microbatches = None if microbatches is None else check_whole("MetaGradient", "microbatches", microbatches)
        self.independent_curvature = check_true_or_false("MetaGradient", "independent_curvature", independent_curvature)

    @property
    def stochastic(self):
        return self.curvature.stochastic or self.inner.gradients.stochastic

    @property
    def learns(self):
        return self.inner.learns

    @property
    def keeps_draws(self):
        return isinstance(self.inner.gradients, AutoDiff) and isinstance(self.curvature, Exact | FirstOrder)

    def at(self, step):
        multi_step = None if self.multi_step is None else self.multi_step.at(step)
        return MetaGradient(
            self.inner, self.curvature.at(step), mode=self.mode, store=self.store, samples=self.samples,
            independent_curvature=self.independent_curvature, multi_step=multi_step, precision=self.precision,
            truncate=self.truncate, microbatches=self.microbatches,
        )  # fmt: skip

    def cost(self):
        steps, gradient = self.inner.steps, self.inner.gradients.cost()
        by_rates = self.inner.learns
        kept = steps if self.truncate is None else min(steps, self.truncate)
        # Weights of an outer loss at w_1..w_N, of which those at w_{N-K}..w_N count.
        judged = steps if kept == steps else kept + 1
        gradients = steps + (judged if self.multi_step is not None and steps else 1)
        if self.mode != "backprop":
            again = not self.inner.update.linear or (by_rates and not self.curvature.gives_gradient)
            gradients += recomputed_steps(kept, self.store) + (kept if again else 0)
        return gradient.times(gradients).plus(self.curvature.cost(gradient).times(kept))

    def check(self, problem, key):
        super().check(problem, key)
        if self.mode == "backprop" and problem.stochastic and self.independent_curvature:
            raise InputError('mode="backprop" reuses the step samples: pass independent_curvature=False with it.')
        if self.microbatches is not None and getattr(problem, "carries", False):
            raise InputError("A loss with a state moves it by the whole batch: leave microbatches= out, or state=.")
        if getattr(problem, "outer", "last") == "path":
            if self.multi_step is not None:
                raise InputError('outer="path" judges every inner step already: leave multi_step= out, or take outer="last".')
            if not self.inner.steps:
                raise InputError('outer="path" takes the mean of the losses of inner steps: take one or more.')

    def products(self, path):
        marks, rest = jnp.zeros(max(path.steps, 1)), path.rest

        # The recursion carries the marks as if they were parameters that the loss does not depend on.
        def unmarked(pair):
            return pair[0]

        marked = path.with_loss(lambda w, rest, j: path.loss(w, map_rest(unmarked, rest), j), (rest, marks), unmarked)
        factors = path.factors(self.curvature, path.curvature_loss(self.independent_curvature))

        def beside(pair, marks):
            return pair and (pair[0], map_rest(lambda rest: (rest, marks), pair[1]))

        def product(w, rest, u, j):
            gradient, along = factors[0](w, map_rest(unmarked, rest), u, j)
            kind = jnp.where(_tree.all_finite(u), jnp.where(_tree.all_finite(along), 0, 2), 1)
            return beside(gradient, marks), beside(along, marks.at[j].set(kind))

        def gradient(w, rest, j):
            return beside(factors[1](w, map_rest(unmarked, rest), j), marks)

        walked = marked.forward(self.store, self.truncate)
        _, last, by_losses = path.outcome(walked)
        return reverse(
            product, gradient, marked.descent, walked, marked.rest, path.rates, beside(last, marks),
            by_rates=False, losses_cotangent=by_losses, store=self.store, truncate=self.truncate,
        ).rest[1]  # fmt: skip

    def one_task(self, problem, params, task, key):
        path = self.path(problem, params, task, key)
        check_optimizer(self.inner.optimizer, path.split.adapting, self.inner.steps, not isinstance(self.curvature, FirstOrder))
        weights = None if self.multi_step is None or not self.inner.steps else self.multi_step.weights(self.inner.steps)
        backprop = self.mode == "backprop" or (self.mode == "auto" and self._plain(path) and keeps_no_more(path))
        differentiate = self._by_backpropagation if backprop else self._by_recursion
        value, losses, (by_w, by_frozen, by_rates) = differentiate(path, weights)
        return value, path.outer_gradient(by_w, by_frozen, by_rates), path.info(losses, value)

    def _by_recursion(self, path: TaskPath, weights: Array | None):
        """The target loss, the inner losses, and the derivatives by w_0, the frozen parameters and the step sizes."""
        walked, hoisted = path, None
        if self._hoists(path):
            hoisted = hoist(path.loss, path.split.adapting, path.rest)
            walked = path.with_loss(hoisted.loss, hoisted.known)
        forward_pass = walked.forward(self.store, self.truncate)
        value, last, by_losses = path.outcome(forward_pass)
        targets = None
        if weights is not None:
            last = _tree.scale(weights[-1], last)
            earlier = jnp.concatenate([jnp.zeros((1,)), weights[:-1]])
            targets = earlier, lambda w, frozen, j: path.target_gradient(w, frozen, j)[1]
        loss, behind, known = path.curvature_loss(self.independent_curvature), hoisted, None
        if hoisted is not None and not path.one_arithmetic:
            behind = hoist(loss, path.split.adapting, path.rest)
            known = behind.known
        product, gradient = path.factors(self.curvature, loss if behind is None else behind.loss)
        if known is not None:
            # The way back in another arithmetic has a known part of its own.
            one, other = product, gradient
            product, gradient = (lambda w, _, u, j: one(w, known, u, j)), (lambda w, _, j: other(w, known, j))
        found = reverse(
            product, gradient, walked.descent, forward_pass, walked.rest, path.rates,
            last if behind is None else (last[0], optax.tree.zeros_like(behind.known)),
            by_rates=path.learns, losses_cotangent=by_losses, targets=targets, store=self.store, truncate=self.truncate,
        )  # fmt: skip
        by_frozen = found.rest if behind is None else optax.tree.add(last[1], behind.pull_back(found.rest))
        return value, forward_pass.losses, (found.w, by_frozen, found.rates)

    def _by_backpropagation(self, path: TaskPath, weights: Array | None):
        """The same by plain backpropagation through the loop."""
        rates, steps = path.rates, self.inner.steps

        def objective(w, frozen, tree):
            walked = forward(path.descent, w, frozen, Rates(tree, rates.per_step), steps, "iterates", self.truncate)
            value = last = path.value(Point(walked.final, None, walked.state), walked.losses, frozen)
            if weights is not None:
                first = 1 if self.truncate is None else max(steps - self.truncate, 1)
                early = jax.tree.map(lambda leaf: leaf[first - steps :], walked.iterates) if first < steps else None
                at = jax.vmap(lambda at, j: path.target(at.w, threaded(frozen, at.state), j))(early, jnp.arange(first, steps))
                value = jnp.sum(weights[first - 1 : -1] * at) + weights[-1] * last
            return value, (last, walked.losses)

        differentiate = jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)
        with differentiated_twice():
            (_, (value, losses)), derivatives = differentiate(path.split.adapting, path.rest, rates.tree)
        return value, losses, derivatives

    def _plain(self, path: TaskPath) -> bool:
        """Whether backpropagation does the same: exact derivatives of gradient descent on whole support sets."""
        exact = isinstance(self.curvature, Exact) and isinstance(self.inner.gradients, AutoDiff)
        descent = self.inner.update.linear and self.inner.update.proximal is None and self.inner.steps > 0
        options = (self.precision, self.microbatches, self.truncate, self.multi_step)
        ordinary = self.store == "iterates" and all(option is None for option in options)
        alike = not path.problem.stochastic and not isinstance(path.problem, Sequential)
        return exact and descent and ordinary and alike and not self._hoists(path)

    def _hoists(self, path: TaskPath) -> bool:
        """Whether part of the loss is the same at all inner steps, and nothing but its exact derivatives is asked for."""
        exact = isinstance(self.curvature, Exact) and isinstance(self.inner.gradients, AutoDiff)
        alike = not path.problem.stochastic and not isinstance(path.problem, Sequential)
        return exact and alike and self.multi_step is None and bool(jax.tree.leaves(path.rest))
