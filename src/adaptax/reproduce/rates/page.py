"""The figures and the page of the rates experiment, which are made from its CSV and its settings alone."""

from pathlib import Path

from adaptax.report import rates as draw
from adaptax.report.rows import distinct, pick
from adaptax.reproduce.csv_rows import Row, read_rows
from adaptax.reproduce.rates import (
    bias_and_second_moment,
    bounds_on_instances,
    convergence_map,
    convergence_without_noise,
    cost_by_adapted_gradients,
    cost_of_accuracy,
    noise_floor,
)
from adaptax.reproduce.rates.problems import AMPLITUDES, C_BETA, COSINE, DIM, GUARANTEED, ROUGH, TASKS


def publish(out: Path) -> None:
    """Draw the figures and write README.md from rates.csv in a folder."""
    rows = read_rows(out / "rates.csv")
    draw.draw_noise_free(out, "noise-free", pick(rows, part=convergence_without_noise.PART))
    draw.draw_floors(out, "floors", pick(rows, part=noise_floor.PART))
    draw.draw_costs(out, "costs", pick(rows, part=cost_of_accuracy.PART))
    at = (bias_and_second_moment.AT_STEPS, bias_and_second_moment.AT_S, bias_and_second_moment.AT_D)
    draw.draw_moments(out, "moments", pick(rows, part=bias_and_second_moment.PART), *at)
    draw.draw_maps(out, "maps", pick(rows, part=convergence_map.PART))
    (out / "README.md").write_text(compose(rows), encoding="utf-8")


def compose(rows: list[Row]) -> str:
    """The page, from the rows of the CSV."""
    free = pick(rows, part=convergence_without_noise.PART)
    seeds = len(distinct(free, "seed"))
    scale = max(row["x"] for row in free) / convergence_without_noise.ITERATIONS
    text = [
        "# Are the promised rates real?",
        f"Written by `adaptax reproduce rates --seeds {seeds} --scale {scale:g}` from [rates.csv](rates.csv).",
        "The convergence theorems ([theory](../../theory.md), section 6) on problems whose constants and meta-gradients are "
        f"known exactly (section 9): {DIM} parameters, {TASKS} tasks, cosine losses with c = {AMPLITUDES[COSINE]:g} (map: "
        f"{AMPLITUDES[ROUGH]:g}) and quadratics. {GUARANTEED}, C_β = {C_BETA:g} and the adaptive outer step with known "
        f"constants, where nothing else is said. Lines are means or medians over {seeds} seeds, bands reach from the smallest "
        "to the largest; intervals are 95 %.",
        convergence_without_noise.section(free),
        noise_floor.section(pick(rows, part=noise_floor.PART)),
        cost_of_accuracy.section(pick(rows, part=cost_of_accuracy.PART), pick(rows, part=cost_of_accuracy.PLAN)),
        cost_by_adapted_gradients.section(pick(rows, part=cost_by_adapted_gradients.PART)),
        bias_and_second_moment.section(pick(rows, part=bias_and_second_moment.PART)),
        bounds_on_instances.section(pick(rows, part=bounds_on_instances.PART)),
        convergence_map.section(pick(rows, part=convergence_map.PART)),
    ]
    return "\n\n".join(text) + "\n"
