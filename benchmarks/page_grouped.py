"""The section of docs/benchmarks.md on tables whose rows belong to groups."""

import math
import statistics

from tables import rows_of

# The quantile of Student's distribution for a two-sided interval of 95 %, by the number of splits.
_STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


def grouped(result: dict) -> str:
    """One table for each data set: methods against modes and numbers of support rows; the best of a column is bold."""
    runs, parts = result["runs"], []
    for name in dict.fromkeys(run["table"] for run in runs):
        mine = [run for run in runs if run["table"] == name]
        columns = sorted({(run["mode"], run["k"]) for run in mine}, key=lambda c: (c[0] != "random", c[1]))
        methods = list(dict.fromkeys(run["method"] for run in sorted(mine, key=lambda run: run["method"] != "adaptax")))
        means = {
            (method, column): _values(mine, method, column) for method in methods for column in columns
        }  # fmt: skip
        best = {
            column: min((statistics.mean(v) for (_, c), v in means.items() if c == column and v), default=0)
            for column in columns
        }
        body = [[method, *(_cell(means[method, column], best[column]) for column in columns)] for method in methods]
        seconds = [statistics.mean([run["seconds"] for run in mine if run["method"] == method]) for method in methods]
        body = [[*row, f"{value:.0f}"] for row, value in zip(body, seconds, strict=True)]
        splits = len({run["split"] for run in mine})
        unit = "log loss" if "accuracy" in mine[0] else "mean absolute error"
        parts.append(f"**{name}**, {unit} on held-out groups, mean over {splits} splits ± 95 % interval")
        parts.append(rows_of(["method", *(f"{mode}, K = {k}" for mode, k in columns), "seconds to fit"], body))
        parts += _coverage(mine)
    return "\n\n".join(parts)


def scale(result: dict) -> str:
    """Seconds and memory of one fit by the size of the table."""
    body = [
        [f"{row['groups']:,}", str(row["rows"]), str(row["columns"]), f"{row['table_mib']:.0f}", f"{row['fit_seconds']:.0f}",
         f"{row['fit_mib']:,.0f}", f"{row['predict_seconds']:.1f}"]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["groups", "rows of each", "columns", "MiB of the table", "seconds to fit", "MiB beside the table"]
    text = (
        "`ax.MetaRegressor(support=5)` on simulated groups, each size in a process of its own, compiling included; the last "
        "column is 10 predictions for each of 1,000 new groups."
    )
    return f"{text}\n\n{rows_of([*header, 'seconds to predict'], body)}"


def _values(runs: list[dict], method: str, column: tuple[str, int]) -> list[float]:
    return [run["error"] for run in runs if run["method"] == method and (run["mode"], run["k"]) == column]


def _cell(values: list[float], best: float) -> str:
    if not values:
        return ""
    mean = statistics.mean(values)
    text = f"{mean:.3g}"
    if len(values) > 1:
        text += f" ± {_STUDENT[min(len(values), 10)] * statistics.stdev(values) / math.sqrt(len(values)):.2g}"
    return f"**{text}**" if mean <= best else text


def _coverage(runs: list[dict]) -> list[str]:
    covered = [run["coverage"] for run in runs if "coverage" in run]
    chosen = [run["model"] for run in runs if "model" in run]
    said = ", ".join(f"{name} {chosen.count(name)}" for name in sorted(set(chosen)))
    parts = [f"Models that adaptax chose: {said}."] if said else []
    if covered:
        parts.append(f"Its intervals of 90 % covered {100 * statistics.mean(covered):.0f} % of the rows.")
    return [" ".join(parts)] if parts else []
