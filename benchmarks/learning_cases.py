"""The task families of `learning.py`: the options of each, and the step sizes tried."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# The rules beside fixed step sizes. "learned" has one for each parameter, from `Case.first`.
RULES = ("auto", "edge", "guaranteed", "learned")
# Ways to share learned step sizes, and Auto's first value held, each with its name in the table.
WAYS = {
    "auto": "`Auto()`",
    "held": "`Auto(learn=False)`",
    "learned:scalar": "`Learned(0.001)`",
    "learned:leaf": '`Learned(0.001, per="leaf")`',
    "learned:parameter": '`Learned(0.001, per="parameter")`',
    "learned:scalar:step": "`Learned(0.001, per_step=True)`",
    "learned:leaf:step": '`Learned(0.001, per="leaf", per_step=True)`',
    "learned:parameter:step": '`Learned(0.001, per="parameter", per_step=True)`',
}
INNER_STEPS = (1, 5, 10, 20, 50, 100)
TRAINED_ON, JUDGED_ON = "images_background_small1.zip", "images_background_small2.zip"


@dataclass(frozen=True)
class Case:
    """One family of tasks with its number of inner steps: a row of the table.

    Arguments:
        family: the command's name of the family.
        title: the row's name.
        score: what is judged.
        options: the options that differ from the command's defaults.
        fixed: the fixed step sizes tried.
        first: where learned step sizes begin.
        minutes: one run with one step size, on one core.
        rules: the step sizes that are not fixed.
        published: what Finn, Abbeel and Levine (ICML 2017) report in their Table 1, from other data; see the page.
    """

    family: str
    title: str
    score: str
    options: dict[str, Any]
    fixed: tuple[float, ...]
    first: float
    minutes: float = 1.0
    rules: tuple[str, ...] = field(default=RULES, kw_only=True)
    published: str = field(default="", kw_only=True)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every step size of this case, in order."""
        return (*self.rules, *map(str, self.fixed))

    @property
    def larger_is_better(self) -> bool:
        """Whether a larger score is better."""
        return self.score != "loss"


def _sinusoid(points: int, steps: int) -> Case:
    options = {"shots": points, "inner_steps": steps, "steps": 2000}
    fixed = (0.0003, 0.001, 0.003, 0.01, 0.03)
    return Case("sinusoid", f"sinusoids, {points} points, N = {steps}", "loss", options, fixed, 0.001, 0.2 + steps / 70)


def _characters(ways: int, shots: int, steps: int, minutes: float, published: str = "") -> Case:
    """All step sizes, or where there is a published figure the default alone, at the command's number of meta-steps."""
    options = {"ways": ways, "shots": shots, "steps": steps}
    title = f"characters, {ways}-way {shots}-shot, {steps:,} meta-steps"
    rules, fixed = (("auto",), ()) if published else (RULES, (0.1, 0.4, 1.6))
    return Case("images", title, "accuracy", options, fixed, 0.1, minutes, rules=rules, published=published)


def _navigation(steps: int) -> Case:
    # The smaller setting of docs/experiments/navigation: shorter episodes and a smaller policy.
    options = {"inner_steps": steps, "horizon": 25, "hidden": (32, 32)}
    return Case("navigation", f"navigation, N = {steps}", "return", options, (0.03, 0.1, 0.3, 1.0), 0.1, 1.0 * steps)


CASES = {f"sinusoid-{points}-{n}": _sinusoid(points, n) for points in (10, 5) for n in INNER_STEPS} | {
    "head": Case(
        "sinusoid", "sinusoids, 10 points, only the last layer adapts (a convex inner loss), N = 10", "loss",
        {"inner_steps": 10, "steps": 2000}, (0.001, 0.003, 0.01, 0.03, 0.1), 0.01, 0.2,
    ),
    "demo": Case(
        "sinusoid", "the demo", "loss", {"inner_steps": 10, "steps": 7000}, (), 0.001, 0.6, rules=tuple(WAYS)
    ),
    # The other step sizes at fewer meta-steps than the command's default, which is for the figures of the default alone.
    "characters-5-1-short": _characters(5, 1, 500, 1.5),
    "characters-5-5-short": _characters(5, 5, 500, 2),
    "characters-20-1-short": _characters(20, 1, 200, 3.2),
    "characters-5-1": _characters(5, 1, 5000, 13, "98.7 ± 0.4 %"),
    "characters-5-5": _characters(5, 5, 5000, 16, "99.9 ± 0.1 %"),
    "characters-20-1": _characters(20, 1, 2500, 40, "95.8 ± 0.3 %"),
    "navigation-1": _navigation(1),
    "navigation-3": _navigation(3),
    "navigation-5": _navigation(5),
}  # fmt: skip


def _last_layer(path: str) -> bool:
    return path.startswith("layers.2")


def built(name: str, kind: str, seed: int, data: Path | None) -> tuple[Any, Any]:
    """The options of a run, and what the command builds of them."""
    import adaptax as ax
    from adaptax.cli.families import FAMILIES

    case = CASES[name]
    files = {"data": data / TRAINED_ON, "test_data": data / JUDGED_ON} if case.family == "images" and data is not None else {}
    learned, *how = kind.split(":")
    named = kind in ("auto", "edge", "guaranteed") or kind in map(str, case.fixed)
    stepsize = kind if named else str(case.first)
    config = FAMILIES[case.family](**case.options, **files, seed=seed, stepsize=stepsize)
    made = config.build()
    inner = made.method.inner
    if name == "head":
        inner = ax.Inner(inner.steps, inner.stepsize, _last_layer)
    if kind == "held":
        inner = inner.with_stepsize(ax.stepsize.Auto(learn=False))
    elif learned == "learned":
        per = how[0] if how else "parameter"
        inner = inner.with_stepsize(ax.stepsize.Learned(case.first, per=per, per_step="step" in how))
    return config, replace(made, method=made.method.with_inner(inner))


def run(name: str, kind: str, seed: int, data: Path | None) -> dict[str, Any]:
    """Train with the outer defaults of the command, and judge after N steps on its held-out tasks."""
    import adaptax as ax
    from adaptax.cli.evaluate import SEED, finite

    case = CASES[name]
    config, made = built(name, kind, seed, data)
    row = {"case": name, "stepsize": kind, "seed": seed}
    try:
        state, history = ax.train(
            made.problem, made.params, made.method,
            optimizer=made.optimizer, steps=config.steps, tasks_per_step=config.tasks_per_step, seed=seed,
        )  # fmt: skip
    except ax.training.Diverged:
        return row | {"score": None, "skipped": None}
    n = config.inner_steps
    curve = ax.evaluate(
        made.held_out, state.params, state.inner, [0, n], config.evaluation_tasks, SEED, samples=made.method.samples
    )
    before, after = (finite(x) for x in curve.mean[case.score])
    return row | {
        "before": before,
        "score": after,
        "skipped": int(history["skipped"].sum()),
        "alpha_first": float(history["stepsize"][0]),
        "alpha_last": float(history["stepsize"][-1]),
    }
