"""What the documents say of images, speed and memory; `readme.py` writes it."""

import statistics

from tables import paragraph, rows_of

_RUNS = {
    "5-1": "5-way 1-shot",
    "5-5": "5-way 5-shot",
    "20-1": "20-way 1-shot",
    "prototypical": "5-way 1-shot, prototypical network",
    "pretrain": "5-way 1-shot, pre-trained, its head fine-tuned",
}


def share(score: dict, i: int) -> str:
    """An accuracy with its interval."""
    return f"{100 * score['mean'][i]:.1f} % [{100 * score['low'][i]:.1f}, {100 * score['high'][i]:.1f}]"


@paragraph
def images(result: dict) -> str:
    runs = sorted(result["runs"], key=lambda run: (list(_RUNS).index(run["name"]), run["seed"]))
    first, rows = runs[0], []
    for run in runs:
        score, last = run["scores"]["accuracy"], len(run["steps"]) - 1
        chosen = [share(score, run["steps"].index(run["config"]["inner_steps"])), share(score, last)]
        apart = run["scores"].get("accuracy_nontransductive")
        alone = f"{100 * apart['mean'][last]:.1f} %" if apart else ""
        chosen = chosen if last else ["", chosen[0]]
        steps = f"{run['config']['inner_steps']}, {run['config']['stepsize']}"
        # Several runs at once shared the accelerator: their minutes would tell nothing.
        minutes = run.get("accelerator") or f"{run['minutes']:.1f}"
        rows.append([_RUNS[run["name"]], str(run["seed"]), steps, f"{run['step']:,}", minutes, *chosen, alone])
    config = first["config"]
    n = config["inner_steps"]
    header = [
        "",
        "seed",
        "N, step size",
        "meta-steps",
        "minutes",
        "after N steps",
        "after 2 N",
        "by the support set's statistics",
    ]
    text = (
        f"**Real images.** Characters: trained on Omniglot's small background set 1 on {result['machine']['cores']} cores "
        "(minutes with compilation and evaluation) or on the accelerator named, "
        f"judged on {first['tasks']:,} tasks of {first['judged_on']}, which it has not seen; Conv4-{config['channels']}, "
        f"trained by `adaptax train images`, of which N = {n} and `{config['stepsize']}` are the defaults "
        "(`benchmarks/images.py`; [what was chosen, and by what](docs/strategies.md)). 95 % over tasks; predictions are "
        "transductive, except in the last column."
    )
    return f"{text}\n\n{rows_of(header, rows)}"


@paragraph
def ablations(result: dict) -> str:
    from ablations import RECIPES

    found = {(row["recipe"], row["judged_on"][0]): row for row in result["rows"]}
    first, others = "Latin", sorted({alphabet for _, alphabet in found} - {"Latin"})
    score = lambda row: {"mean": row["accuracy"], "low": row["low"], "high": row["high"]}  # noqa: E731
    mark = lambda row: "°" if row.get("accelerator") else ""  # noqa: E731
    cards = ", ".join(sorted({row["accelerator"] for row in result["rows"] if row.get("accelerator")}))
    body = []
    for recipe in [name for name in RECIPES if (name, first) in found]:
        row = found[recipe, first]
        places = (1, 2) if len(row["inner_steps"]) > 1 else (0,)
        both = ["", *(share(score(row), i) + mark(row) for i in places)][-2:]
        pairs = [found.get((recipe, alphabet)) for alphabet in others]
        body.append([
            recipe, *both, *(" / ".join(f"{100 * x:.1f}" for x in r["accuracy"][1:]) + mark(r) if r else "" for r in pairs)
        ])  # fmt: skip
    steps = ", ".join(sorted({f"{row['steps']:,}" for row in result["rows"]}))
    text = (
        f"5-way 1-shot characters, trained on four alphabets of Omniglot's small background set 1 for {steps} meta-steps of "
        f"16 tasks (one seed), judged on 1,000 tasks of the fifth: {first} (95 % over tasks), and for what it chooses "
        "others in turn (% after N / 2 N steps), with the other four to train on. Base: "
        "N = 5, α = 0.1, the last layer adapts and is one class vector for all at first, classes turned, images distorted, 5 "
        f"queries, Adam at 0.001, Conv4-32. On a CPU; with °, on {cards} (`benchmarks/ablations.py`)."
    )
    return f"{text}\n\n{rows_of(['recipe', 'after N steps', 'after 2 N', *others], body)}"


@paragraph
def time_to_accuracy(result: dict) -> str:
    from time_to_accuracy import GOAL, table

    text = (
        f"**Time to {100 * GOAL:.0f} %.** 5-way 1-shot on the same data, training time with compilation, without evaluations, "
        f"one run on {result['machine']['cores']} cores; judged by {result['tasks']} fixed tasks "
        "(`benchmarks/time_to_accuracy.py`):"
    )
    return f"{text}\n\n{rows_of(*table(result))}"


@paragraph
def memory(result: dict) -> str:
    mib = lambda x: f"{x / 2**20:.0f}"  # noqa: E731
    kinds = {"recursion": "recursion", "recursion_sqrt": 'recursion, `store="sqrt"`', "backpropagation": "backpropagation"}
    header = ["N", *(str(row["inner_steps"]) for row in result["rows"])]
    rows = [[name, *(mib(row[kind]) for row in result["rows"])] for kind, name in kinds.items()]
    text = "**Memory.** MiB of temporaries of one compiled meta-gradient, Conv4-64, 28×28, one task (`benchmarks/memory.py`)."
    return f"{text}\n\n{rows_of(header, rows)}"


@paragraph
def memory_peers(result: dict) -> str:
    from memory_peers import table

    text = (
        "**Memory beside others.** Most memory resident of a process that forms one exact meta-gradient of one task, Conv4-64, "
        f"28×28; each may hold {result['limit_gib']} GiB; adaptax with the compiler (`benchmarks/memory_peers.py`)."
    )
    return f"{text}\n\n{rows_of(*table(result))}"


@paragraph
def peers(result: dict) -> str:
    header = ["", *(f"{case['title']} ({case['machine']['cpu'].replace('(R)', '')})" for case in result["cases"])]
    names = list(max((case["sides"] for case in result["cases"]), key=len))
    double = max(case["difference_float64"] or 0.0 for case in result["cases"])
    single = max(side["difference"] for case in result["cases"] for side in case["sides"].values())
    rows = []
    for name in names:
        cells = [f"`{name}`"]
        for case in result["cases"]:
            side = case["sides"].get(name)
            if side is None:
                cells.append("")
                continue
            milliseconds = 1e3 * statistics.median(side["seconds"])
            time = f"{milliseconds:,.{0 if milliseconds >= 100 else 1}f} ms"
            cells.append(f"{time}, {side['ratio']['text']}, {side['peak_mib']:,.0f} MiB")
        rows.append(cells)
    text = (
        "**Speed.** One exact second-order meta-gradient of a batch of tasks, N = 5, on "
        f"{result['cases'][0]['machine']['cores']} cores of the processor named: median time, ratio to adaptax [range over "
        "the rounds], most memory resident. All sides compute the same gradient from the same inputs, in double precision to "
        f"{double:.0e} (ResNet-12 was not asked); in single precision it is up to {100 * single:.0f} % apart on images, since "
        "rounding decides on which side of a ReLU a number lies, and inner steps amplify it (`benchmarks/peers.py`)."
    )
    return f"{text}\n\n{rows_of(header, rows)}"


@paragraph
def roofline(result: dict) -> str:
    from roofline import table

    text = (
        "Where the time of one exact meta-gradient goes (N = 5): its parts, each compiled alone and run on all tasks of the "
        "batch. GFLOP by formula, convolutions as defined (most are computed by Winograd's algorithm, with 36 products for "
        "144, and a Hessian-vector product forms the gradient once more, which is not counted); GB by the compiler. "
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores: the fastest float32 matrix product "
        f"{result['product_flops'] / 1e9:,.0f} GFLOP/s, memory {result['bytes_per_second'] / 1e9:,.0f} GB/s "
        "(`benchmarks/roofline.py`)."
    )
    return f"{text}\n\n{rows_of(*table(result))}"


@paragraph
def gpu_images(result: dict) -> str:
    ways = {
        "adaptax": "adaptax",
        "rows": "adaptax, one matrix product a convolution, its derivatives the compiler's",
        "grouped": "adaptax, the compiler's convolution",
    }
    rows = []
    for case in result["cases"]:
        sides = [side for part in ("adaptax", "torch") for side in case.get(part, {}).get("sides", []) if "seconds" in side]
        for number, side in enumerate(sides):
            name = ways[side["way"]] if "way" in side else f"PyTorch, {side['name']}"
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
        "One exact meta-gradient of Conv4-64 on a GPU (28×28, 5-way 1-shot, 5 queries, N = 5, α = 0.1): median time, TFLOP/s "
        "by formula, how far the gradient is from that in single precision, and the time to compile it beside the other "
        "programs of the same card (`benchmarks/gpu_images.py`)."
    )
    header = ["card", "side", "products in", "time", "TFLOP/s", "off by", "compiled in"]
    return f"{text}\n\n{rows_of(header, rows)}"


@paragraph
def first_step(result: dict) -> str:
    middle = {
        name: {k: statistics.median(r[k] for r in rs) for k in ("seconds", "peak_mib")} for name, rs in result["cases"].items()
    }
    long = middle["N = 1,000"]
    return (
        f"**Start.** From a process's start to the end of the first meta-step of Conv4-32 (16 tasks, 5-way 1-shot, N = 5) "
        f"{middle['cold']['seconds']:.1f} s, with `JAX_COMPILATION_CACHE_DIR` set from the second time on "
        f"{middle['warm']['seconds']:.1f} s. The same network with N = 1,000: compilation and three meta-steps of 2 tasks in "
        f"{long['seconds']:.0f} s, at most {long['peak_mib']:,.0f} MiB resident (`benchmarks/first_step.py`)."
    )
