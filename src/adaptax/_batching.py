"""How many tasks at a time: vmap within a group of tasks, one group after another."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import PyTree

from adaptax._checks import check_whole
from adaptax._keys import drawn_shape, shape_of
from adaptax._small_products import unrolled
from adaptax.errors import InputError
from adaptax.problem import AbstractProblem

# Bytes that the tasks in flight may hold together. On a CPU a few small tasks share the fixed cost of an operation, and larger
# groups only leave the cache; an accelerator needs large batches to be busy, so it gets a share of its memory. Where results
# are summed a small batch is one group, since the groups decide how the sum is rounded.
_CACHE, _SUMMED = 3 << 17, 4 << 20
_SHARE, _ACCELERATOR = 1 / 16, 2 << 30


class Traced:
    """A function of one task as a program: it is traced once, to see what it holds, and then run for every task.

    Arguments:
        function: from the inputs of one task to arrays.
        inputs: the inputs of all tasks, each leaf with their leading axis.

    Attributes: `outputs` (the shapes of its results), `held` (the most bytes that it holds at any time, apart from what all
    tasks share), `host` (whether it calls the host).
    """

    def __init__(self, function: Callable[[Any], Any], inputs: PyTree):
        leaves, treedef = jax.tree.flatten(inputs)
        results: list[Any] = []

        def flat(*leaves):
            values, structure = jax.tree.flatten(function(jax.tree.unflatten(treedef, leaves)))
            results.append(structure)
            return values

        shapes = [jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], leaf.dtype) for leaf in leaves]
        program = jax.make_jaxpr(flat)(*shapes)
        on_cpu = jax.default_backend() == "cpu"
        self._run, self._structure = jaxpr_as_fun(unrolled(program) if on_cpu else program), results[0]
        self.outputs = jax.tree.unflatten(self._structure, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.out_avals])
        self.held = held_bytes(program.jaxpr)
        self.host = _calls_host(program.jaxpr)

    def __call__(self, inputs: PyTree) -> Any:
        return jax.tree.unflatten(self._structure, self._run(*jax.tree.leaves(inputs)))

    def at_a_time(self, count: int, in_flight: int | None = None, *, summed: bool = False) -> int:
        """How many of `count` tasks to hold at a time: as asked, or by what one task holds; `summed` if results are."""
        if in_flight is not None:
            return min(in_flight, count)
        if self.host:  # every call of the host has a fixed cost
            return count
        most = int(np.clip(_budget(summed) // max(self.held, 1), 1, count))
        # A last group that is not full is filled with copies, so a size that divides the count is better.
        even = -(-count // -(-count // most))
        return next((size for size in range(most, most // 2, -1) if count % size == 0), even)


def _budget(summed: bool) -> int:
    if jax.default_backend() == "cpu":
        return _SUMMED if summed else _CACHE
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return _ACCELERATOR if memory is None else int(_SHARE * memory)


def check_in_flight(in_flight: Any) -> int | None:
    """`in_flight` as a Python integer or None."""
    return None if in_flight is None else check_whole("", "in_flight", in_flight)


def check_batch(tasks: PyTree, keys: Any, problem: AbstractProblem | None = None) -> int:
    """The number of tasks of a batch, or a refusal; with a finite-sum problem also of one task as it draws them."""
    paths = [*_paths(tasks, "tasks"), *_paths(keys, "keys")]
    lengths = {str(shape[0]) if shape else "none": path for path, shape in reversed(paths)}
    if len(lengths) != 1 or "none" in lengths or "0" in lengths:
        found = ", ".join(sorted(lengths)) or "none"
        where = "; ".join(f"{n} in {lengths[n]}" for n in sorted(lengths))
        text = f"Every leaf of tasks (and keys) needs one leading axis over the same tasks, but found {found}"
        raise InputError(f"{text}{where and f' ({where})'}: stack tasks along a first axis, or give a list of them.")
    if problem is not None and shape_of(tasks) == drawn_shape(problem):
        raise InputError("tasks has the shape of one task of this problem: for a batch of tasks give a list, such as [task].")
    return int(next(iter(lengths)))


def _paths(tree: PyTree, name: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (name + jax.tree_util.keystr(path), jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def held_bytes(jaxpr: Jaxpr, body: bool = False) -> int:
    """The most bytes that a program holds at any time of values that depend on its inputs, which are not counted.

    A buffer that is updated place by place, also by a loop, is one value. The inputs of a loop's body may be such buffers.
    """
    last: dict[Any, int] = {x: len(jaxpr.eqns) for x in jaxpr.outvars if not isinstance(x, Literal)}
    wanted = []
    for place in reversed(range(len(jaxpr.eqns))):
        step = jaxpr.eqns[place]
        if step.effects or any(x in last for x in step.outvars):
            wanted.append(place)
            for x in step.invars:
                if not isinstance(x, Literal):
                    last.setdefault(x, place)
    of_task, freed, held, most = set(jaxpr.invars), dict[int, int](), 0, 0
    sizes: dict[Any, int] = dict.fromkeys(jaxpr.invars, 0) if body else {}
    for place in reversed(wanted):
        step = jaxpr.eqns[place]
        if not any(not isinstance(x, Literal) and x in of_task for x in step.invars):
            continue
        of_task.update(step.outvars)
        buffers = {out: step.invars[taken] for taken, out in _updated(step)}
        for i, x in enumerate(step.outvars):
            size, end, old = _bytes(x.aval), last.setdefault(x, place), buffers.get(i)
            if old in sizes and last[old] == place:
                # It goes on in the place of the old one, which is not given free here.
                size = sizes[old]
                freed[place] = freed.get(place, 0) - size
            else:
                held += size
            sizes[x] = size
            freed[end] = freed.get(end, 0) + size
        inside = max(
            (held_bytes(inner, step.primitive.name in ("scan", "while", "jit", "pjit")) for inner in _programs(step)), default=0
        )
        most = max(most, held + inside)
        held -= freed.pop(place, 0)
    return most


def _updated(step: Any) -> list[tuple[int, int]]:
    """The operands that an operation updates place by place, with the number of the result that takes the place of each."""
    name, params = step.primitive.name, step.params
    if name == "dynamic_update_slice":
        return [(0, 0)]
    if name in ("jit", "pjit"):
        inner = params["jaxpr"].jaxpr
        pairs = [(one.invars[i], one.outvars[j]) for one in inner.eqns for i, j in _updated(one)]
        return [(inner.invars.index(a), inner.outvars.index(b)) for a, b in pairs if a in inner.invars and b in inner.outvars]
    if name == "scan":
        inner, taken, first, count = params["jaxpr"].jaxpr, params["num_consts"], params["num_consts"], params["num_carry"]
    elif name == "while":
        inner, first = params["body_jaxpr"].jaxpr, params["body_nconsts"]
        taken, count = params["cond_nconsts"] + first, len(step.outvars)
    else:
        return []
    return [(taken + i, i) for i in range(count) if _is_updated(inner, inner.invars[first + i])]


def _is_updated(jaxpr: Jaxpr, x: Any) -> bool:
    return any(step.invars[taken] is x for step in jaxpr.eqns for taken, _ in _updated(step))


def _bytes(aval: Any) -> int:
    return int(np.prod(aval.shape)) * getattr(aval.dtype, "itemsize", 4) if hasattr(aval, "shape") else 0


def _programs(step: Any) -> list[Jaxpr]:
    """The programs inside one operation, such as the body of a loop."""
    found = [p for value in step.params.values() for p in (value if isinstance(value, tuple | list) else [value])]
    return [p.jaxpr if isinstance(p, ClosedJaxpr) else p for p in found if isinstance(p, ClosedJaxpr | Jaxpr)]


def _calls_host(jaxpr: Jaxpr) -> bool:
    return any("callback" in step.primitive.name or any(map(_calls_host, _programs(step))) for step in jaxpr.eqns)


def grouped(tree: PyTree, size: int) -> PyTree:
    """Reshape a leading axis of B into (ceil(B / size), size), the last group filled up with copies of the first entry."""

    def reshape(leaf):
        missing = -leaf.shape[0] % size
        if missing:
            leaf = jnp.concatenate([leaf, jnp.broadcast_to(leaf[:1], (missing, *leaf.shape[1:]))])
        return leaf.reshape((leaf.shape[0] // size, size, *leaf.shape[1:]))

    return jax.tree.map(reshape, tree)


def ungrouped(tree: PyTree) -> PyTree:
    """The two leading axes that `grouped` made, as one again."""
    return jax.tree.map(lambda leaf: leaf.reshape((leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])), tree)


def map_tasks(function: Callable[[Any], Any], inputs: PyTree, in_flight: int | None = None) -> Any:
    """`function` over the leading axis, as many at a time as asked, or as `Traced` decides."""
    # A task that a rule is measured on may hold text.
    inputs, static = eqx.partition(inputs, eqx.is_array)
    whole = function if not jax.tree.leaves(static) else lambda arrays: function(eqx.combine(arrays, static))
    traced = Traced(whole, inputs)
    count = jnp.shape(jax.tree.leaves(inputs)[0])[0]
    size = traced.at_a_time(count, in_flight)
    if size == count:
        return jax.vmap(traced)(inputs)
    if size == 1:
        return jax.lax.map(traced, inputs)
    out = jax.lax.map(jax.vmap(traced), grouped(inputs, size))
    return jax.tree.map(lambda leaf: leaf[:count], ungrouped(out))
