"""A meta-trained model that adapts to a new case and predicts."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from adaptax._tree import describe
from adaptax.adaptation import adapt
from adaptax.errors import InputError
from adaptax.inner import Inner
from adaptax.learner.file import Contents, no_tasks, write
from adaptax.models.protocol import HasMoments, TakesGiven, offers
from adaptax.models.shared_head import SharedHead
from adaptax.problem import AbstractProblem, FiniteSum, Samples, Task, check_is_problem
from adaptax.stepsize.learned import Learned, Meta
from adaptax.tasks.images.scoring import CrossEntropy
from adaptax.training.evaluate import Curve, evaluate


class Predictor(eqx.Module):
    r"""A model adapted to one case: `predictor(inputs)` are its outputs at $w_N$.

    It is a pytree, and its call may be put under `jax.jit` and exported by `jax.export`. A network with batch normalisation
    normalises by the statistics of the support set, as in the inner steps, so that a prediction depends on the support set and
    on its own input alone.

    Arguments:
        params: $w_N$.
        losses: the inner losses $l(w_0), \dots, l(w_{N-1})$, shape (N,).
        classes: for a classifier, the label that each output stands for; else None.
        support: the inputs that normalise the batch; None where each input is taken by itself.
        function: `function(params, inputs) -> outputs` (static; default: the model is called).

    Example: see `ax.Learner`.
    """

    params: PyTree
    losses: Array
    classes: tuple | None = eqx.field(static=True, default=None)
    support: PyTree = None
    function: Callable | None = eqx.field(static=True, default=None)

    # By identity, since jax.jit asks functions for a hash, and arrays have none.
    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __call__(self, inputs: PyTree) -> PyTree:
        """The outputs for a batch of inputs, one row each: for a classifier the logits, in the order of `classes`."""
        if self.function is not None:
            return self.function(self.params, inputs)
        if not callable(self.params):
            text = f"The parameters are {describe(self.params)}, which is no function of inputs"
            raise InputError(f"{text}: give the learner predict=function(params, inputs).")
        inputs = jnp.asarray(inputs)
        network: Any = self.params
        if self.support is None:
            return network(inputs)
        count = len(self.support)
        return network(jnp.concatenate([self.support, inputs.astype(self.support.dtype)]), given=count)[count:]

    def probabilities(self, inputs: PyTree) -> Array:
        """The probabilities of the classes, shape (n, number of classes); the columns are in the order of `classes`.

        Errors: `InputError` if the learner is no classifier.
        """
        if self.classes is None:
            raise InputError("Only a classifier gives probabilities, and this is a regression: call the predictor itself.")
        return jax.nn.softmax(self(inputs), axis=-1)

    def predict(self, inputs: PyTree) -> np.ndarray:
        """The predictions as a NumPy array: the most probable label of each input, or the outputs of a regression."""
        outputs = np.asarray(self(inputs))
        return outputs if self.classes is None else np.asarray(self.classes)[outputs.argmax(-1)]


class Learner:
    r"""What training leaves: an initialisation $w_0$, step sizes and N, which adapt to a new case and predict.

    `ax.load` makes one from a run folder or a file. A classifier (of `ax.tasks.few_shot`) takes labels of any kind, and with
    `ax.models.shared_head` any number of classes.

    Arguments:
        problem: the problem, whose inner loss adapts; its tasks are those of `evaluate`.
        params: the trained parameters, `state.params` (also `ax.Meta`).
        inner: the inner loop with the step sizes in use, `state.inner`.
        predict: `predict(params, inputs) -> outputs` (default: the parameters are a network, which is called).
        samples: sample sizes of a resampling problem.
        about: what a file is to say of the learner, a dict for JSON.

    Errors: `InputError` for a wrong problem or inner loop.

    Example:
        >>> import adaptax as ax, jax, numpy as np
        >>> problem = ax.tasks.sinusoid(shots=10)
        >>> params = ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0))
        >>> state, _ = ax.train(problem, params, ax.MetaGradient(ax.Inner(5)), steps=50)
        >>> learner = ax.Learner(problem, state.params, state.inner)
        >>> x = np.linspace(-4, 4, 10)[:, None]
        >>> predictor = learner.adapt((x, 3 * np.sin(x)))
        >>> predictor.predict(np.array([[0.5], [1.0]])).shape, bool(predictor.losses[-1] < predictor.losses[0])
        ((2, 1), True)

    Source: docs/theory.md, section 1.
    """

    def __init__(
        self, problem: AbstractProblem, params: PyTree, inner: Inner, *, predict: Callable | None = None,
        samples: Samples = Samples(), about: Mapping[str, Any] | None = None,  # noqa: B008
    ):  # fmt: skip
        check_is_problem(problem)
        if not isinstance(inner, Inner):
            raise InputError(f"Learner needs the inner loop third, such as state.inner, not {type(inner).__name__}.")
        if predict is not None and not callable(predict):
            raise InputError(f"Learner(predict={predict!r}) must be a function of parameters and inputs.")
        if isinstance(params, Meta):
            rule, rates = inner.stepsize, params.stepsize
            in_use: Any = rule.coordinates(rates) if isinstance(rule, Learned) else rates
            inner, params = inner.with_stepsize(in_use), params.params
        self.problem, self.params, self.inner, self.samples = problem, params, inner, samples
        self._predict, self.about = predict, json.loads(json.dumps(dict(about or {})))

    @property
    def classifies(self) -> bool:
        """Whether it is a classifier, whose support set is a pair of inputs and labels."""
        return isinstance(self.problem, FiniteSum) and isinstance(self.problem.loss, CrossEntropy)

    def adapt(self, support: PyTree, key: Any = None) -> Predictor:
        """Adapt to a new case by N steps on its support set.

        Arguments:
            support: what the inner loss takes: for regression and classification a pair (inputs, targets), inputs as in
                training; labels may be text. For a resampling problem, the task.
            key: for a resampling problem, the key of its samples.

        Errors: `InputError` for an empty support set, one that does not fit the loss, or classes that do not fit the network; a
            `NotFiniteWarning` says where an adaptation was not finite.
        """
        support = support.support if isinstance(support, Task) else support
        problem, inner, classes = self.problem, self.inner, None
        if self.classifies:
            inputs, labels = _pair(support)
            names, index = np.unique(np.asarray(labels), return_inverse=True)
            classes, support = tuple(names.tolist()), (inputs, index.reshape(np.shape(labels)))
            problem, inner = self._of_classes(len(classes))
        task = Task(support) if isinstance(problem, FiniteSum) else support
        adapted = adapt(problem, self.params, task, inner, key, samples=self.samples)
        given = None
        if isinstance(support, tuple) and self._predict is None and _normalises_batches(adapted.params, support[0]):
            given = jnp.asarray(support[0])
        return Predictor(adapted.params, adapted.losses, classes, given, self._predict)

    def _of_classes(self, count: int) -> tuple[AbstractProblem, Inner]:
        """The problem and the inner loop for so many classes."""
        problem, inner = self.problem, self.inner
        if count < 2:
            raise InputError("The support set has one class alone: give examples of at least two.")
        if count == problem.loss.ways:
            return problem, inner
        if not isinstance(inner.start, SharedHead):
            text = f"The support set has {count} classes, and this network has a class vector for each of {problem.loss.ways}"
            raise InputError(f"{text}: train with a shared head (ax.models.shared_head) for any number of classes.")
        problem = FiniteSum(CrossEntropy(count), problem.sample_task)
        return problem, eqx.tree_at(lambda inner: inner.start, inner, SharedHead(count), is_leaf=_is_head)

    def evaluate(
        self, problem: AbstractProblem | None = None, steps: Iterable[int] | None = None, tasks: Any = 1000, seed: int = 1
    ) -> Curve:
        """Adapt to held-out tasks and judge on their target sets; see `ax.evaluate`.

        Arguments:
            problem: the problem that gives the tasks (default: the learner's own).
            steps: numbers of inner steps (default: 0 to N).
            tasks: how many tasks (default 1,000), or a batch of tasks.
            seed: decides the tasks.

        Errors: `InputError` if there are no tasks to draw, and those of `ax.evaluate`.
        """
        if problem is None and isinstance(tasks, int) and getattr(self.problem.sample_task, "func", None) is no_tasks:
            raise InputError("A learner from a file has no tasks of its own: give evaluate(problem) one that has some.")
        steps = range(self.inner.steps + 1) if steps is None else steps
        problem = self.problem if problem is None else problem
        return evaluate(problem, self.params, self.inner, steps, tasks, seed, samples=self.samples)

    def save(self, path: str | os.PathLike) -> None:
        """Write one file that `ax.load` reads: arrays and a description in JSON, no code. An existing file is replaced as a
        whole.

        Errors: `InputError` for what a file cannot hold, such as an inner optimiser, and for a path that cannot be written.
        """
        write(path, Contents(self.problem, self.params, self.inner, self.about))


def _pair(support: Any) -> tuple[Any, Any]:
    if (
        isinstance(support, list | tuple)
        and len(support) == 2
        and np.ndim(support[1]) == 1
        and len(support[0]) == len(support[1])
    ):
        return support[0], support[1]
    raise InputError("A classifier adapts to a pair (inputs, labels) of equal lengths, labels of shape (n,): give adapt that.")


def _is_head(part: Any) -> bool:
    return isinstance(part, SharedHead)


def _normalises_batches(network: PyTree, inputs: Any) -> bool:
    """Whether a network's outputs depend on the other inputs of the batch."""
    if not (offers(network, HasMoments) and offers(network, TakesGiven)):
        return False
    try:
        eqx.filter_eval_shape(lambda network: network.moments(jnp.asarray(inputs)), network)
    except InputError:  # each input is normalised by itself
        return False
    return True
