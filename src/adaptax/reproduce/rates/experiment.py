"""The promised rates: docs/theory.md, section 6, on problems with known constants."""

from pathlib import Path

import jax

from adaptax.errors import InputError
from adaptax.reproduce.files import Row, Say, write_rows
from adaptax.reproduce.rates.maps import cosine_map, sinusoid_map
from adaptax.reproduce.rates.page import publish
from adaptax.reproduce.rates.parts import costs, floors, moments, without_noise

COLUMNS = (
    "part", "problem", "case", "steps", "rule", "outer", "samples", "S", "D", "alpha", "seed", "x", "measure", "value", "error",
    "bound", "curve",
)  # fmt: skip


def rates(out: Path, seeds: int = 8, scale: float = 1.0, say: Say = print, *, largest: int = 64) -> None:
    r"""Measure what the convergence theorems promise, and write rates.csv, figures and README.md.

    (a) $\|\nabla\mathcal L\|$ against K without noise, (b) the floor against B, S and T, (c) the cost to reach an accuracy
    against N, (d) bias and second moment against their bounds, (e) maps over $(\alpha, N)$. In double precision, on losses
    whose constants and meta-gradients are known exactly; the last map is of sinusoids.

    Arguments:
        out: the folder; made if it is not there.
        seeds: runs behind every band (default 8).
        scale: multiplies the numbers of meta-steps and draws (default 1).
        say: told how far it is (default: printed).
        largest: the largest N, a power of two (default 64).

    Errors: `InputError` for fewer than two seeds or a scale that is not positive.

    Example:
        >>> from pathlib import Path
        >>> rates(Path("reproduced/rates"), seeds=2, scale=0.01)  # doctest: +SKIP

    Source: docs/theory.md, sections 5, 6 and 9; cf. Ji, Yang, Liang (2022), JMLR 23.
    """
    if seeds < 2:
        raise InputError(f"seeds={seeds} must be a whole number of at least 2: bands are over them.")
    if not 0 < scale < float("inf"):
        raise InputError(f"scale={scale} must be a positive number.")
    out.mkdir(parents=True, exist_ok=True)
    times = lambda count: max(int(scale * count), 8)  # noqa: E731
    rows: list[Row] = []
    with jax.enable_x64(True):
        for name, part in {
            "convergence without noise": without_noise(seeds, times(10_000)),
            "floors": floors(seeds, times(2_500)),
            "cost against N": costs(seeds, times(3_000), largest),
            "bias and second moment": moments(16 * times(4_000)),
            "map of the cosine problem": cosine_map(times(500), largest),
        }.items():
            rows += list(part)
            say(f"{name}: measured")
    rows += list(sinusoid_map(times(800), largest))
    say("map of sinusoids: measured")
    write_rows(out / "rates.csv", COLUMNS, rows)
    publish(out)
