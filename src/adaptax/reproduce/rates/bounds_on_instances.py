"""(g) The bounds by curvature of both signs on random losses: measured over bound, and the old constant over the new one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from adaptax import theory
from adaptax.report.rows import distinct, pick
from adaptax.report.tables import markdown
from adaptax.reproduce.csv_rows import Row

PART, SMALLER, CONVERGENCE = "two-sided bounds", "one-sided over two-sided constant", "convergence theorem"
INSTANCES, MOST, DIM, ADAPTING = 1_500, 32, 3, 2
# Meta-steps, runs of each instance, tasks of a meta-step and of the outer step, and C_beta, where the theorem is tried.
ITERATIONS, RUNS, TASKS, C_BETA = 8, 8, 4, 2.0
COUNT, MEDIAN, HIGH, LARGEST = "instances", "median", "90th percentile", "largest"


class Instances(NamedTuple):
    """One-task cosine losses: matrices (n, d, d), amplitudes, phases and offsets of support and target (n, d), alpha, N."""

    matrix: np.ndarray
    amplitude: np.ndarray
    phases: tuple[np.ndarray, np.ndarray]
    offsets: tuple[np.ndarray, np.ndarray]
    alpha: np.ndarray
    steps: np.ndarray

    def gradient(self, which: int, w: np.ndarray) -> np.ndarray:
        """Of the support loss (0) or the target loss (1)."""
        waves = self.amplitude[:, None] * np.sin(w + self.phases[which])
        return np.einsum("nab,nb->na", self.matrix, w) - waves + self.offsets[which]

    def hessian(self, w: np.ndarray) -> np.ndarray:
        """Of the support loss."""
        return self.matrix - (self.amplitude[:, None] * np.cos(w + self.phases[0]))[..., None] * np.eye(w.shape[1])

    def ends(self, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest curvature and minus the smallest one, of losses with these matrices."""
        eigenvalues = np.linalg.eigvalsh(of)
        return np.maximum(eigenvalues[:, -1] + self.amplitude, 0), self.amplitude - eigenvalues[:, 0]

    def adapted(self, w: np.ndarray, adapts: Any = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """The path's end and its Jacobian's transpose, where the parameters with `adapts` = 1 adapt."""
        product = np.broadcast_to(np.eye(w.shape[1]), self.matrix.shape).copy()
        for j in range(int(self.steps.max())):
            rates = np.where(j < self.steps, self.alpha, 0)[:, None] * adapts
            product = product @ (np.eye(w.shape[1]) - self.hessian(w) * np.broadcast_to(rates, w.shape)[:, None, :])
            w = w - rates * self.gradient(0, w)
        return w, product


def draw(n: int, seed: int = 0, *, moderate: bool = True) -> Instances:
    r"""$\alpha\lambda$ from 0.01 to 2, N from 1 to 32; every third problem is strongly convex but for c.

    If moderate, both are log-uniform, $N\alpha\mu$ is at most 3, and paths contract by at most $e^{-5}$, below which
    differences are rounding errors. If not, both are uniform.
    """
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-1, 1, n)
    eigenvalues = rng.uniform(0.05, 1, (n, DIM)) * rng.choice([-1, 1], (n, DIM)) * scale[:, None]
    eigenvalues[::3] = np.abs(eigenvalues[::3])
    basis, _ = np.linalg.qr(rng.standard_normal((n, DIM, DIM)))
    matrix = (basis * eigenvalues[:, None]) @ np.swapaxes(basis, 1, 2)
    phases, offsets = rng.uniform(-np.pi, np.pi, (n, DIM)), scale[:, None] * rng.standard_normal((n, DIM))
    apart = (10 ** rng.uniform(-2, 0, n))[:, None]
    other = phases + apart * rng.uniform(-1, 1, (n, DIM)), offsets + apart * scale[:, None] * rng.standard_normal((n, DIM))
    steps = np.floor(np.exp(rng.uniform(0, np.log(MOST + 1), n)) if moderate else rng.uniform(1, MOST + 1, n)).astype(int)
    made = Instances((matrix + np.swapaxes(matrix, 1, 2)) / 2, scale * 10 ** rng.uniform(-2, 0, n), (phases, other[0]),
                     (offsets, other[1]), scale, np.minimum(steps, MOST))  # fmt: skip
    lam, mu = made.ends(made.matrix)
    rate = 10 ** rng.uniform(-2, np.log10(2), n) if moderate else rng.uniform(0.01, 2, n)
    largest = rate / np.maximum(lam, 0.05 * scale)
    most = np.where(mu > 0, 3, 5) / (made.steps * np.maximum(np.abs(mu), 1e-9)) if moderate else np.inf
    return made._replace(alpha=np.minimum(largest, most))


def measure(instances: int = INSTANCES) -> Iterator[Row]:
    """Quantiles of the ratios of each bound, and of the two constants."""
    bounds = ratios_of(draw(instances)) | {CONVERGENCE: convergence(draw(instances, 1))}
    for name, ratios in (bounds | {SMALLER: old_over_new(draw(instances, 3, moderate=False))}).items():
        found = {COUNT: len(ratios), MEDIAN: np.median(ratios), HIGH: np.quantile(ratios, 0.9), LARGEST: ratios.max()}
        for case, value in found.items():
            yield {"part": PART, "measure": name, "case": case, "value": float(value)}


def _paths(many: Instances) -> tuple[list[theory.Expansion], np.ndarray]:
    """The expansions, and L."""
    lam, mu = many.ends(many.matrix)
    L = np.maximum(lam, np.abs(mu))
    columns = (many.alpha, L, many.steps, lam, np.maximum(mu, -lam))
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    return [theory.Expansion(*row) for row in rows], L


def ratios_of(many: Instances, seed: int = 1) -> dict[str, np.ndarray]:
    """Measured over bound for two points of each instance, near and far."""
    rng, n = np.random.default_rng(seed), len(many.alpha)
    w = (10 ** rng.uniform(-1, 1, n))[:, None] * rng.standard_normal((n, DIM))
    step = rng.standard_normal((n, DIM))
    u = w + step / _norm(step)[:, None] * (10 ** rng.uniform(-3, 1, n))[:, None]
    paths, L = _paths(many)
    (w_end, w_product), (u_end, u_product) = many.adapted(w), many.adapted(u)
    gradients, apart, rho = [many.gradient(k, u) for k in (0, 1)], _norm(w - u), many.amplitude
    support, target, gap = *map(_norm, gradients), _norm(gradients[0] - gradients[1])
    last = many.gradient(1, u_end)
    meta = [np.einsum("nab,nb->na", *pair) for pair in ((w_product, many.gradient(1, w_end)), (u_product, last))]

    def each(bound, *columns, of=paths):
        return np.array([bound(path, *row) for path, *row in zip(of, *(a.tolist() for a in columns), strict=True)])

    grown = each(theory.iterate_distance, many.steps)
    new = each(theory.adapted_smoothness, rho, L, _norm(last))
    adapts = (np.arange(DIM) < ADAPTING) * 1.0
    part = many.matrix[:, :ADAPTING, :ADAPTING]
    lam, mu = many.ends(part)
    mixed = np.linalg.norm(many.matrix[:, ADAPTING:, :ADAPTING], 2, axis=(1, 2))
    (a_end, a_product), (b_end, b_product) = many.adapted(w, adapts), many.adapted(u, adapts)
    ends = [many.gradient(1, end) for end in (a_end, b_end)]
    change = [np.einsum("nab,nb->na", *pair) for pair in ((a_product, ends[0]), (b_product, ends[1]))]
    columns = (many.alpha, L, many.steps, lam, np.maximum(mu, -lam))
    heads = [theory.Expansion(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    frozen = each(lambda p, c, L, g, m: theory.adapted_smoothness(p, c, L, g, mixed=m),
                  rho, L, _norm(ends[1][:, :ADAPTING]), mixed, of=heads)  # fmt: skip
    return {
        "distance of two paths": _norm(w_end - u_end) / (grown * apart),
        "support gradient along the path": _norm(many.gradient(0, u_end)) / (grown * support),
        "norm of P": _spectral(u_product) / each(theory.jacobian_norm),
        "change of P": _spectral(w_product - u_product) / (each(theory.jacobian_lipschitz, rho) * apart),
        "adapted gradient": _norm(last) / each(theory.target_gradient, target, gap),
        "meta-gradient less the gradient": _norm(meta[1] - gradients[1]) / each(theory.adaptation_shift, target, gap),
        "change of the meta-gradient": _norm(meta[0] - meta[1]) / (new * apart),
        "the same with frozen parameters": _norm(change[0] - change[1]) / (frozen * apart),
    }


def old_over_new(many: Instances, seed: int = 4) -> np.ndarray:
    """The constant of section 4, by L and gradients before adaptation, over the one by lam, mu and adapted gradients."""
    rng, n = np.random.default_rng(seed), len(many.alpha)
    w = (10 ** rng.uniform(-1, 1, n))[:, None] * rng.standard_normal((n, DIM))
    lam, mu = many.ends(many.matrix)
    L, (support, target) = np.maximum(lam, np.abs(mu)), (many.gradient(k, w) for k in (0, 1))
    last = _norm(many.gradient(1, many.adapted(w)[0]))
    columns = (
        many.alpha,
        L,
        many.steps,
        lam,
        np.maximum(mu, -lam),
        many.amplitude,
        last,
        _norm(target),
        _norm(support - target),
    )
    return np.array([
        theory.smoothness(theory.Expansion(a, big, steps), c, g, b)
        / theory.adapted_smoothness(theory.Expansion(a, big, steps, top, low), c, big, v)
        for a, big, steps, top, low, c, v, g, b in zip(*(column.tolist() for column in columns), strict=True)
    ])  # fmt: skip


def convergence(many: Instances) -> np.ndarray:
    """The mean of squared meta-gradients over runs, over the theorem's bound, for families of two tasks that share A and c."""
    definite = many.matrix @ many.matrix / np.abs(np.linalg.eigvalsh(many.matrix)).max(1)[:, None, None]
    many = many._replace(matrix=definite)
    lam, mu = many.ends(definite)
    least = np.minimum(3 / np.maximum(mu, 1e-9), 5 / np.maximum(-mu, 1e-9)) / many.steps
    many = many._replace(alpha=np.minimum(np.minimum(many.alpha, 2 / lam), least))
    # The second task has the phases and minus the offsets of the first one's target as its support, and the reverse.
    pair = (many, many._replace(phases=many.phases[::-1], offsets=tuple(-a for a in many.offsets[::-1])))
    paths, L = _paths(many)
    slope = np.array([theory.jacobian_lipschitz(p, c) for p, c in zip(paths, many.amplitude.tolist(), strict=True)])
    floor = np.array([p.q for p in paths]) * L
    rng, n = np.random.default_rng(2), len(L)
    start = rng.standard_normal((n, DIM))
    floor = np.maximum(floor, slope * np.max([_norm(task.gradient(1, task.adapted(start)[0])) for task in pair], 0))
    squares, seen = np.zeros(n), np.zeros((3, n))
    for _ in range(RUNS):
        w = start
        for _ in range(ITERATIONS):
            ends = [task.adapted(w) for task in pair]
            last = [task.gradient(1, end) for task, (end, _) in zip(pair, ends, strict=True)]
            each = np.stack([np.einsum("nab,nb->na", product, v) for (_, product), v in zip(ends, last, strict=True)])
            sizes, mean = np.stack([_norm(v) for v in last]), each.mean(0)
            seen = np.maximum(seen, [np.sqrt(np.mean(sizes**2, 0)), _norm(each[0] - mean), sizes.std(0)])
            squares += _norm(mean) ** 2 / (RUNS * ITERATIONS)
            share, measured = (rng.binomial(TASKS, 0.5, n)[:, None] / TASKS for _ in range(2))
            size = measured[:, 0] * sizes[0] + (1 - measured[:, 0]) * sizes[1]
            w = w - (share * each[0] + (1 - share) * each[1]) / (C_BETA * (floor + slope * size))[:, None]
    gap = np.mean([_loss(task, task.adapted(start)[0]) - _least(task) for task in pair], 0)
    columns = (many.alpha, L, many.amplitude, many.steps, lam, mu, gap, floor, *seen)
    bounds = []
    for a, big, c, steps, top, low, delta, G, A, spread, of_norms in zip(*(x.tolist() for x in columns), strict=True):
        known = theory.Constants(L=big, rho=c, sigma=0.0, gap=delta, lam=top, mu=max(low, -top))
        bounds.append(theory.adapted_convergence(
            known, a, steps, adapted_gradient=A, spread=spread, norm_spread=of_norms, floor=G, iterations=ITERATIONS,
            tasks_per_step=TASKS, smoothness_tasks=TASKS, C_beta=C_BETA,
        ).R)  # fmt: skip
    return squares / np.array(bounds)


def _loss(task: Instances, w: np.ndarray) -> np.ndarray:
    """The target loss."""
    quadratic = np.einsum("na,nab,nb->n", w, task.matrix, w) / 2 + np.sum(task.offsets[1] * w, 1)
    return quadratic + task.amplitude * np.cos(w + task.phases[1]).sum(1)


def _least(task: Instances) -> np.ndarray:
    """A lower bound of the target loss, for positive definite matrices."""
    solved = np.linalg.solve(task.matrix, task.offsets[1][..., None])[..., 0]
    return -np.sum(task.offsets[1] * solved, 1) / 2 - task.amplitude * DIM


def _norm(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=-1)


def _spectral(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.norm(matrices, 2, axis=(-2, -1))


def section(rows: list[Row]) -> str:
    """The section of the page."""
    body, above, count = [], [], 0
    for name in distinct(rows, "measure"):
        value = {row["case"]: row["value"] for row in pick(rows, measure=name)}
        if name == SMALLER:
            smaller = value
            continue
        count = int(value[COUNT])
        above += [name] if value[LARGEST] > 1 + 1e-6 else []
        body.append([name, f"{count:,}", *(f"{value[case]:.3g}" for case in (MEDIAN, HIGH, LARGEST))])
    return (
        "## Bounds with curvature of both signs\n\nMeasured over bound on random cosine losses "
        f"([theory](../../theory.md), section 6.1): αλ from 0.01 to 2, N from 1 to {MOST}, two points near and far; for the "
        f"theorem, {RUNS} runs of {ITERATIONS} meta-steps of {TASKS} tasks each, with the adapted gradients that were met.\n\n"
        f"{markdown(['bound', 'instances', MEDIAN, HIGH, LARGEST], body)}\n\n"
        + (f"Exceeded: {'; '.join(above)}. " if above else "No bound is exceeded. ")
        + "At the same α and point the constant of section 4, by L alone and the gradient before adaptation, is "
        f"{smaller[MEDIAN]:.2g} times the new one in the median and {smaller[HIGH]:.1e} times at the 90th percentile, over "
        f"{int(smaller[COUNT]):,} losses with αλ and N uniform up to 2 and {MOST}."
    )
