"""The rates experiment: the theorems of docs/theory.md, section 6, on problems with known constants."""

from pathlib import Path

import jax

from adaptax._checks import check_real, check_whole
from adaptax.reproduce.csv_rows import Row, Say, write_rows
from adaptax.reproduce.rates import (
    bias_and_second_moment,
    bounds_on_instances,
    convergence_map,
    convergence_without_noise,
    cost_by_adapted_gradients,
    cost_of_accuracy,
    noise_floor,
)
from adaptax.reproduce.rates.page import publish

COLUMNS = (
    "part", "problem", "case", "steps", "rule", "outer", "samples", "S", "D", "alpha", "seed", "x", "measure", "value", "error",
    "bound", "curve",
)  # fmt: skip


def rates(out: Path, seeds: int = 8, scale: float = 1.0, say: Say = print, *, largest: int = 64) -> None:
    r"""Measure convergence beside the theorems' bounds, and write rates.csv, figures and README.md.

    (a) $\|\nabla\mathcal L\|$ against K without noise, (b) the floor against B, S and T, (c) the cost to reach an accuracy
    against N, (d) bias and second moment against their bounds, (e) maps over $(\alpha, N)$, (f) the cost under the two-sided
    rule, (g) the bounds by curvature of both signs on random losses. In double precision, on losses
    whose constants and meta-gradients are known exactly; the last map is of sinusoids.

    Arguments:
        out: the folder; made if it is not there.
        seeds: runs behind every band (default 8).
        scale: a factor on the numbers of meta-steps and draws (default 1).
        say: called with a sentence about the progress (default: it is printed).
        largest: N goes through the powers of two up to this number (default 64).

    Errors: `InputError` for fewer than two seeds, a scale that is not a positive, finite number, or a largest N below 1.

    Example:
        >>> from pathlib import Path
        >>> rates(Path("reproduced/rates"), seeds=2, scale=0.01)  # doctest: +SKIP

    Source: docs/theory.md, sections 5, 6, 6.1 and 9; cf. Ji, Yang, Liang (2022), JMLR 23.
    """
    seeds = check_whole("", "seeds", seeds, 2)
    scale, largest = check_real("", "scale", scale, above=0), check_whole("", "largest", largest)
    out.mkdir(parents=True, exist_ok=True)

    def times(count: int) -> int:
        return max(int(scale * count), 8)

    moments = bias_and_second_moment
    rows: list[Row] = []
    with jax.enable_x64(True):
        for name, measured in {
            "convergence without noise": convergence_without_noise.measure(seeds, times(convergence_without_noise.ITERATIONS)),
            "floors": noise_floor.measure(seeds, times(noise_floor.ITERATIONS)),
            "cost against N": cost_of_accuracy.measure(seeds, times(cost_of_accuracy.ITERATIONS), largest),
            "bias and second moment": moments.measure(moments.GROUPS * times(moments.DRAWS)),
            "cost under the two-sided rule": cost_by_adapted_gradients.measure(
                seeds, times(cost_by_adapted_gradients.ITERATIONS), largest
            ),
            "bounds on random losses": bounds_on_instances.measure(times(bounds_on_instances.INSTANCES)),
            "map of the cosine problem": convergence_map.measure_cosine(times(convergence_map.COSINE_ITERATIONS), largest),
        }.items():
            rows += list(measured)
            say(f"{name}: measured")
    rows += list(convergence_map.measure_sinusoid(times(convergence_map.SINUSOID_ITERATIONS), largest))
    say("map of sinusoids: measured")
    write_rows(out / "rates.csv", COLUMNS, rows)
    publish(out)
