"""The figures and the page of the rates' experiment, from its CSV alone: every number and statement is computed here."""

import math
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from adaptax.report import rates as draw
from adaptax.report.tables import markdown
from adaptax.reproduce.files import Row, distinct, pick, read_rows
from adaptax.reproduce.rates.maps import SINUSOID
from adaptax.reproduce.rates.parts import ADAPTIVE, COST_SIZES, EPSILON, FIXED, GUARANTEED
from adaptax.reproduce.rates.problems import CASES, FINITE, RESAMPLING

# What the theorem says of the cost's growth in N.
_PREDICTED = {(GUARANTEED, ADAPTIVE): "at most 1", (FIXED, ADAPTIVE): "exponential"}
_MAPS = ("converged", "stalled", "diverged")


def publish(out: Path) -> None:
    """Draw the figures and write README.md from rates.csv in a folder."""
    rows = read_rows(out / "rates.csv")
    parts = {name: pick(rows, part=name) for name in ("noise-free", "floor", "cost", "plan", "moments", "map")}
    draw.draw_noise_free(out, "noise-free", parts["noise-free"])
    draw.draw_floors(out, "floors", parts["floor"])
    draw.draw_costs(out, "costs", parts["cost"])
    draw.draw_moments(out, "moments", parts["moments"])
    draw.draw_maps(out, "maps", parts["map"])
    seeds = len(distinct(parts["noise-free"], "seed"))
    text = [
        "# Are the promised rates real?",
        "Written by `adaptax reproduce rates` from [rates.csv](rates.csv).",
        "The convergence theorems ([theory](../../theory.md), section 6) on problems whose constants and "
        "meta-gradients are known "
        "exactly (section 9): six parameters, eight tasks, cosine losses with c = 0.5 (map: 2) and quadratics. α = 1/(8NL), "
        "C_β = 2 and the adaptive outer step with known constants, unless it is said otherwise. Lines are means or "
        "medians over "
        f"{seeds} seeds, bands reach from the smallest to the largest; intervals are 95 %.",
        _noise_free(parts["noise-free"]),
        _floors(parts["floor"]),
        _costs(parts["cost"], parts["plan"]),
        _moments(parts["moments"]),
        _maps(parts["map"]),
    ]
    (out / "README.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


def slope(x: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The slope of log values over log x: the mean over seeds (columns) and half its 95 % interval."""
    logs = np.log(x)
    found = [np.polyfit(logs, np.log(column), 1)[0] for column in values.T]
    half = student.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return float(np.mean(found)), float(half)


def said(pair: tuple[float, float]) -> str:
    """A slope in words."""
    return f"{pair[0]:.2f} ± {pair[1]:.2f}"


def _noise_free(rows: list[Row]) -> str:
    body, worst = [], 0.0
    for problem in distinct(rows, "problem"):
        for case in CASES:
            run = pick(rows, problem=problem, case=case)
            phi = pick(run, measure="mean phi")
            x, values = draw.bands(phi)
            _, bounds = draw.bands(phi, "bound")
            late = x >= x.max() / 30
            ratio = values / bounds
            worst = max(worst, float(ratio.max()))
            least = draw.bands(pick(run, measure="least square"))[1]
            last = f"{np.median(values[-1]):.3g} / {np.median(bounds[-1]):.3g}"
            slopes = said(slope(x[late], values[late])), said(slope(x[late], bounds[late]))
            body.append(
                [problem, case, last, *slopes, f"{np.median(ratio):.2f}, {ratio.max():.2f}", f"{np.median(least[-1]):.1g}"]
            )
    header = [
        "problem",
        "case",
        "mean φ / bound at the last K",
        "slope in K",
        "slope of the bound",
        "ratio: median, largest",
        "least ‖∇L‖²",
    ]
    return (
        "## Without noise\n\nAll tasks in every meta-step, exact smoothness. The theorem promises that the mean over k < K of "
        "φ(‖∇L‖), φ(y) = y²/(a + cy), is at most R = C_βΔ/(κK), with Δ from a lower bound of the meta-loss.\n\n"
        f"![Convergence without noise](noise-free.png)\n\n{markdown(header, body)}\n\n"
        f"The bound holds everywhere, and the largest ratio of measured to bound is {worst:.2f}. A slope of −1 of the "
        f"mean is no "
        "evidence in itself, as any summable sequence has it: the constant beside it is. The least of ‖∇L‖² falls "
        "geometrically here, much faster than any such bound can say, for near its minimum the meta-loss is strongly convex."
    )


def _floors(rows: list[Row]) -> str:
    body, off = [], []
    for problem in distinct(rows, "problem"):
        for case, size in dict.fromkeys((row["case"], row["measure"]) for row in rows):
            found = slope(*draw.bands(pick(rows, problem=problem, case=case, measure=size)))
            off.append(abs(found[0] + 1))
            body.append([problem, case, size, said(found), "−1"])
    return (
        "## The floor\n\nThe mean of ‖∇L‖² once training has settled, from tasks and samples that are drawn. Against B, "
        "S = D = T = D_L = 64; against S and T there is one task, and what is not varied is exact.\n\n"
        f"![Floors](floors.png)\n\n{markdown(['problem', 'case', 'against', 'slope', 'predicted'], body)}\n\n"
        f"The slopes differ from −1 by at most {max(off):.2f}."
    )


def _costs(rows: list[Row], plans: list[Row]) -> str:
    body = []
    for case in CASES:
        for rule, outer, samples in dict.fromkeys((r["rule"], r["outer"], r.get("samples")) for r in pick(rows, case=case)):
            run = [r for r in rows if (r["case"], r["rule"], r["outer"], r.get("samples")) == (case, rule, outer, samples)]
            steps = distinct(run, "steps")
            good = [n for n in steps if all(r["measure"] == "reached" for r in pick(run, steps=n))]
            passed = [f"{np.mean([r['x'] for r in pick(run, steps=n)]):.0f}" if n in good else "–" for n in steps]
            fit = "–"
            if good == steps:
                values = np.array([[max(r["value"], 1.0) for r in pick(run, steps=n)] for n in steps])
                fit = said(slope(np.array(steps, float), values))
            body.append(
                [
                    case,
                    rule + (f", {samples}" if samples else ""),
                    outer,
                    ", ".join(passed),
                    fit,
                    _PREDICTED.get((rule, outer), "nothing"),
                ]
            )
    numbers = ", ".join(str(n) for n in distinct(rows, "steps"))
    header = ["case", "inner step", "outer step", f"K at N = {numbers}", "exponent of N in the cost", "predicted"]
    worst = []
    for case in CASES:
        run = pick(plans, case=case)
        x = np.array([r["steps"] for r in run], float)
        worst.append(f"{case} {slope(x, np.array([[r['value']] for r in run]))[0]:.2f}")
    linear = [line for line in body if line[1].startswith(GUARANTEED) and line[2] == ADAPTIVE]
    sizes = COST_SIZES[RESAMPLING]
    found = [f"{line[4]} ({line[0]}{', ' + line[1].split(', ')[1] if ', ' in line[1] else ''})" for line in linear]
    return (
        f"## The cost of an accuracy\n\nOracle calls until ‖∇L(w_k)‖ ≤ {EPSILON:g} for the first time, with "
        f"{COST_SIZES[FINITE]['tasks_per_step']} tasks a meta-step (resampling: D = {sizes['curvature']}, T = "
        f"{sizes['target']}, D_L = 16); – where not all seeds reached it. The constant outer step is 1/(C_β q L) with the q of "
        "the guaranteed rule, what the adaptive one tends to.\n\n"
        f"![Cost against N](costs.png)\n\n{markdown(header, body)}\n\n"
        f"Under {GUARANTEED} the cost grows as N to the power {'; '.join(found)}. The number of meta-steps hardly "
        f"depends on N; "
        "what grows is what each of them costs, and with S falling as 1/N, as the bound on the bias allows, only "
        "Hessian-vector products do. With α fixed, the adaptive outer step pays for q = (1 + αL)^(2N): K rises ever "
        "faster with "
        "N until the accuracy is out of reach. A constant outer step is outside the theorem there; it may still do well where, "
        "as here, most curvature is positive. Under Edge the adapted gradient is short before training: ‖∇L‖ is then "
        "no measure "
        "of how good the parameters are, and a K near 0 no merit. What the planner asks for in the worst case grows with "
        f"exponents {', '.join(worst)} ({GUARANTEED})."
    )


def _moments(rows: list[Row]) -> str:
    body = []
    for row in rows:
        ratio = f"{row['value'] / row['bound']:.3g}" if row["bound"] > 0 else "–"
        number = f"{row['value']:.3g} ± {1.96 * row['error']:.1g}"
        body.append([row["measure"], *(f"{row[k]:g}" for k in ("steps", "S", "D")), number, f"{row['bound']:.3g}", ratio])
    bias = pick(rows, measure="bias")
    by_s = sorted((r for r in bias if r["steps"] == 8 and r["D"] == 4), key=lambda r: r["S"])
    by_n = [r for r in bias if (r["S"], r["D"]) == (4, 4)]
    fits = []
    for run, column in ((by_s, "S"), (by_n[1:], "steps")):
        x = np.array([float(r[column]) for r in run])
        fits.append([slope(x, np.array([[r[e]] for r in run]))[0] for e in ("value", "bound")])
    return (
        "## Bias and second moment\n\nOf one sampled meta-gradient at one w, with T = 4 and noise s_x = s_z = 1.\n\n"
        f"![Bias and second moment](moments.png)\n\n"
        f"{markdown(['measure', 'N', 'S', 'D', 'measured', 'bound', 'ratio'], body)}\n\n"
        f"Both bounds hold. The bias falls with S to the power {fits[0][0]:.2f} and with N (from 2 on) to the power "
        f"{fits[1][0]:.2f}; the bound says {fits[0][1]:.2f} and {fits[1][1]:.2f}. It is not tight here, and cannot be "
        f"without a "
        "further assumption: where third derivatives are bounded, as they are here, the first-order effect of the "
        "path's noise on "
        "the Hessians has a mean of order 1/S, and the term in 1/√S falls away."
    )


def _maps(rows: list[Row]) -> str:
    body = []
    for problem, outer in dict.fromkeys((row["problem"], row["outer"]) for row in rows):
        for where, keep in (("below the curve", True), ("above it", False)):
            run = [r for r in pick(rows, problem=problem, outer=outer) if (r["alpha"] < r["curve"]) == keep]
            counts = [sum(r["measure"] == outcome for r in run) for outcome in _MAPS]
            body.append([problem, outer, where, *map(str, counts)])
    below = sum(int(line[-1]) for line in body if line[2] == "below the curve")
    learned = sum(int(line[3]) for line in body if line[0] == SINUSOID and line[2] == "below the curve")
    return (
        "## Where training converges\n\nOne run for each pair. The curve is α = (2^(1/(2N)) − 1)/L, below which q < 2 and the "
        "theorem holds (for the cosine problem with the adaptive outer step; the network has no global L, and the "
        "curve uses the "
        "largest eigenvalue at the initial parameters). Converged: ‖∇L‖ small at the end; for sinusoids, a loss after "
        "adaptation "
        "that no network reaches without it. Diverged: not finite, or worse than at the start.\n\n"
        f"![Maps](maps.png)\n\n{markdown(['problem', 'outer step', 'α', *_MAPS], body)}\n\n"
        f"Below the curve {below or 'none'} diverged. The curve is sufficient, not necessary: runs converge far above it too"
        + (", and for sinusoids only there, which is why the practical rule is Edge." if not learned else ".")
    )
