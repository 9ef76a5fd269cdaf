"""Random cosine problems, many at a time, with their exact constants and inner paths in closed form. No JAX runs here."""

from dataclasses import dataclass, replace

import numpy as np

STEPS = 64


@dataclass(frozen=True)
class Family:
    """n problems of m tasks in d dimensions, each with its own inner step size and steps (most steps first).

    matrix (n, d, d); amplitude, alpha, steps (n,); phases and offsets of support and target (n, m, d); noise (n, 2).
    """

    matrix: np.ndarray
    amplitude: np.ndarray
    support: tuple[np.ndarray, np.ndarray]
    target: tuple[np.ndarray, np.ndarray]
    alpha: np.ndarray
    steps: np.ndarray
    noise: np.ndarray
    two_sided: bool = False

    @property
    def dim(self):
        return self.matrix.shape[-1]

    @property
    def L(self):
        return np.abs(np.linalg.eigvalsh(self.matrix)).max(-1) + self.amplitude

    @property
    def lam(self):
        return np.maximum(np.linalg.eigvalsh(self.matrix)[:, -1] + self.amplitude, 0)

    @property
    def mu(self):
        return self.amplitude - np.linalg.eigvalsh(self.matrix)[:, 0]

    def active(self, j):
        """The family of the problems that take step j: those with more than j steps come first."""
        k = int(np.sum(self.steps > j))
        return self[:k]

    def __getitem__(self, k):
        pairs = {name: tuple(a[k] for a in getattr(self, name)) for name in ("support", "target")}
        arrays = {name: getattr(self, name)[k] for name in ("matrix", "amplitude", "alpha", "steps", "noise")}
        return replace(self, **arrays, **pairs)

    def repeated(self, times):
        """Every problem repeated, with its copies one after the other."""
        pairs = {name: tuple(np.repeat(a, times, 0) for a in getattr(self, name)) for name in ("support", "target")}
        arrays = {n: np.repeat(getattr(self, n), times, 0) for n in ("matrix", "amplitude", "alpha", "steps", "noise")}
        return replace(self, **arrays, **pairs)

    def chosen(self, tasks):
        """The tasks with the given indices of shape (n, tasks)."""

        def take(pair):
            return tuple(np.take_along_axis(a, tasks[..., None], 1) for a in pair)

        return replace(self, support=take(self.support), target=take(self.target))

    def gradient(self, terms, w):
        """Gradients (n, m, d) at w, which has that shape."""
        phases, offsets = terms
        return w @ self.matrix - self.amplitude[:, None, None] * np.sin(w + phases) + offsets

    def hessian(self, terms, w):
        diagonal = self.amplitude[:, None, None] * np.cos(w + terms[0])
        return self.matrix[:, None] - diagonal[..., None] * np.eye(self.dim)

    def adapted(self, w):
        """The ends of the exact paths from w, and the products P: (n, m, d) and (n, m, d, d)."""
        w = np.array(np.broadcast_to(w, self.target[0].shape))
        product = np.array(np.broadcast_to(np.eye(self.dim), (*w.shape, self.dim)))
        for j in range(self.steps.max()):
            now = self.active(j)
            k, rate = len(now.steps), now.alpha[:, None, None]
            product[:k] = product[:k] @ (np.eye(self.dim) - rate[..., None] * now.hessian(now.support, w[:k]))
            w[:k] -= rate * now.gradient(now.support, w[:k])
        return w, product

    def meta_gradients(self, w):
        """Exact meta-gradients of all tasks, (n, m, d)."""
        end, product = self.adapted(w)
        return np.einsum("nmab,nmb->nma", product, self.gradient(self.target, end))

    def meta_loss(self, w):
        """Exact meta-losses, (n,)."""
        end, _ = self.adapted(w)
        phases, offsets = self.target
        quadratic = 0.5 * np.einsum("nma,nab,nmb->nm", end, self.matrix, end) + np.sum(offsets * end, -1)
        return np.mean(quadratic + self.amplitude[:, None] * np.cos(end + phases).sum(-1), 1)

    @property
    def lower_bound(self):
        """A lower bound of the meta-loss, for positive definite matrices."""
        offsets = self.target[1]
        solved = np.linalg.solve(self.matrix, np.swapaxes(offsets, 1, 2))
        quadratic = -0.5 * np.einsum("nma,nam->n", offsets, solved) / offsets.shape[1]
        return quadratic - self.amplitude * self.dim

    @property
    def sigma(self):
        components = self._components(self.target)
        return largest_root(components - components.mean(1, keepdims=True))

    @property
    def b(self):
        return largest_root(self._components(self.support) - self._components(self.target))

    @property
    def sigma_g(self):
        return np.sqrt(self.dim * np.sum(self.noise**2, -1))

    def constants(self, t, gap=None):
        """The constants of each problem, in the form that the theory takes."""
        columns = [self.L, self.amplitude, self.sigma, self.sigma_g, self.noise[:, 1], self.b]
        gaps = [None] * len(self.alpha) if gap is None else gap.tolist()
        rows = zip(np.stack(columns, 1).tolist(), gaps, *self._curvature(), strict=True)
        return [t.Constants(*row, gap=g, lam=lam, mu=mu) for row, g, lam, mu in rows]

    def paths(self, t):
        rows = zip(self.alpha.tolist(), self.L.tolist(), self.steps.tolist(), *self._curvature(), strict=True)
        return [t.Expansion(*row) for row in rows]

    def _curvature(self):
        # Rounding must not make mu less than -lam, where all curvature is the same.
        lam = self.lam
        return (lam.tolist(), np.maximum(self.mu, -lam).tolist()) if self.two_sided else [[None] * len(lam)] * 2

    def _components(self, terms):
        phases, offsets = terms
        c = self.amplitude[:, None, None]
        return np.stack([offsets, -c * np.cos(phases), -c * np.sin(phases)], -1)


def largest_root(components):
    """The root of the sum over coordinates of the largest mean square over tasks of a_0 + a_1 sin x + a_2 cos x."""
    moments = np.einsum("nmka,nmkb->nkab", components, components) / components.shape[1]
    x = np.broadcast_to(np.linspace(0, 2 * np.pi, 32, endpoint=False), (*moments.shape[:2], 32))
    for _ in range(6):
        zero, sin, cos = np.zeros_like(x), np.sin(x), np.cos(x)
        u, du, ddu = (np.stack(a, -1) for a in ([zero + 1, sin, cos], [zero, cos, -sin], [zero, -sin, -cos]))
        mu = u @ moments
        height = np.sum(u * mu, -1)
        slope, bend = np.sum(du * mu, -1), np.sum(du * (du @ moments) + ddu * mu, -1)
        x = x - np.where(bend < 0, np.clip(slope / np.where(bend < 0, bend, 1), -0.1, 0.1), 0)
    return np.sqrt(height.max(-1).sum(-1))


def random_family(rng, n, dim, tasks, *, contracted, definite=False, finite_sum=True, highest=3.0, most=STEPS, two_sided=False):
    """Steps 1..most, log-uniform with both ends; gamma = alpha N L up to q = 2 if contracted, else up to `highest`.

    If two-sided, alpha lam goes up to 2.2 instead, N alpha mu up to `highest`, and every other problem is strongly convex up
    to the cosines.
    """
    steps = np.floor(np.exp(rng.uniform(0, np.log(most + 1), n))).astype(int)
    steps[0], steps[-1] = most, 1
    steps = -np.sort(-np.minimum(steps, most))
    L, share = 10 ** rng.uniform(-1, 1, n), 10 ** rng.uniform(-2, 0, n)
    eigenvalues = rng.uniform(0.05, 1, (n, dim)) * (1 if definite else rng.choice([-1, 1], (n, dim)))
    if two_sided:
        eigenvalues[::2] = np.abs(eigenvalues[::2])
    eigenvalues *= (L * np.minimum(1 - share, 0.95) + 1e-3 * L)[:, None] / np.abs(eigenvalues).max(1, keepdims=True)
    basis, _ = np.linalg.qr(rng.standard_normal((n, dim, dim)))
    matrix = (basis * eigenvalues[:, None]) @ np.swapaxes(basis, 1, 2)
    matrix = (matrix + np.swapaxes(matrix, 1, 2)) / 2
    phases = rng.uniform(-np.pi, np.pi, (n, tasks, dim))
    offsets = (10 ** rng.uniform(-1, 1, n) * L)[:, None, None] * rng.standard_normal((n, tasks, dim))
    target = (phases + 0.0, offsets + 0.0)
    if finite_sum:
        apart = (10 ** rng.uniform(-2, 0, n))[:, None, None]
        phases = phases + apart * rng.uniform(-1, 1, phases.shape)
        offsets = offsets + apart * L[:, None, None] * rng.standard_normal(offsets.shape)
    noise = 10 ** rng.uniform(-1.5, 0.5, (n, 2)) * L[:, None]
    family = Family(matrix, L * share, (phases, offsets), target, L, steps, noise, two_sided)
    if two_sided:
        return replace(family, alpha=_two_sided_alpha(rng, family, contracted, highest))
    threshold = steps * np.expm1(np.log(2) / (2 * steps))
    gamma = threshold * rng.uniform(0.01, 0.98, n) if contracted else 10 ** rng.uniform(-2, np.log10(highest), n)
    return replace(family, alpha=gamma / (steps * family.L))


def random_points(rng, family):
    """One random point for each problem, (n, 1, d)."""
    n = len(family.alpha)
    return (10 ** rng.uniform(-1, 1, n))[:, None, None] * rng.standard_normal((n, 1, family.dim))


def _two_sided_alpha(rng, family, contracted, highest):
    """alpha lam and N alpha mu up to the ends; if contracted, alpha L S_2N anywhere below 1."""
    lam, mu, n = np.maximum(family.lam, 0.05 * family.L), np.maximum(family.mu, 1e-9), len(family.alpha)
    alpha = np.minimum(10 ** rng.uniform(-2, np.log10(2.2), n) / lam, highest * rng.uniform(0.1, 1, n) / (family.steps * mu))
    if not contracted:
        # r^N stays above about e^-5, so that rounding errors of the measured differences do not matter.
        return np.minimum(alpha, 5 / (family.steps * np.maximum(-family.mu, 1e-9)))
    wanted, low, high = rng.uniform(0.01, 0.98, n), np.zeros(n), 2 / family.L
    powers = np.arange(2 * family.steps.max())
    for _ in range(60):
        middle = (low + high) / 2
        r = np.maximum(1 + middle * family.mu, middle * family.lam - 1)
        terms = r[:, None] ** powers * (powers < 2 * family.steps[:, None])
        over = middle * family.L * terms.sum(1) > wanted
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return low
