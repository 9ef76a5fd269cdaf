"""Whether an optax transformation can be the inner optimiser: asked of it by trying it, since no list could know them all."""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from adaptax import _tree
from adaptax._tree import first_line
from adaptax._update import Update
from adaptax.errors import InputError

# Enough for rules that are others in their first steps, such as the rectification of RAdam.
_STEPS = 8
# Along each axis; the third entry is never zero.
_LENGTH = 3
_REMEDIES = (1e-8, 1e-6, 1e-4)


def check_is_optimizer(optimizer: Any) -> None:
    """Refuse anything but an optax optimiser, and one that asks for more than gradients."""
    if optimizer is None:
        return
    if not isinstance(optimizer, optax.GradientTransformation):
        name = getattr(optimizer, "__name__", "")
        found = f"{type(optimizer).__name__} {name}".strip()
        remedy = f": call it, as in {name}(...)" if callable(optimizer) and name else ""
        if hasattr(optimizer, "gradient_transformation"):
            remedy = ": pass its .gradient_transformation()"
        elif isinstance(optimizer, tuple | list):
            remedy = ": put transformations together by optax.chain"
        raise InputError(
            f"Inner(optimizer=...) must be an optax transformation such as optax.sgd(0.01, momentum=0.9), not {found}{remedy}."
        )
    try:
        jax.eval_shape(lambda w: optimizer.update(w, optimizer.init(w), w), jnp.zeros(2))
    except Exception as error:  # An optimiser for parameters of a certain structure cannot be tried on a vector.
        _refuse_more_than_gradients(error)


def check_optimizer(optimizer: Any, adapting: PyTree, steps: int, by_gradient: bool = True) -> None:
    """Refuse an optimiser whose trajectory has no finite derivative on parameters of this structure.

    Arguments:
        optimizer: an optax transformation, or None.
        adapting: the parameters; only their structure, shapes and number types are used.
        steps: N.
        by_gradient: whether derivatives by the gradients are wanted, which first-order methods do without.
    """
    if optimizer is None or not steps:
        return
    leaves, structure = jax.tree.flatten(adapting)
    kinds = tuple((tuple(leaf.shape), jnp.dtype(leaf.dtype)) for leaf in leaves)
    sentence = _sentence(optimizer, structure, kinds, min(steps, _STEPS), by_gradient, jnp.result_type(float))
    if sentence is not None:
        raise InputError(sentence)


@functools.lru_cache(maxsize=1024)
def _sentence(optimizer, structure, kinds, steps, by_gradient, precision) -> str | None:
    """What is wrong with the optimiser, if anything is."""

    def failures(candidate):
        return _failures(candidate, structure, kinds, steps, by_gradient)

    try:
        failed = failures(optimizer)
    except Exception as error:
        _refuse_more_than_gradients(error)
        text = f"The inner optimiser {_name(optimizer)} fails on the parameters that adapt ({first_line(error)})"
        return f"{text}: give one that takes gradients of their structure."
    if not failed.any():
        return None
    where = "even where no gradient is zero"
    if not failed[0]:
        where = "where a parameter's gradient is zero (behind a dead relu, say)"
        if not failed[1]:
            where = "where the gradient of a whole array is zero (of a layer that is not used, say)"
    culprit, remedy = _culprit(optimizer, failures), "give another, such as optax.sgd(0.01, momentum=0.9)"
    for value in _REMEDIES:
        better = _rebuilt(culprit, eps_root=value)
        if better is not None and not _fails(failures, better):
            remedy = f"give it eps_root={value:.0e}".replace("e-0", "e-")
            break
    return f"The inner optimiser ({_name(culprit)}) has no finite derivative {where}, so meta-gradients would be NaN: {remedy}."


def _refuse_more_than_gradients(error: Exception) -> None:
    """Refuse an optimiser that failed since it was given gradients, state and parameters only."""
    if any(words in str(error) for words in ("keyword-only argument", "must be provided to")):
        text = f"The inner optimiser asks for more than gradients ({first_line(error)})"
        raise InputError(f"{text}: line searches and the like cannot be used in the inner loop.") from error


def _failures(optimizer, structure, kinds, steps: int, by_gradient: bool) -> np.ndarray:
    """Which patterns of zeros in the gradients give a trajectory or a derivative that is not finite."""
    small = [(tuple(min(n, _LENGTH) for n in shape), dtype) for shape, dtype in kinds]
    with jax.ensure_compile_time_eval():
        try:
            return _try(optimizer, structure, small, steps, by_gradient)
        except Exception:
            # Some transformations hold arrays of the parameters' own shapes.
            return _try(optimizer, structure, kinds, steps, by_gradient)


def _try(optimizer, structure, kinds, steps: int, by_gradient: bool) -> np.ndarray:
    rng, update = np.random.default_rng(0), Update(optimizer)

    def draw(shape):
        return rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)

    def tree(leaves):
        return jax.tree.unflatten(structure, leaves)

    # No zeros; rows, columns and entries of zero; and whole leaves of zero too, some in each of the last patterns.
    apart = min(len(kinds), 4) if len(kinds) > 1 else 0
    patterns = [
        [_zeros(shape, pattern, steps) & (pattern < 2 or k % apart != pattern - 2) for k, (shape, _) in enumerate(kinds)]
        for pattern in range(2 + apart)
    ]
    w = tree([jnp.asarray(draw(shape), dtype) for shape, dtype in kinds])
    drawn = [draw((steps, *shape)) for shape, _ in kinds]
    gradients = tree([
        jnp.asarray(np.stack([g * pattern[k] for pattern in patterns]), kinds[k][1]) for k, g in enumerate(drawn)
    ])  # fmt: skip
    rate = jnp.ones(())

    def trajectory(gradients):
        def step(carry, g):
            at, opt_state = carry
            return update(at, opt_state, g, w, rate), carry

        end, path = jax.lax.scan(step, (w, update.init(w)), gradients)

        def back(cotangents, x):
            (at, opt_state), g = x
            pulled = update.pull(at, opt_state, g, w, rate, cotangents)
            good = _tree.all_finite((pulled.gradient, pulled.w) if by_gradient else pulled.w)
            return (pulled.w, pulled.opt_state), good

        floats = optax.tree.zeros_like(eqx.filter(end[1], _tree.is_floating))
        (_, by_state), good = jax.lax.scan(back, (end[0], floats), (path, gradients), reverse=True)
        start = update.pull_init(w, by_state)
        return _tree.all_finite(end[0]) & jnp.all(good) & (_tree.all_finite(start) if by_gradient else True)

    return ~np.asarray(jax.jit(jax.vmap(trajectory))(gradients))


def _zeros(shape: tuple[int, ...], pattern: int, steps: int) -> np.ndarray:
    """False where a gradient is zero at each step: the second entries of the last axis always, those of the first at times."""
    kept = np.ones((steps, *shape), bool)
    if pattern and shape:
        kept[..., 1:2] = False
        kept[1::2, 1:2] = False
    return kept


def _fails(failures, optimizer) -> bool:
    try:
        return bool(failures(optimizer).any())
    except Exception:
        return False


def _culprit(optimizer: Any, failures) -> Any:
    """The innermost part of a transformation that fails by itself."""
    for part in _parts(optimizer):
        if _fails(failures, part):
            return _culprit(part, failures)
    return optimizer


def _held(optimizer: Any) -> dict[str, Any]:
    """The values that the functions of a transformation close over, by name."""
    held = {}
    for function in (optimizer.init, optimizer.update):
        function = inspect.unwrap(function)
        code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
        for name, cell in zip(() if code is None else code.co_freevars, cells, strict=False):
            held[name] = cell.cell_contents
    return held


def _parts(optimizer: Any) -> Iterator[Any]:
    """The transformations that a transformation is made of, as far as they can be seen."""
    held = _held(optimizer)
    if "init_fns" in held and "update_fns" in held:
        yield from map(optax.GradientTransformationExtraArgs, held["init_fns"], held["update_fns"])
    if "inner_factory" in held:
        with contextlib.suppress(Exception):
            arguments = held["other_hps"] | held["numeric_hps"] | dict.fromkeys(held["sched_hps"], 1.0)
            yield held["inner_factory"](**arguments)
    for value in held.values():
        inner = list(value.values()) if isinstance(value, dict) else value
        for part in (
            inner if isinstance(inner, list | tuple) and not isinstance(inner, optax.GradientTransformation) else [inner]
        ):
            if isinstance(part, optax.GradientTransformation):
                yield part


def _name(optimizer: Any) -> str:
    """The function that made a transformation, by its name."""
    function = inspect.unwrap(optimizer.update)
    name = getattr(function, "__qualname__", type(function).__name__).split(".")[0]
    return f"optax.{name}" if hasattr(optax, name) else f"optax.contrib.{name}" if hasattr(optax.contrib, name) else name


def _rebuilt(optimizer: Any, **changed: Any) -> Any:
    """The same transformation with other arguments, or None where it has no such arguments or hides the others."""
    place, name = _name(optimizer).rpartition(".")[::2]
    maker = getattr({"optax": optax, "optax.contrib": optax.contrib}.get(place), name, None)
    if maker is None or not set(changed) <= set(inspect.signature(maker).parameters):
        return None
    held = _held(optimizer)
    given = {k: held[k] for k in inspect.signature(maker).parameters if k in held} | changed
    try:
        return maker(**given)
    except Exception:
        return None
