"""A test problem whose constants L, rho, sigma, b, sigma_g and sigma_H are known exactly."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Pool, Resampling, Task
from adaptax.theory import Constants

Terms = tuple[Float[Array, " dim"], Float[Array, " dim"]]


class Cosine(eqx.Module):
    r"""A finite pool of tasks $l_i(w) = \tfrac12 w^\top A w + c\sum_k\cos(w_k + \varphi_{ik}) + o_i^\top w$.

    All tasks share $A$ and $c$; otherwise sigma and b would be infinite. In the finite-sum problem the support and the target
    loss differ in phases and offsets. In the resampling problem $l_i$ is the target loss, and a sample adds
    $\xi^\top w + \zeta\sum_k\cos w_k$, $\xi \sim N(0, s_x^2 I)$, $\zeta \sim N(0, s_z^2)$. Tasks are drawn uniformly
    from the pool, so that a mean over `tasks` is the expectation. A pool is built by `cosine`, or from your own arrays.

    Arguments:
        matrix: $A$, symmetric, shape (dim, dim); the losses are bounded below if it is positive definite.
        amplitude: $c \ge 0$.
        support_phases, support_offsets, target_phases, target_offsets: arrays of shape (tasks, dim).
        noise: $(s_x, s_z)$, standard deviations.

    Errors: `InputError` if A is not symmetric, the shapes do not agree, an entry is not finite, or the amplitude or the noise
        is negative.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from adaptax.tasks import cosine
        >>> pool = cosine(dim=3, tasks=8)
        >>> pool.finite_sum.sample_task(jax.random.key(0)).support[0].shape
        (3,)
        >>> target_losses = jax.vmap(pool.finite_sum.target_loss, (None, 0))(jnp.zeros(3), pool.tasks.target)
        >>> target_losses.shape
        (8,)

    Source: docs/theory.md, section 9.
    """

    matrix: np.ndarray
    amplitude: float
    support_phases: np.ndarray
    support_offsets: np.ndarray
    target_phases: np.ndarray
    target_offsets: np.ndarray
    noise: tuple[float, float]

    def __check_init__(self):
        for value in jax.tree.leaves(self):
            if not np.all(np.isfinite(value)):
                raise InputError("Every number of a cosine problem must be finite: change the arrays.")
        if np.shape(self.noise) != (2,):
            raise InputError("The noise of a cosine problem is a pair of standard deviations: give (s_x, s_z).")
        if self.amplitude < 0 or min(self.noise) < 0:
            raise InputError("The amplitude and the noise of a cosine problem must not be negative: change the sign.")
        if np.ndim(self.matrix) != 2 or not np.array_equal(self.matrix, np.transpose(self.matrix)):
            raise InputError("The matrix of a cosine problem must be symmetric: give (A + A.T) / 2.")
        shapes = {np.shape(a) for a in (*self._support, *self._target)}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or shape[1] != len(self.matrix) or 0 in shape:
            raise InputError("All phases and offsets of a cosine problem must have shape (tasks, dim): reshape them.")

    @property
    def tasks(self) -> Task:
        """The whole pool, stacked: support and target are pairs (phases, offsets) of arrays of shape (tasks, dim)."""
        support, target = (tuple(jnp.asarray(part, float) for part in terms) for terms in (self._support, self._target))
        return Task(support, target)

    @property
    def finite_sum(self) -> FiniteSum:
        """The problem with a support and a target loss for each task; parameters are an array of shape (dim,)."""
        return FiniteSum(self._loss, Pool(self.tasks))

    @property
    def resampling(self) -> Resampling:
        """The problem with noisy samples of the target loss; a task is the pair (phases, offsets)."""
        return Resampling(self._loss, Pool(self.tasks.target), DrawNoise(*map(float, self.noise)))

    @property
    def constants(self) -> Constants:
        """The exact constants, to about twelve digits: suprema over all w, and no smaller number would do.

        The gap is not among them, since it depends on w_0: the meta-loss at w_0 minus `lower_bound` is at least the gap.
        """
        dim, (s_x, s_z), c = len(self.matrix), self.noise, float(self.amplitude)
        support, target = (_components(*terms, c) for terms in (self._support, self._target))
        # All tasks share A, so a difference of gradients has for each coordinate a trigonometric function of that coordinate.
        spread, _ = maxima(_second_moments(target - target.mean(0)))
        gap, _ = maxima(_second_moments(support - target))
        eigenvalues = np.linalg.eigvalsh(self.matrix)
        return Constants(
            L=float(np.abs(eigenvalues).max()) + c,
            lam=max(float(eigenvalues[-1]) + c, 0.0),
            mu=c - float(eigenvalues[0]),
            rho=c,
            sigma=math.sqrt(spread.sum()),
            b=math.sqrt(gap.sum()),
            sigma_g=math.sqrt(dim * (s_x**2 + s_z**2)),
            sigma_H=float(s_z),
        )

    @property
    def lower_bound(self) -> float:
        r"""$E_i[-\tfrac12 o_i^\top A^{-1}o_i] - cd$ of the target losses: no adapted parameters can do better."""
        if np.linalg.eigvalsh(self.matrix)[0] <= 0:
            return -math.inf
        offsets = np.asarray(self.target_offsets)
        quadratic = -0.5 * np.sum(offsets * np.linalg.solve(self.matrix, offsets.T).T, axis=1)
        return float(quadratic.mean() - self.amplitude * len(self.matrix))

    @property
    def _support(self):
        return self.support_phases, self.support_offsets

    @property
    def _target(self):
        return self.target_phases, self.target_offsets

    @property
    def _loss(self) -> "CosineLoss":
        return CosineLoss(jnp.asarray(self.matrix, float), jnp.asarray(self.amplitude, float))


def cosine(
    dim: int = 10,
    tasks: int = 20,
    *,
    largest: float = 1.0,
    smallest: float = 0.1,
    amplitude: float = 0.5,
    offset: float = 0.5,
    difference: float = 0.3,
    noise: tuple[float, float] = (0.1, 0.1),
    seed: int = 0,
) -> Cosine:
    r"""A random cosine problem with exactly known constants; see `Cosine`.

    $A$ has random orthonormal eigenvectors and eigenvalues evenly spaced from `smallest` to `largest`. The target
    phases are $U[-\pi, \pi]$ and the target offsets $N(0, \text{offset}^2)$; those of the support differ from them by
    $U[-\text{difference}, \text{difference}]$.

    Arguments:
        dim: number of parameters (default 10).
        tasks: number of tasks in the pool (default 20).
        largest, smallest: the extreme eigenvalues of $A$, positive (defaults 1 and 0.1; dim 1 takes the largest).
        amplitude: $c \ge 0$; at 0 the losses are quadratic (default 0.5).
        offset: standard deviation of the offsets (default 0.5).
        difference: how far support and target differ; 0 makes them equal (default 0.3).
        noise: $(s_x, s_z)$ of the resampling problem (defaults 0.1).
        seed: seed of the pool (default 0).

    Returns: a `Cosine` with `finite_sum`, `resampling`, `tasks`, `constants` and `lower_bound`.

    Errors: `InputError` if a number is out of its range.

    Example:
        >>> from adaptax.tasks import cosine
        >>> constants = cosine(dim=2, tasks=5, difference=0.0, noise=(0.3, 0.4)).constants
        >>> constants.rho, constants.b, constants.sigma_H
        (0.5, 0.0, 0.4)
        >>> round(constants.sigma_g**2, 12)
        0.5

    Source: docs/theory.md, section 9.
    """
    dim, tasks = check_whole("cosine", "dim", dim), check_whole("cosine", "tasks", tasks)
    smallest = check_real("cosine", "smallest", smallest, above=0)
    largest = check_real("cosine", "largest", largest, least=smallest)
    offset, difference = (
        check_real("cosine", "offset", offset, least=0),
        check_real("cosine", "difference", difference, least=0),
    )
    amplitude = check_real("cosine", "amplitude", amplitude, least=0)
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    half = basis * np.sqrt(np.linspace(largest, smallest, dim))
    matrix = half @ half.T
    shape = (tasks, dim)
    phases, offsets = rng.uniform(-math.pi, math.pi, shape), offset * rng.standard_normal(shape)
    shifts = (difference * rng.uniform(-1, 1, shape) for _ in range(2))
    support_phases, support_offsets = (a + shift for a, shift in zip((phases, offsets), shifts, strict=True))
    return Cosine((matrix + matrix.T) / 2, amplitude, support_phases, support_offsets, phases, offsets, noise)


class CosineLoss(eqx.Module):
    """The loss of `Cosine` on (phases, offsets), or on a drawn (phases, offsets, xi, zeta)."""

    matrix: Float[Array, "dim dim"]
    amplitude: Float[Array, ""]

    def __call__(self, w: Float[Array, " dim"], batch: tuple[Array, ...]) -> Float[Array, ""]:
        phases, offsets, *noise = batch
        if jnp.shape(w) != phases.shape:
            raise InputError(f"The cosine problem takes parameters of shape {phases.shape}, not {jnp.shape(w)}: reshape them.")
        loss = 0.5 * w @ self.matrix @ w + self.amplitude * jnp.cos(w + phases).sum() + offsets @ w
        if noise:
            xi, zeta = (a.mean(0) for a in noise)
            loss += xi @ w + zeta * jnp.cos(w).sum()
        return loss


class DrawNoise(eqx.Module):
    """`draw` of the resampling problem: the task, and `size` samples of xi and zeta."""

    s_x: float = eqx.field(static=True)
    s_z: float = eqx.field(static=True)

    def __call__(self, task: Terms, params: Array, key: Key[Array, ""], size: int) -> tuple[Array, ...]:
        x_key, z_key = jax.random.split(key)
        dtype, (dim,) = task[0].dtype, task[0].shape
        xi, zeta = jax.random.normal(x_key, (size, dim), dtype), jax.random.normal(z_key, (size,), dtype)
        return *task, self.s_x * xi, self.s_z * zeta


def _components(phases: np.ndarray, offsets: np.ndarray, amplitude: float) -> np.ndarray:
    """The components of the gradients minus A w on 1, sin w_k and cos w_k, of shape (tasks, dim, 3)."""
    phases = np.asarray(phases, float)
    return np.stack([np.asarray(offsets, float), -amplitude * np.cos(phases), -amplitude * np.sin(phases)], -1)


def _second_moments(components: np.ndarray) -> np.ndarray:
    return np.einsum("ika,ikb->kab", components, components) / len(components)


def maxima(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""The maxima over x of $u(x)^\top M u(x)$, $u = (1, \sin x, \cos x)$, for each of the matrices M, and where.

    The functions are trigonometric polynomials of degree 2, $\sum_{|n| \le 2} f_n e^{inx}$. The derivative is a quartic in
    $z = e^{ix}$, whose roots on the unit circle are found as eigenvalues of its companion matrix. An error e of a root changes
    the maximum by O(e²).
    """
    values, places = np.empty(len(moments)), np.empty(len(moments))
    for k, m in enumerate(moments):
        f1, f2 = m[0, 2] - 1j * m[0, 1], (m[2, 2] - m[1, 1]) / 4 - 0.5j * m[1, 2]
        roots = np.roots([2 * f2, f1, 0, -np.conj(f1), -2 * np.conj(f2)])
        x = np.append(np.angle(roots), 0.0)  # a constant polynomial has no roots
        u = np.stack([np.ones_like(x), np.sin(x), np.cos(x)])
        heights = np.einsum("ax,ab,bx->x", u, m, u)
        places[k], values[k] = x[heights.argmax()], heights.max()
    return values, places
