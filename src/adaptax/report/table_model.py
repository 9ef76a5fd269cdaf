"""What a trained model of a table is worth, in words."""

from typing import Any

import numpy as np

_NAMES = {
    "additive": "a last layer in closed form, on features of single columns",
    "ridge": "a last layer in closed form, on features of all columns",
    "head": "the last layer, by gradient steps",
    "all": "the whole network, by gradient steps",
}


def describe(model: Any, target: str) -> str:
    """The report of `adaptax train table`.

    Arguments:
        model: a fitted `MetaRegressor` or `MetaClassifier`.
        target: the name of the target.
    """
    report, what = model.report_, "log loss" if hasattr(model, "classes_") else f"mean absolute error of {target}"
    after, before = report["error"], report["error_before"]
    lines = [f"Adapts {_NAMES[model.model_]} ({model.model_})."]
    if not len(after):
        return "\n".join([*lines, "One group alone: nothing was held out, and no error can be said."])
    lines += [
        f"{what} on {len(after):,} groups, each held out of training when it was judged:",
        f"  before adaptation  {_with_interval(before)}",
        f"  after adaptation   {_with_interval(after)}",
        f"  the worst group    {after.max():.4g} ({report['group'][after.argmax()]})",
    ]
    return "\n".join([*lines, worth(*model.gain_)])


def worth(gain: float, low: float) -> str:
    """Whether adaptation is worth it, by its mean gain and the lower end of a one-sided interval."""
    if low > 0:
        return f"Adaptation lowers the error by {gain:.4g} (at least {low:.4g} with 95 % confidence)."
    return (
        f"Adaptation is not worth it here: it changes the error by {-gain:+.4g}, and a gain is not certain (95 % confidence). "
        "The predictions without it are as good."
    )


def _with_interval(values: np.ndarray) -> str:
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.4g} ± {half:.2g}"
