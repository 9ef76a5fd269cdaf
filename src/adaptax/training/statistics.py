"""Statistics for batch normalisation, measured on training tasks along the inner path."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from adaptax.errors import InputError
from adaptax.inner import Inner
from adaptax.models.protocol import is_moments
from adaptax.problem import FiniteSum
from adaptax.tasks.images.scoring import target_of
from adaptax.tasks.images.statistics import MomentsOf, StepStatistics
from adaptax.training.evaluate import evaluate


def step_statistics(
    problem: FiniteSum, params: PyTree, inner: Inner, steps: Iterable[int], tasks: int = 200, seed: int = 2, **options: Any
) -> StepStatistics:
    r"""Measure the statistics that a network's batch normalisations see on training tasks after each number of inner steps.

    For every normalisation and channel these are the mean and variance, before normalisation, over the target images of
    all tasks together. With $m_i$, $v_i$ those of task i, $m = \frac1n\sum m_i$ and $v = \frac1n\sum(v_i + m_i^2) - m^2$.
    They change along the inner path, so they are measured after every number of steps. `ax.tasks.with_statistics` evaluates
    a network with them.

    Arguments:
        problem: the training tasks, from `few_shot`.
        params: as for `ax.evaluate`; a network with a method `moments(images)`, such as `ax.models.conv4` with
            `norm="batch"`.
        inner: the inner loop.
        steps: numbers of inner steps.
        tasks: as for `ax.evaluate`: the number of tasks (default 200), or a batch of them.
        seed: decides the tasks (default 2).
        options: other arguments of `ax.evaluate`.

    Returns: `StepStatistics`.

    Errors: `InputError` if the problem is not a `FiniteSum`, or if the network has no `moments`.

    Example: see `ax.tasks.with_statistics`.

    Source: Antoniou et al. (2019), How to train your MAML, section 3; the variance by the law of total variance.
    """
    if not isinstance(problem, FiniteSum):
        raise InputError("step_statistics takes the problem that adaptax.tasks.few_shot returns: give it that.")
    measured = FiniteSum(problem.loss, problem.sample_task, target_loss=problem.target_loss, metrics=MomentsOf())
    curve = evaluate(measured, params, inner, steps, tasks, seed, **options)
    network = inner.initial(params)
    images, _ = target_of(jax.eval_shape(problem.sample_task, jax.random.key(0)).target)
    like = eqx.filter_eval_shape(lambda network, images: network.moments(images), network, images)
    leaves = [curve.mean[jax.tree_util.keystr(path)] for path, _ in jax.tree_util.tree_leaves_with_path(like)]
    found = jax.tree.unflatten(jax.tree.structure(like), leaves)
    # The curve is in double precision, which the difference needs; it is rounded afterwards.
    moments = jax.tree.map(lambda part: part._replace(variance=part.variance - part.mean**2), found, is_leaf=is_moments)
    given = jax.tree.map(lambda leaf, shape: jnp.asarray(leaf, shape.dtype), moments, like)
    return StepStatistics(jnp.asarray(curve.steps), given)
