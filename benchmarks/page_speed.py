"""Sections of docs/benchmarks.md on speed, memory, stability and reinforcement learning; each takes the results of its name."""

import statistics

import cheetah as halfcheetah
import difference_widths as widths
import first_step as start
import host_batches as host
import in_flight as groups
import learning as defaults
import memory as compiled
import memory_method as remembered
import memory_peers as resident
import navigation_speed as navigation
import peers as sides
import plain_jax as beside
import precision as arithmetic
import store as few
import strategies as methods
from tables import rows_of


def demo(result: dict) -> str:
    header = ["gradient steps on a new task", *map(str, result["steps"])]
    rows = [[row["name"], *(f"{x:.2f}" for x in row["loss"]["mean"])] for row in result["methods"]]
    text = (
        f"Mean squared error on {result['held_out_tasks']:,} held-out sinusoids, 10 points each, by `make demo` (N = "
        f"{result['inner_steps']}, all defaults, {result['meta_steps']:,} meta-steps). On a processor that rounds otherwise "
        "the same seed ends nearby."
    )
    return f"{text}\n\n{rows_of(header, rows)}"


_PLAIN = (
    " Plain JAX is `jit(vmap(grad(scan)))` of a network with `lax.conv_general_dilated`, without adaptax. PyTorch's libraries "
    "and `torch.func` run eagerly except where `torch.compile` is named."
)


def _compiled_or_not(cases: list[dict]) -> str:
    """How far the compiler alone goes on the small network, where the figures show it."""
    case = next((case for case in cases if case["name"] == "sinusoid"), {"sides": {}})
    medians = {name: statistics.median(side["seconds"]) for name, side in case["sides"].items() if "failed" not in side}
    plain = [time / medians["adaptax"] for name, time in medians.items() if name.startswith("plain JAX")]
    eager = [medians[name] / medians["adaptax"] for name in ("TorchOpt", "higher", "learn2learn-style") if name in medians]
    if not (plain and eager and min(plain) < 1.5 and min(eager) > 5):
        return ""
    return (
        f" On the sinusoids plain JAX takes {min(plain):.2f} times as long as adaptax, and PyTorch's loops {min(eager):.0f} to "
        f"{max(eager):.0f} times: that gap is between compiled programs and Python's loops, not between libraries."
    )


def peers(result: dict) -> str:
    new = {case["name"] for case in result["cases"] if case.get("commit")}
    # Figures of an older program are not shown beside those of this one.
    cases = [case for case in result["cases"] if case.get("commit") or case["name"] not in new]
    double = max(case["difference_float64"] or 0.0 for case in cases)
    single = max(side.get("difference", 0) for case in cases for side in case["sides"].values())
    text = (
        "One exact second-order meta-gradient of a batch of tasks, N = 5: median time, ratio to adaptax over the rounds, how "
        "the cores are used, most memory resident. Every side has the same inputs and all cores, and computes the same "
        f"gradient: in double precision to {double:.0e} (ResNet-12 was not asked), in single to {100 * single:.0f} %, "
        "since rounding decides on which side of a ReLU a number lies, and inner steps amplify it."
    )
    text += _PLAIN + _compiled_or_not(cases) if any("plain JAX" in case["sides"] for case in cases) else ""
    parts = []
    for case in cases:
        where = case["machine"]["cpu"].replace("(R)", "")
        parts += [f"### {case['title']}, on {where}", rows_of(*sides.table(case)), provenance(case)]
    return "\n\n".join([text, *parts])


def memory(result: dict) -> str:
    text = "MiB of temporaries of one compiled meta-gradient of one task, Conv4-64, 28×28, by the compiler's own analysis."
    return f"{text}\n\n{rows_of(*compiled.table(result))}"


def memory_peers(result: dict) -> str:
    text = (
        "Most memory resident of a process that forms one exact meta-gradient of one task, Conv4-64, 28×28. Each process "
        f"may hold {result['limit_gib']} GiB; those of adaptax and plain JAX hold the compiler too."
    )
    return f"{text}\n\n{rows_of(*resident.table(result))}"


def in_flight(result: dict) -> str:
    text = (
        "Median time of one program on one device (N = 5), and the memory that it sets aside for temporary values, by how many "
        "tasks are held at a time. `batch` is the exact meta-gradient of a batch, `train` a meta-step with Adam, `evaluate` "
        "the adaptation and losses after 0 and 5 steps. The choice of adaptax is marked; the last columns compare it with the "
        "fastest, and with the least memory among those that are as fast."
    )
    return f"{text}\n\n{rows_of(*groups.table_of(result))}"


def first_step(result: dict) -> str:
    text = (
        "Seconds from a process's start to the end of the first meta-step of Conv4-32 (16 tasks, 5-way 1-shot, N = 5), "
        "cold and with what JAX's compilation cache holds, and to the end of three meta-steps of 2 tasks with N = 1,000."
    )
    return f"{text}\n\n{rows_of(*start.table(result))}"


def learning(result: dict) -> str:
    said = {
        "sinusoid": "Sinusoids: mean squared error on 1,000 tasks after 2,000 meta-steps of 25 tasks. ",
        "characters": "Characters: trained on Omniglot's small background set 1, judged on 1,000 tasks of the unseen alphabets "
        "of set 2. ",
        "navigation": "Navigation: return on 40 tasks after 200 meta-steps of 20 tasks with 20 episodes of 25 steps. ",
    }
    measured = {run["case"].split("-")[0] for run in result["runs"]}
    text = (
        "Held-out score after N inner steps, mean ± standard error over seeds 0 to 2, at equal meta-steps; only the inner step "
        f"sizes differ. {''.join(said[name] for name in said if name in measured)}The best fixed α is the best of the grid on "
        "the judged seeds themselves, which favours it. `Learned` begins at one value for each family, chosen by hand. "
        "Published: Table 1 of Finn, Abbeel and Levine, *Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*, "
        "ICML 2017 (arXiv:1703.03400), from much more data and training: 1,200 characters of all alphabets train, where 136 of "
        "five alphabets do here, the test has other characters of the same alphabets, and training takes 60,000 meta-steps; "
        "their ± is a 95 % interval over tasks. "
        "Their results on sinusoids and navigation are curves without numbers."
    )
    text += f"\n\n{defaults.table(result['runs'])}"
    if ways := defaults.ways_table(result["runs"]):
        text += f"\n\nThe demo's problem (10 points, N = 10, 7,000 meta-steps), by how learned step sizes are shared:\n\n{ways}"
    return text


def navigation_speed(result: dict) -> str:
    limit = navigation.STEPS / (result["operations"] / result["product_flops"])
    text = (
        "Planar navigation, 20 tasks of 20 episodes, horizon 100, one inner step, policy 2-100-100-2, Adam on the "
        "meta-gradient; training included. All sides compute the same gradient from the same episodes. A run of 200 "
        f"meta-iterations takes adaptax {result['run_of_200_seconds']:.0f} s, compilation included. A meta-iteration "
        f"takes at least {result['operations'] / 1e9:.1f} GFLOP, and matrix products reach "
        f"{result['product_flops'] / 1e9:.0f} GFLOP/s here, so that more than {limit / 1e6:.2f} million environment steps "
        "a second are out of reach of any program in single precision."
    )
    return f"{text}\n\n{navigation.table(result)}"


def cheetah(result: dict) -> str:
    saved = result["seeds"][0]["config"]
    config, counts = saved.get("defaults", {}) | saved, {record["final"]["step"] for record in result["seeds"]}
    taken = f"{min(counts):,}" + (f" to {max(counts):,}" if len(counts) > 1 else "")
    text = (
        f"The half cheetah must find out whether to run forwards or backwards: {_seeds(len(result['seeds']))} "
        f"for {result['minutes']:.0f} minutes on {_cores(result['machine']['cores'])}, {taken} meta-steps of "
        f"{config['tasks_per_step']} tasks with {config['trajectories']} episodes of {config['horizon']} steps. Return on "
        f"held-out tasks, 95 % over tasks, before and after 1, 2, 3 gradient steps of {config['trajectories']} episodes; "
        "[along training](experiments/cheetah/returns.png)."
    )
    return f"{text}\n\n{rows_of(*halfcheetah.table(result))}"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds side by side"


def _cores(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"


def gpu_rl(result: dict) -> str:
    names = {"mjx": "mujoco-mjx", "mujoco": "MuJoCo's C engine, called from the compiled program"}
    rows = [
        [names[case["engine"]], f"{case['episodes']:,}", f"{case['steps_per_s']:,.0f}"]
        for case in result["cases"]
        if "failed" not in case
    ]
    text = (
        f"Environment steps of the half cheetah a second on one {result['device']}, all episodes abreast; nothing is trained."
    )
    return f"{text}\n\n{rows_of(['engine', 'episodes', 'steps a second'], rows)}"


def strategies(result: dict) -> str:
    text = (
        f"One meta-gradient, N = {result['inner_steps']}: oracle calls for one task; median time of a batch on one "
        "device, in brackets the ratio to the exact one. Sinusoids: MLP 1-40-40-1, 25 tasks; images: Conv4-64, 28×28, 8 "
        "tasks, 5-way 1-shot, 5 queries."
    )
    memory = "Temporaries of one compiled meta-gradient of one sinusoid task, by the compiler's own analysis:"
    return f"{text}\n\n{methods.table(result)}\n\n{memory}\n\n{methods.memory_table(result)}"


def memory_method(result: dict) -> str:
    text = (
        "Norm of the exact gradient of the meta-objective at the end, mean ± standard deviation over seeds: cosine "
        f"problem, a pool of {result['pool']} tasks, N = {result['inner_steps']}, α = {result['alpha']}, `optax.sgd` with "
        f"the constant step size {result['beta']}, B tasks a meta-step."
    )
    return f"{text}\n\n{remembered.table(result)}"


def difference_widths(result: dict) -> str:
    text = (
        "Relative error of Hv of `FiniteDifference` in single precision, at the initial parameters of networks with relu and "
        f"max pool: median [range] over {result['tasks']} tasks. Rows with a δ are central differences of that width; the "
        "default finds one for each product. Leaving the Hessian out has an error of 1."
    )
    return f"{text}\n\n{widths.table(result)}"


def plain_jax(result: dict) -> str:
    text = (
        "The meta-gradient of adaptax (time, temporary values of the compiled program), and that of twenty lines of plain "
        "JAX, `jit(vmap(grad(scan)))`: its time over ours, and its memory. `checkpoint` wraps `jax.checkpoint` around the "
        "inner step, and `in turn` takes the tasks one after another. One core; all sides compute the same gradient of the "
        "same network, Conv4 with `lax.conv_general_dilated` in plain JAX."
    )
    return f"{text}\n\n{beside.table(result['rows'])}"


def store(result: dict) -> str:
    text = (
        f"One meta-gradient of N = {result['rows'][1]['steps']:,} inner steps of a transformer (4 layers, 128 wide, 64 "
        "letters), by how many iterates are kept: temporary values of the compiled program, and time."
    )
    return f"{text}\n\n{few.table(result)}"


def host_batches(result: dict) -> str:
    text = (
        "Tasks a second where batches come from the host: `ax.train(tasks=)`, which draws them ahead and takes up to 16 in one "
        "program, beside a loop of `ax.make_step` over the same batches."
    )
    return f"{text}\n\n{host.table(result)}"


def precision(result: dict) -> str:
    text = (
        "Relative error of the meta-gradient against the same in double precision, at the initial parameters: median (largest) "
        f"over {result['tasks']} tasks; α is 0.01 on sinusoids and 0.1 elsewhere. TF32 is emulated here: the factors of every "
        "product keep ten binary digits after the first. Its error enters by the inner steps, which amplify what rounds them; "
        "in the Hessian-vector products, two thirds of the work, it stays small. So "
        '`precision="bfloat16_curvature"` and `"tensorfloat32_curvature"` round those alone.'
    )
    return f"{text}\n\n{arithmetic.table(result)}"


def provenance(result: dict) -> str:
    """Where and with which program something was measured: each of its entries, where these say it themselves."""
    if isinstance(by_name := result.get("measured"), dict):
        return " ".join(dict.fromkeys(map(_origin, by_name.values())))
    lists = [found for name in ("runs", "rows") if isinstance(found := result.get(name), list)]
    entries = [entry for found in lists for entry in found if isinstance(entry, dict)]
    if any("measured" in entry for entry in entries):
        return " ".join(dict.fromkeys(_origin(entry.get("measured", result)) for entry in entries))
    return _origin(result)


def _origin(result: dict) -> str:
    machine = result.get("machine")
    if machine is None:
        return ""
    cores = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''}"
    where = f"{machine['cpu'].replace('(R)', '')}, {cores}, JAX {machine['packages']['jax']}"
    if result.get("commit") is None:
        return f"Measured on {where}, by an earlier version, whose commit was not recorded."
    return f"Measured by `{result['command']}` at commit {result['commit']}, on {where}."
