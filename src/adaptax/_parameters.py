"""What a parameter is: one rule for adapting, training, evaluating, measuring and saving.

A leaf is a parameter if it is a floating-point array, no Flax variable other than an `nnx.Param` holds it, the problem's
`trainable=` selects it, and a derivative of the loss reaches it. Statistics behind `stop_gradient` fail the last test, which
is made on the program and not on numbers: a parameter whose gradient happens to be zero stays one.
"""

from collections import OrderedDict
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from adaptax import _tree
from adaptax._keys import any_key
from adaptax.errors import InputError
from adaptax.gradients import AutoDiff
from adaptax.inner import Inner, Split
from adaptax.problem import AbstractProblem, Samples
from adaptax.stepsize.learned import LearnedRates, Meta

_KEPT = 64
_known: OrderedDict[Any, list[PyTree]] = OrderedDict()


def split(problem: AbstractProblem, inner: Inner, params: PyTree, task: PyTree, samples: Samples) -> Split:
    """The parts of w_0: the leaves that adapt, the other floating-point arrays, and everything else.

    Parameters that no derivative of the inner loss reaches do not adapt: they are among the others, with their own derivative
    by the target loss.

    Arguments:
        problem, inner, samples: the problem, its inner loop, and its sample sizes.
        params: the outer problem's parameters.
        task: one task, or its shapes.

    Errors: `InputError` for complex parameters, and where nothing adapts.
    """
    w = _tree.as_parameters(inner.initial(params))
    allowed, of_losses = _tree.parameter_mask(problem.trainable, w), _reached(problem, inner, None, w, task, samples)
    _refuse_complex(w, _tree.both(allowed, _either(of_losses)))
    adapting = _tree.both(_tree.mask_tree(inner.adapt, w), _tree.both(allowed, of_losses[0]))
    if inner.steps and not any(jax.tree.leaves(adapting)):
        text = "No derivative of the loss reaches a parameter that adapts, so that inner steps would change nothing"
        raise InputError(f"{text}: make the loss depend on the parameters, or let adapt= and trainable= select others.")
    w_adapting, others = eqx.partition(w, adapting)
    return Split(w_adapting, *eqx.partition(others, _tree.both(allowed, jax.tree.map(_tree.is_floating, w))))


def trained(problem: AbstractProblem, inner: Inner, params: PyTree, task: PyTree, samples: Samples) -> PyTree:
    """Which leaves of the outer problem's parameters an outer optimiser moves, as a tree of booleans.

    Arguments: as for `split`; with None for `task` every derivative counts as reached.
    """
    plain = _tree.as_parameters(params.params if isinstance(params, Meta) else params)
    allowed = _tree.parameter_mask(problem.trainable, plain)
    reached = _either(_reached(problem, inner, inner.start, plain, task, samples))
    mask = _tree.both(allowed, reached)
    _refuse_complex(plain, mask)
    mask = _tree.both(mask, jax.tree.map(_tree.is_floating, plain))
    if not isinstance(params, Meta):
        return mask
    rates = params.stepsize
    return Meta(mask, rates.moved if isinstance(rates, LearnedRates) else jax.tree.map(eqx.is_array, rates))


def _reached(problem: Any, inner: Inner, start: Any, params: PyTree, task: PyTree, samples: Samples) -> list[PyTree]:
    """For the inner loss, and for the target loss if the task has one: which leaves its derivative reaches.

    Every leaf, where derivatives are not formed by differentiation, and where a loss fails, which is said elsewhere.
    """
    everything = [jax.tree.map(lambda _: True, params)]
    if task is None or not isinstance(inner.gradients, AutoDiff):
        return everything
    leaves, treedef = jax.tree.flatten((params, problem, start, task))
    leaves = [jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) if _tree.has_shape(x) else x for x in leaves]
    key = (treedef, tuple((type(x), x) for x in leaves), samples)
    try:
        if key in _known:
            return _known[key]
    except TypeError:  # something in it cannot be looked up
        key = None
    treedef_of_params = jax.tree.structure(params)
    try:
        found = [jax.tree.unflatten(treedef_of_params, mask) for mask in _trace(leaves, treedef, params, samples)]
    except Exception:  # the same call is made in earnest later, and refused with a sentence there
        return everything
    if key is not None:
        _known[key] = found
        while len(_known) > _KEPT:
            _known.popitem(last=False)
    return found


def _trace(leaves: list[Any], treedef: Any, params: PyTree, samples: Samples) -> list[list[bool]]:
    """Whether a derivative reaches each leaf of the parameters, which are the first of these leaves, for each loss."""
    from jax.interpreters import partial_eval

    count = len(jax.tree.leaves(params))
    varied = [i for i in range(count) if _tree.has_shape(leaves[i]) and jnp.issubdtype(leaves[i].dtype, jnp.inexact)]
    fixed = [i for i, leaf in enumerate(leaves) if _tree.has_shape(leaf) and i not in varied]

    def derivatives(tangents, variables, arrays, key):
        def losses(variables):
            given = dict(zip(varied, variables, strict=True)) | dict(zip(fixed, arrays, strict=True))
            values = [given.get(i, leaf) for i, leaf in enumerate(leaves)]
            params, problem, start, task = jax.tree.unflatten(treedef, values)
            w = params if start is None else start(params)
            begun = problem.initial_state(w)
            inner, state = problem.step_loss(w, problem.step_batch(task, w, key, samples.step), begun)
            moved = [x for x in jax.tree.leaves((begun, state)) if _tree.is_floating(x)]
            judged = problem.stochastic or task.target is not None
            if judged:
                moved.append(problem.outer_loss(w, problem.target_batch(task, w, key, samples.target), begun))
            # A state may carry a derivative to the outer loss that none of the losses at this step has.
            return [inner, sum(map(jnp.sum, moved))] if moved else [inner]

        return jax.jvp(losses, (variables,), (tangents,))[1]

    at, arrays = ([leaves[i] for i in places] for places in (varied, fixed))
    jaxpr = jax.make_jaxpr(derivatives)(at, at, arrays, any_key()).jaxpr
    masks = []
    for output in range(len(jaxpr.outvars)):
        # A tangent that this derivative does not need is one of a leaf that it does not reach.
        used = partial_eval.dce_jaxpr(jaxpr, [i == output for i in range(len(jaxpr.outvars))])[1]
        reached = {i for i, needed in zip(varied, used, strict=False) if needed}
        masks.append([i in reached for i in range(count)])
    return masks


def _either(masks: list[PyTree]) -> PyTree:
    return masks[0] if len(masks) == 1 else jax.tree.map(lambda *flags: any(flags), *masks)


def _refuse_complex(params: PyTree, mask: PyTree) -> None:
    """Refuse complex parameters, whose gradients optimisers and step-size rules do not understand alike."""
    chosen = jax.tree_util.tree_leaves_with_path(eqx.filter(params, mask))
    for path, leaf in chosen:
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            name = _tree.path_name(path)
            raise InputError(
                f"The parameter{f' {name}' if name else 's'} ({leaf.dtype}{list(leaf.shape)}) is complex: give its real and "
                "imaginary part as two arrays and join them in the loss with jax.lax.complex, or exclude it by trainable=."
            )
