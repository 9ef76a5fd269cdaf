"""Sections of docs/benchmarks.md on images and on the networks for them; each takes the saved results of its name."""

import statistics

import ablations as ablation
import gpu_images as gpu
import roofline as limits
import time_to_accuracy as race
from tables import rows_of

_RUNS = {"prototypical": "a prototypical network", "pretrain": "pre-trained and fine-tuned"}


def share(score: dict, i: int) -> str:
    """An accuracy with its interval."""
    return f"{100 * score['mean'][i]:.1f} % [{100 * score['low'][i]:.1f}, {100 * score['high'][i]:.1f}]"


def images(result: dict) -> str:
    runs = sorted(result["runs"], key=lambda run: (list(_RUNS).index(run["name"]), run["seed"]))
    first, rows = runs[0], []
    for run in runs:
        steps, chosen = run["steps"].index(run["inner_steps"]), "by default"
        if "tuned" in run:
            chosen = f"best of {len(run['tuned'])} settings on {', '.join(run['tuned_on'])} ({run['tuned'][0]['adapt']} adapts)"
        accuracy = share(run["scores"]["accuracy"], steps)
        rows.append([_RUNS[run["name"]], str(run["seed"]), str(run["inner_steps"]), chosen, f"{run['step']:,}", accuracy])
    text = (
        f"`adaptax train images --method prototypical --inner-steps 0` (Conv4-{first['config'].get('channels', 32)}), trained "
        f"on 5-way 1-shot tasks of Omniglot's small background set 1, judged on {first['tasks']:,} tasks of "
        f"{first['judged_on']}, which it has not seen. Intervals are 95 % over tasks. "
        "[The table of learning](#what-the-defaults-learn) has MAML on the same tasks."
    )
    return f"{text}\n\n{rows_of(['', 'seed', 'N', 'chosen', 'meta-steps', 'accuracy'], rows)}"


def time_to_accuracy(result: dict) -> str:
    text = (
        "One recipe in every implementation: 5-way 1-shot, Conv4-32, N = 5, α = 0.1, Adam with a rate of 0.001, 16 "
        "tasks, the same initial parameters and the same batches (classes turned, images distorted). Training time with "
        f"compilation, without evaluations, one run on {result['machine']['cores']} cores; all are judged by one program "
        f"on {result['tasks']} fixed tasks of {', '.join(result['alphabets'])}."
    )
    return f"{text}\n\n{rows_of(*race.table(result))}"


def ablations(result: dict) -> str:
    found = {(row["recipe"], row["judged_on"][0]): row for row in result["rows"]}
    first, others = "Latin", sorted({alphabet for _, alphabet in found} - {"Latin"})
    cards = ", ".join(sorted({row["accelerator"] for row in result["rows"] if row.get("accelerator")}))

    def mark(row: dict) -> str:
        return "°" if row.get("accelerator") else ""

    body = []
    for recipe in [name for name in ablation.RECIPES if (name, first) in found]:
        row = found[recipe, first]
        score = {"mean": row["accuracy"], "low": row["low"], "high": row["high"]}
        places = (1, 2) if len(row["inner_steps"]) > 1 else (0,)
        both = ["", *(share(score, i) + mark(row) for i in places)][-2:]
        pairs = [found.get((recipe, alphabet)) for alphabet in others]
        rest = [" / ".join(f"{100 * x:.1f}" for x in r["accuracy"][1:]) + mark(r) if r else "" for r in pairs]
        body.append([recipe, *both, *rest])
    steps = ", ".join(sorted({f"{row['steps']:,}" for row in result["rows"]}))
    text = (
        f"5-way 1-shot characters, trained on four alphabets of Omniglot's small background set 1 for {steps} meta-steps "
        f"of 16 tasks (one seed), judged on 1,000 tasks of the fifth. {first} is judged for every recipe (95 % over "
        "tasks), and others in turn for what it chooses (% after N / 2 N steps). The base is N = 5, α = 0.1, the last "
        "layer adapts and is one class vector for all at first, classes turned, images distorted, 5 queries, Adam at "
        f"0.001, Conv4-32. Rows were run on a CPU; those with °, on {cards}."
    )
    return f"{text}\n\n{rows_of(['recipe', 'after N steps', 'after 2 N', *others], body)}"


def roofline(result: dict) -> str:
    text = (
        "The parts of one exact meta-gradient (N = 5), each compiled alone and run on all tasks of the batch. GFLOP are "
        "counted by formula, with convolutions as defined: most are computed by Winograd's algorithm, with 36 products "
        "for 144, and a Hessian-vector product forms the gradient once more, which is not counted. GB are the "
        f"compiler's. The fastest float32 matrix product here reaches {result['product_flops'] / 1e9:,.0f} GFLOP/s, and "
        f"memory {result['bytes_per_second'] / 1e9:,.0f} GB/s. Times are medians."
    )
    return f"{text}\n\n{rows_of(*limits.table(result))}"


def gpu_images(result: dict) -> str:
    rows = []
    for case in result["cases"]:
        sides = [side for part in ("adaptax", "torch") for side in case.get(part, {}).get("sides", []) if "seconds" in side]
        for number, side in enumerate(sides):
            name = gpu.WAYS[side["way"]] if "way" in side else f"PyTorch, {side['name']}"
            if side.get("in_flight", case["tasks"]) != case["tasks"]:
                name += f", {side['in_flight']} tasks at a time"
            name += ", ten in one program" if side.get("one_program") else ""
            off = f"{100 * side['difference']:.0f} %" if side.get("difference") else ""
            middle = statistics.median(side["seconds"])
            alike = ", deterministic" if case["adaptax"].get("deterministic") else ""
            device = f"{case['adaptax']['device']}, {case['tasks']} tasks{alike}" if number == 0 else ""
            compiled = f"{side['compile_s']:.0f} s" if "compile_s" in side else ""
            rate = f"{case['operations'] / middle / 1e12:,.1f}"
            rows.append([device, name, side["precision"], f"{1e3 * middle:,.1f} ms", rate, off, compiled])
    text = (
        "One exact meta-gradient of Conv4-64 on a GPU (28×28, 5-way 1-shot, 5 queries, N = 5, α = 0.1): median time, "
        "TFLOP/s by formula, how far the gradient is from that in single precision, and the time to compile it beside "
        "the other programs of the same card."
    )
    header = ["card", "side", "products in", "time", "TFLOP/s", "off by", "compiled in"]
    return f"{text}\n\n{rows_of(header, rows)}"
