"""What is not finite in one task, and where first: its path is walked again, and the first place is said in words."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax._keys import CURVATURE, STEP, any_key, fold, own_key, task_key
from adaptax._parameters import split
from adaptax._recursion import threaded
from adaptax._tree import first_line
from adaptax.errors import HostFailure
from adaptax.inner import Inner
from adaptax.inner_path import TaskPath
from adaptax.problem import AbstractProblem, Pool, Samples
from adaptax.stepsize.auto import Auto
from adaptax.stepsize.learned import Learned
from adaptax.stepsize.rules import AbstractRule

# The worst kind of number in an array: 0 finite, 1 infinite, 2 NaN.
_IS, _HOLDS = ("finite", "infinite", "NaN"), ("", "infinite values", "NaN")
# The path has run away where w is so many times as long as w_0.
_FAR = 1e3
_SLOPE = "the loss has no finite derivative there, as a norm or a root at zero, or jnp.where beside a value that is not finite"
_BEND = "the loss has no second derivative there: use curvature=ax.curvature.FirstOrder(), or a loss that is smooth there"
_OPTIMIZER = "look at what the inner optimiser does there"


class Cause(NamedTuple):
    """The first place where a task is not finite, and what helps ("" where nothing is known to).

    `at_start` says that it is the loss at w_0 or its gradient, though the parameters and the data are finite; `known` that
    a place was found at all.
    """

    text: str
    advice: str = ""
    at_start: bool = False
    known: bool = True

    def __str__(self) -> str:
        return f"{self.text}{': ' if self.advice else ''}{self.advice}."


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf can hold a number that is not finite."""
    return isinstance(leaf, float) or bool(hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact))


def kinds(tree: PyTree) -> Array:
    """The worst kind of number in each leaf that can hold one that is not finite."""

    def kind(leaf):
        return jnp.max(jnp.where(jnp.isnan(leaf), 2, jnp.where(jnp.isfinite(leaf), 0, 1)), initial=0)

    return jnp.stack([kind(leaf) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)] or [jnp.zeros((), int)])


def held(tree: PyTree, name: str, found: Any = None) -> str:
    """What the leaves of a tree hold that is not finite, and which leaves: "NaN in task.support[1]"; "" if all are finite."""
    names = [name + jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(tree) if is_inexact(x)]
    found = np.asarray(kinds(tree) if found is None else found)
    bad = [name for kind, name in zip(found, names, strict=False) if kind]
    return f"{_HOLDS[found.max()]} in {', '.join(bad[:3])}{' and others' if len(bad) > 3 else ''}" if bad else ""


def cause(
    problem: AbstractProblem, inner: Inner, params: PyTree, task: PyTree, key: Key[Array, ""] | None, samples: Samples, *,
    method: Any = None, target: bool = True, steps: int | None = None, draws: tuple = (), rule: Any = None,
) -> Cause:  # fmt: skip
    """The first place where one task is not finite.

    Arguments:
        problem, inner, params, task, key, samples: as for `TaskPath`.
        method: the method whose meta-gradient is not finite; None where only the path and the scores are asked for.
        target: whether the task is judged on its target set.
        steps: the length of the path (default: N).
        draws: the numbers that the target batch is drawn with, in `ax.evaluate`.
        rule: the step size as it was declared, for the advice (default: that of `inner`).
    """
    steps = inner.steps if steps is None else steps
    try:
        found = jax.device_get(_walk(problem, inner, params, task, key, samples, steps, draws, method, target))
        adapting = split(problem, inner, params, task, samples).adapting
        rule = inner.stepsize if rule is None else rule
        return _Words(problem, inner, params, task, adapting, found, steps, rule).first(method)
    except HostFailure:
        raise
    except Exception as error:  # What is explained has gone wrong already; its explanation must not hide it.
        return Cause(f"a place that could not be found ({first_line(error)})", known=False)


@eqx.filter_jit
def _walk(problem, inner, params, task, key, samples, steps, draws, method, target) -> dict[str, Any]:
    """The kinds of number along one task's path, in the order in which they are computed."""
    path = TaskPath(problem, inner, params, task, key, samples, steps=steps)
    one, many = path.stepper(), getattr(method, "multi_step", None) is not None

    def drawn(w, purpose, j, size):
        return kinds(problem.step_batch(task, path.params(w), fold(key, purpose, j), size) if problem.stochastic else None)

    def step(carry, x):
        w, j, rest = carry.w, x["j"], threaded(path.rest, carry.state)
        (value, _), gradient = path.descent.value_and_gradient(w, rest, j)
        new = one(carry, x)[0]
        early = jnp.where(j > 0, kinds(path.target_gradient(w, rest, j)), 0) if many else jnp.zeros(1, int)
        found = {"loss": kinds(value)[0], "gradient": kinds(gradient), "target": early, "next": kinds(new.w)}
        batches = {"batch": drawn(w, STEP, j, samples.step), "curvature": drawn(w, CURVATURE, j, samples.curvature)}
        return new, found | batches | {"value": value, "size": _tree.norm(w)}

    last, along = jax.lax.scan(step, path.start, path.inputs)
    final, rest = last.w, threaded(path.rest, last.state)
    found: dict[str, Any] = {"along": along, "size": _tree.norm(final)}
    if target:
        batch = path.judged_batch(final, steps, *draws)
        by_value = {"loss": path.value(last, along["value"])} if method is not None else None
        scores = problem.scores(path.params(final), batch, steps, last.state) if by_value is None else by_value
        found["batch"] = kinds(batch if problem.stochastic else None)
        found["scores"] = {name: kinds(score)[0] for name, score in scores.items()}
    if method is not None:
        found["last"] = kinds(optax.tree.zeros_like(final) if path.judged_on_path else path.target_gradient(final, rest)[1][0])
        found["products"] = method.products(path)
    # Under a derivative, what carries none is known at once.
    return _tree.constant(found)


class _Words(NamedTuple):
    """What was found along one task's path, and the words for it."""

    problem: AbstractProblem
    inner: Inner
    params: PyTree
    task: PyTree
    adapting: PyTree
    found: dict[str, Any]
    steps: int
    rule: Any

    def first(self, method: Any) -> Cause:
        """The first place that is not finite."""
        for j in range(self.steps):
            at = jax.tree.map(lambda leaf, j=j: leaf[j], self.found["along"])
            if any(np.any(at[name]) for name in ("loss", "gradient", "target", "next")):
                return self._on_path(at, j)
        return self._end(method)

    def _on_path(self, at: dict[str, Any], j: int) -> Cause:
        """The first place that is not finite at step j."""
        origin = self._origin("support", at["batch"], f"step {j}", j == 0)
        if at["loss"]:
            # Fresh samples may not be finite at any step; the same ones are so because of where the path led.
            led = self._ran_away(j) or (j > 0 and not self.problem.stochastic)
            advice = self._smaller() if led else self._domain()
            return self._say(f"the loss at w_{j} is {_IS[at['loss']]}", origin, advice, j)
        if at["gradient"].any():
            text = f"the gradient of the loss at w_{j}, where the loss is finite, {self._entries(at['gradient'])}"
            return self._say(text, origin, self._slope(j), j)
        if at["target"].any():
            origin = self._origin("target", None, "the target", True)
            return self._say(f"the target loss at w_{j} or its gradient is not finite", origin, self._slope(j))
        # Step sizes that are learned enter at every step.
        origin = self._origin("support", at["batch"], f"step {j}", True)
        text = f"the parameters after step {j} are not finite, though the gradient is (w_{j + 1} {self._entries(at['next'])})"
        return self._say(text, origin, self._smaller() if self.inner.optimizer is None else _OPTIMIZER)

    def _end(self, method: Any) -> Cause:
        """The first place that is not finite after a path that is."""
        n, scores, last = self.steps, self.found.get("scores", {}), self.found.get("last", np.zeros(1, int))
        if any(scores.values()) or last.any():
            origin = self._origin("target", self.found["batch"], "the target", True)
        if bad := [name for name, kind in scores.items() if kind]:
            name = "loss" if "loss" in bad else bad[0]
            what = "target loss" if name == "loss" else f"metric {name!r}"
            advice = self._smaller() if self._ran_away(n) else self._domain()
            return self._say(f"the {what} at w_{n} is {_IS[scores[name]]}", origin, advice, n)
        if last.any():
            text = f"the gradient of the target loss at w_{n}, where that loss is finite, {self._entries(last)}"
            return self._say(text, origin, self._slope(n), n)
        products = self.found.get("products")
        if products is not None and products.any():
            j = int(np.flatnonzero(products).max())
            if products[j] == 1:
                text = f"the derivative carried back through step {j} is not finite, though all losses and gradients are"
                return Cause(text, self._smaller() if self.inner.optimizer is None else _OPTIMIZER)
            batch = self.found["along"]["curvature"][j] if j < n and getattr(method, "independent_curvature", True) else None
            text = f"a Hessian-vector product at w_{j} is not finite, though all losses and gradients are"
            advice = self._smaller() if self._ran_away(j) else _BEND
            return self._say(text, self._origin("support", batch, f"the product at w_{j}", True), advice)
        if method is None:
            return Cause("nothing that can be found again, when the task is computed by itself", known=False)
        return Cause("the meta-gradient is not finite, though all losses, gradients and Hessian-vector products are")

    def _say(self, text: str, origin: str, advice: str, j: int = 1) -> Cause:
        """A place, where it comes from if that is known, and what helps; `j` is 0 for the loss at w_0 and its gradient."""
        if not origin:
            return Cause(text, advice, j == 0)
        advice = "clean them, or leave such tasks out"
        if "the parameters hold" in origin:
            advice = "start from parameters that are finite"
        elif "the batch" in origin:
            advice = "look at what draw makes of this task and these parameters"
        return Cause(f"{text}, since {origin}", advice)

    def _origin(self, part: str, batch: Any, draw: str, entering: bool) -> str:
        """The data and the parameters that are not finite themselves, where they enter; "" if all are finite.

        A loss may mask data that are not finite: they are no cause at a later step, where the first was finite.
        """
        texts = []
        stochastic = self.problem.stochastic
        data, name = (self.task, "task") if stochastic else (getattr(self.task, part), f"task.{part}")
        if entering and (text := held(data, name)):
            texts.append(f"its data hold {text}")
        elif stochastic and batch is not None:
            w = self.inner.initial(self.params)
            shapes = eqx.filter_eval_shape(self.problem.step_batch, self.task, w, any_key(), 1)
            texts += [f"the batch drawn for {draw} holds {text}"] if (text := held(shapes, "batch", batch)) else []
        if entering and (text := held(self.params, "params")):
            texts.append(f"the parameters hold {text}")
        return " and ".join(texts)

    def _entries(self, found: Any) -> str:
        """What a tree like the parameters that adapt holds, and where."""
        if found[: len(jax.tree.leaves(self.adapting))].all():
            return f"is {_IS[found.max()]}"
        return f"holds {held(self.adapting, 'params' if self.inner.start is None else 'w', found)}"

    def _domain(self) -> str:
        kind = jnp.result_type(*[leaf for leaf in jax.tree.leaves(self.params) if is_inexact(leaf)])
        return f"look there for log(0), 0/0, or numbers too large for {kind}"

    def _slope(self, j: int) -> str:
        return self._smaller() if self._ran_away(j) else _SLOPE

    def _ran_away(self, j: int) -> bool:
        """Whether the inner losses grew up to w_j, or w_j is far from w_0."""
        values = self.found["along"]["value"]
        sizes = np.append(self.found["along"]["size"], self.found["size"])
        grown = np.any(values[: j + 1] > 2 * np.abs(values[:1]))
        return j > 0 and bool(grown or not sizes[j] <= _FAR * max(1, sizes[0]))

    def _smaller(self) -> str:
        """How to take smaller inner steps."""
        if self.inner.optimizer is not None:
            return "give the inner optimiser a smaller learning rate, or clip its gradients"
        if isinstance(self.rule, Auto):
            return "Auto lowers its step sizes then in training; where it comes often, lower the outer learning rate"
        if isinstance(self.rule, AbstractRule):
            return f"use a smaller inner step size: lower gamma= of {type(self.rule).__name__} (--stepsize edge:0.5)"
        if isinstance(self.rule, Learned):
            return "let the learned step sizes begin smaller, or give the outer optimiser a smaller learning rate"
        return "use a smaller inner step size, or a rule such as ax.stepsize.Edge() (--stepsize edge)"


class Lost(NamedTuple):
    """How many of how many tasks were not finite, and the index of the first."""

    number: int
    count: int
    index: int

    @classmethod
    def of(cls, bad: Any) -> "Lost":
        """Of an array that says for each task whether it was not finite."""
        return cls(int(np.sum(bad)), len(bad), int(np.argmax(bad)))

    def sentence(self, made: str, found: Cause) -> str:
        """The numbers, the first task and how to have it again, and why it was not finite."""
        were, first = ("was", ",") if self.number == 1 else ("were", "; the first is")
        return f"{self.number:,} of {self.count:,} tasks {were} not finite{first} task {self.index}{made}: {found}"


def tell(
    lost: Lost, problem: AbstractProblem, inner: Inner, params: PyTree, samples: Samples, key: Key[Array, ""], *,
    batch: PyTree = None, moved: str = "", **options: Any,
) -> str:  # fmt: skip
    """Which tasks of a measurement were not finite, and why the first was not.

    Arguments:
        lost: the numbers.
        problem, inner, params, samples, options: as for `cause`.
        key: the key whose `fold_in` with the index is the first task's.
        batch: the tasks, where they were given.
        moved: more advice, where the first place is the loss at w_0 or its gradient.
    """
    key, index = jax.random.fold_in(key, lost.index), lost.index
    own, drawn = own_key(key), task_key(key)
    if batch is None:
        pool = isinstance(problem.sample_task, Pool)
        row = f"row {int(problem.sample_task.index(drawn))} of the pool, " if pool else ""
        task, made = problem.sample_task(drawn), f"{row}problem.sample_task({written(drawn)})"
    else:
        task, made = jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), batch), f"entry {index} of tasks="
    if problem.stochastic or inner.gradients.stochastic or getattr(options.get("method"), "stochastic", False):
        made += f", drawing with {written(own)}"
    found = cause(problem, inner, params, task, own, samples, **options)
    if found.at_start and moved:
        found = found._replace(advice=f"{found.advice}; {moved}")
    return lost.sentence(f" ({made})", found)


def written(key: Key[Array, ""]) -> str:
    """A key as the code that makes it."""
    kind = str(jax.random.key_impl(key))
    impl = "" if kind == jax.config.jax_default_prng_impl else f", impl={kind!r}"  # type: ignore[attr-defined]
    return f"jax.random.wrap_key_data(np.uint32({np.asarray(jax.random.key_data(key)).tolist()}){impl})"
