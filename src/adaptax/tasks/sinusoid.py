"""Sinusoid regression, as a finite-sum and as a resampling problem."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Resampling, Task

Batch = tuple[Float[Array, "n 1"], Float[Array, "n 1"]]
Wave = tuple[Float[Array, ""], Float[Array, ""]]

AMPLITUDES = (0.1, 5.0)
PHASES = (0.0, math.pi)
INPUTS = (-5.0, 5.0)


def sinusoid(shots: int = 10, queries: int = 10) -> FiniteSum:
    r"""Sinusoid regression, finite-sum: learn $y = A\sin(x - \varphi)$ from a few points.

    A task draws $A \sim U[0.1, 5]$, $\varphi \sim U[0, \pi]$ and, for support and target alike, inputs
    $x \sim U[-5, 5]$. The loss is the mean squared error of `params(x)`.

    Arguments:
        shots: number of support points (default 10).
        queries: number of target points (default 10).

    Returns: a `FiniteSum` problem. `task.support` is a pair (x, y) of arrays of shape (shots, 1), and `task.target` one
        of shape (queries, 1). Parameters are a function from (n, 1) to (n, 1), for instance `ax.models.mlp`.

    Errors: `InputError` if a number of points is not a whole number of at least 1, or if `params(x)` has not the shape of y.

    Example:
        >>> import jax
        >>> from adaptax.tasks import sinusoid
        >>> problem = sinusoid(shots=5)
        >>> task = problem.sample_task(jax.random.key(0))
        >>> task.support[0].shape, task.target[1].shape
        ((5, 1), (10, 1))
        >>> bool(problem.loss(lambda x: 0 * x, task.support) > 0)
        True

    Source: Finn, Abbeel, Levine (2017), ICML.
    """
    shots, queries = check_whole("sinusoid", "shots", shots), check_whole("sinusoid", "queries", queries)
    return FiniteSum(mean_squared_error, SampleSinusoid(shots, queries))


def sinusoid_resampling(noise: float = 0.3) -> Resampling:
    r"""Sinusoid regression, resampling: each draw has new inputs and new label noise.

    A task is a pair $(A, \varphi)$, drawn as in `sinusoid`; a sample is $x \sim U[-5, 5]$,
    $y = A\sin(x - \varphi) + \varepsilon$, $\varepsilon \sim N(0, \text{noise}^2)$, in the inner steps and in the target
    alike. The least possible value of the expected loss is therefore noise².

    Arguments:
        noise: standard deviation of the label noise, at least 0 (default 0.3).

    Returns: a `Resampling` problem, whose batches are pairs (x, y) of arrays of shape (size, 1).

    Errors: `InputError` if the noise is negative or not finite, or if `params(x)` has not the shape of y.

    Example:
        >>> import jax
        >>> from adaptax.tasks import sinusoid_resampling
        >>> problem = sinusoid_resampling()
        >>> amplitude, phase = task = problem.sample_task(jax.random.key(0))
        >>> x, y = problem.draw(task, None, jax.random.key(1), 20)
        >>> y.shape
        (20, 1)

    Source: the resampling case of Ji, Yang, Liang (2022), JMLR 23, on the tasks of `sinusoid`.
    """
    noise = check_real("sinusoid_resampling", "noise", noise, least=0)
    return Resampling(mean_squared_error, sample_wave, DrawSinusoid(noise))


class SampleSinusoid(eqx.Module):
    """`sample_task` of `sinusoid`."""

    shots: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""]) -> Task:
        wave_key, input_key = jax.random.split(key)
        x, y = _points(sample_wave(wave_key), input_key, self.shots + self.queries)
        return Task((x[: self.shots], y[: self.shots]), (x[self.shots :], y[self.shots :]))


class DrawSinusoid(eqx.Module):
    """`draw` of `sinusoid_resampling`."""

    noise: float = eqx.field(static=True)

    def __call__(self, task: Wave, params: Callable, key: Key[Array, ""], size: int) -> Batch:
        input_key, noise_key = jax.random.split(key)
        x, y = _points(task, input_key, size)
        return x, y + self.noise * jax.random.normal(noise_key, y.shape, y.dtype)


def sample_wave(key: Key[Array, ""]) -> Wave:
    """Amplitude and phase of a task."""
    amplitude_key, phase_key = jax.random.split(key)
    amplitude = jax.random.uniform(amplitude_key, minval=AMPLITUDES[0], maxval=AMPLITUDES[1])
    return amplitude, jax.random.uniform(phase_key, minval=PHASES[0], maxval=PHASES[1])


def mean_squared_error(params: Callable, batch: Batch) -> Float[Array, ""]:
    """The mean squared error of `params(x)` on a batch (x, y)."""
    x, y = batch
    if not callable(params):
        raise InputError("The sinusoid takes a model as parameters, which is called as params(x): use adaptax.models.mlp.")
    prediction = params(x)
    # Shapes (n,) and (n, 1) would silently broadcast to n x n residuals.
    if prediction.shape != y.shape:
        raise InputError(f"The model returns shape {prediction.shape} where y has {y.shape}: give it one output.")
    return jnp.mean((prediction - y) ** 2)


def _points(wave: Wave, key: Key[Array, ""], n: int) -> Batch:
    """n points of a wave, with inputs drawn uniformly."""
    amplitude, phase = wave
    x = jax.random.uniform(key, (n, 1), jnp.result_type(amplitude), *INPUTS)
    return x, amplitude * jnp.sin(x - phase)
