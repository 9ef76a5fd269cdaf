"""Results as tables: plain text for a terminal, and Markdown."""

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """A table with a line under its header; columns lie two spaces apart, and those not in `left` are aligned to the right.

    Example:
        >>> print(table(["steps", "loss"], [["0", "1.25"], ["10", "0.5"]]))
        steps  loss
        -----  ----
            0  1.25
           10   0.5
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]

    def pad(i: int, cell: str) -> str:
        return cell.ljust(widths[i]) if i in left else cell.rjust(widths[i])

    return "\n".join("  ".join(pad(i, cell) for i, cell in enumerate(line)).rstrip() for line in lines)


def interval(scores: dict[str, Any], i: int) -> str:
    """The mean and the 95 % interval of entry i of the scores "mean", "low" and "high", or "not finite"."""
    mean, low, high = (scores[name][i] for name in ("mean", "low", "high"))
    if None in (mean, low, high):
        return "not finite"
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def evaluation(result: dict[str, Any]) -> str:
    """One evaluation, as `adaptax evaluate` prints it.

    Arguments:
        result: what `evaluation.json` holds.
    """
    chosen = f" (the best on validation tasks of {result['trained']})" if "trained" in result else ""
    rule = "as given" if result["stepsize_rule"] == "number" else f"from {result['stepsize_rule']}, as in training"
    lines = [
        f"{result['task']} after {result['step']} meta-steps with N = {result['inner_steps']}{chosen}",
        f"{result['tasks']} held-out tasks (seed {result['seed']}): {result['judged_on']}",
        f"inner step size {_number(result['stepsize'])} ({rule}); mean and 95 % interval over tasks",
    ]
    if result["skipped"]:
        lines.insert(1, f"{result['skipped']} meta-steps were skipped: their meta-gradient or update was not finite")
    if lost := [(steps, bad) for steps, bad in zip(result["steps"], result.get("not_finite", ()), strict=False) if bad]:
        most = max(bad for _, bad in lost)
        lines.append(f"scores are not finite for up to {most} of {result['tasks']} tasks, from {lost[0][0]} inner steps on")
    if result["left_out"]:
        lines.insert(2, f"left out, being in the training data too: {', '.join(result['left_out'])}")
    names = sorted(result["scores"])
    rows = [[str(steps), *(interval(result["scores"][name], i) for name in names)] for i, steps in enumerate(result["steps"])]
    return "\n".join([*lines, "", table(["inner steps", *names], rows)])


def measured(result: dict[str, Any]) -> str:
    """Measured constants and the certificate of stationarity, as `adaptax measure` prints them.

    Arguments:
        result: what `adaptax measure --format json` prints.
    """
    rows = [[name, _number(value), _number(error)] for name, (value, error) in result["constants"].items()]
    norm = f"{_number(result['upper'])} at {100 * result['confidence']:g} %"
    lines = [
        f"{result['task']} after {result['step']} meta-steps with N = {result['inner_steps']}",
        f"constants on {result['constants_tasks']} tasks (seed {result['seed']})",
        "",
        table(["constant", "value", "standard error"], rows),
        "",
        f"alpha = {_number(result['alpha'])}, q = (1 + alpha L)^(2N) = {_number(result['q'])}; "
        "the theorem of a-priori rates needs q < 2",
        f"both signs apart: r = max(1 + alpha mu, alpha lam - 1) = {_number(result['r'])}, "
        f"r^(2N) = {_number(result['two_sided_q'])}; "
        f"alpha = min(1/lam, 1/(8 N mu)) would be {_number(result['two_sided_alpha'])}",
        f"norm of the meta-gradient on {result['tasks']} tasks: at most {norm}, "
        f"between {_number(result['low'])} and {_number(result['high'])}",
        f"verdict: {result['verdict']}",
        f"limits: {'; '.join(result['limits'])}",
    ]
    if result["points_skipped"]:
        lines.insert(2, f"{result['points_skipped']} Hessians were not finite and were passed over")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def comparison(result: dict[str, Any]) -> str:
    """Several initialisations side by side, as `adaptax demo` prints them.

    Arguments:
        result: what `demo.json` holds.
    """
    rows = result["methods"]
    header = ["inner steps", *(row["name"] for row in rows)]
    body = [[str(n), *(interval(row["loss"], i) for row in rows)] for i, n in enumerate(result["steps"])]
    body.append(["step size", *(f"{row['stepsize']:.3g}" for row in rows)])
    return table(header, body)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(markdown(["steps", "loss"], [["0", "1.25"]]))
        | steps | loss |
        | --- | --- |
        | 0 | 1.25 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
