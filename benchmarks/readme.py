"""Write the tables of the README and of docs/strategies.md from the saved results, so that no figure is typed by hand.

python benchmarks/readme.py [--demo demo/demo.json]

With --demo the figures of a run of `adaptax demo` are taken over into results/ first.
"""

import argparse
import re
from pathlib import Path

from readme_images import ablations, first_step, gpu_images, images, memory, memory_peers, peers, roofline, time_to_accuracy
from tables import RESULTS, ROOT, paragraph, rows_of


@paragraph
def demo(result: dict) -> str:
    """What `make demo` prints."""
    header = ["gradient steps on a new task", *map(str, result["steps"])]
    rows = [[row["name"], *(f"{x:.2f}" for x in row["loss"]["mean"])] for row in result["methods"]]
    text = (
        f"Mean squared error on {result['held_out_tasks']:,} held-out sinusoids, 10 points each, by `make demo` "
        f"(N = {result['inner_steps']}, `Edge`, {result['meta_steps']:,} meta-steps, {result['seconds']:.0f} s on 2 cores). "
        "On a processor that rounds otherwise the same seed ends elsewhere:"
    )
    return f"{text}\n\n{rows_of(header, rows)}"


@paragraph
def blowup(result: dict) -> str:
    from blowup import table

    text = (
        f"**No blow-up.** Held-out loss after N steps, mean and standard error over seeds 0 to 2, {result['meta_steps']:,} "
        f"meta-steps on sinusoids with Adam; meta-steps that had to be skipped in brackets (`benchmarks/blowup.py`)."
    )
    return f"{text}\n\n{table(result['rows'])}"


@paragraph
def navigation_speed(result: dict) -> str:
    from navigation_speed import STEPS, table

    limit = STEPS / (result["operations"] / result["product_flops"])
    text = (
        "**Speed of meta-reinforcement learning.** Planar navigation, 20 tasks of 20 episodes, horizon 100, one inner step, "
        f"policy 2-100-100-2, Adam on the meta-gradient; training included, on {result['machine']['cores']} cores "
        f"({result['machine']['cpu']}): median over rounds, ratio [range]. All sides compute the same gradient from the same "
        f"episodes. A run of 200 meta-iterations takes adaptax {result['run_of_200_seconds']:.0f} s, compilation included "
        f"(`benchmarks/navigation_speed.py`). A meta-iteration takes at least {result['operations'] / 1e9:.1f} GFLOP, and "
        f"matrix products reach {result['product_flops'] / 1e9:.0f} GFLOP/s here, so that more than {limit / 1e6:.2f} million "
        "environment steps a second are out of reach of any program in single precision:"
    )
    return f"{text}\n\n{table(result)}"


@paragraph
def cheetah(result: dict) -> str:
    from cheetah import table

    config, counts = result["seeds"][0]["config"], {record["final"]["step"] for record in result["seeds"]}
    taken = f"{min(counts):,}" + (f" to {max(counts):,}" if len(counts) > 1 else "")
    text = (
        f"**Half cheetah.** It must find out whether to run forwards or backwards: {len(result['seeds'])} seeds side by side "
        f"for {result['minutes']:.0f} minutes on {result['machine']['cores']} cores, {taken} meta-steps of "
        f"{config['tasks_per_step']} tasks with {config['trajectories']} episodes of {config['horizon']} steps "
        "(`benchmarks/cheetah.py`). Return on held-out tasks, 95 % over tasks, before and after 1, 2, 3 gradient steps of "
        f"{config['trajectories']} episodes; [along training](docs/experiments/cheetah/returns.png):"
    )
    return f"{text}\n\n{rows_of(*table(result))}"


@paragraph
def gpu_rl(result: dict) -> str:
    names = {"mjx": "mujoco-mjx", "mujoco": "MuJoCo's C engine, called from the compiled program"}
    cases = [case for case in result["cases"] if "failed" not in case]
    rates = "; ".join(f"{c['steps_per_s']:,.0f} with {c['episodes']:,} episodes abreast ({names[c['engine']]})" for c in cases)
    return f"Environment steps/s of the half cheetah on one {result['device']}: {rates} (`benchmarks/gpu_rl.py`)."


def results() -> str:
    writers = images, time_to_accuracy, peers, navigation_speed, cheetah, gpu_rl, memory, memory_peers, first_step, blowup
    return "\n\n".join(part for part in (write() for write in writers) if part)


@paragraph
def strategies(result: dict) -> str:
    from strategies import memory_table, table

    text = (
        f"One meta-gradient, N = {result['inner_steps']}: oracle calls for one task; median time of a batch on one device "
        f"({result['machine']['cpu']}), in brackets the ratio to the exact one. Sinusoids: MLP 1-40-40-1, 25 tasks; images: "
        "Conv4-64, 28×28, 8 tasks, 5-way 1-shot, 5 queries (`benchmarks/strategies.py`)."
    )
    memory = "Temporaries of one compiled meta-gradient of one sinusoid task, by the compiler's own analysis:"
    return f"{text}\n\n{table(result)}\n\n{memory}\n\n{memory_table(result)}"


@paragraph
def memory_method(result: dict) -> str:
    from memory_method import table

    text = (
        f"Norm of the exact gradient of the meta-objective at the end, mean ± standard deviation over seeds: cosine problem, a "
        f"pool of {result['pool']} tasks, N = {result['inner_steps']}, α = {result['alpha']}, `optax.sgd` with the constant "
        f"step size {result['beta']}, B tasks a meta-step (`benchmarks/memory_method.py`)."
    )
    return f"{text}\n\n{table(result)}"


@paragraph
def difference_widths(result: dict) -> str:
    from difference_widths import table

    text = (
        f"Relative error of Hv of `FiniteDifference` over its width, single precision, `conv4` with 32 channels at its initial "
        f"parameters, 5-way 1-shot: median [range] over {result['tasks']} tasks (`benchmarks/difference_widths.py`). Leaving "
        "the Hessian out has an error of 1."
    )
    return f"{text}\n\n{table(result)}"


# The document and the writer of each section.
SECTIONS = {
    "demo": ("README.md", demo),
    "results": ("README.md", results),
    "strategies": ("docs/strategies.md", strategies),
    "difference-widths": ("docs/strategies.md", difference_widths),
    "memory-method": ("docs/strategies.md", memory_method),
    "ablations": ("docs/strategies.md", ablations),
    "roofline": ("docs/strategies.md", roofline),
    "gpu-images": ("docs/strategies.md", gpu_images),
}


def pattern(name: str) -> re.Pattern:
    return re.compile(rf"(<!-- {name}:begin -->)(.*?)(<!-- {name}:end -->)", re.DOTALL)


def section(text: str, name: str) -> str:
    """What stands between the markers of that name."""
    found = pattern(name).search(text)
    if found is None:
        raise ValueError(f"there are no markers <!-- {name}:begin --> and <!-- {name}:end -->")
    return found.group(2).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, help="demo.json of a run of adaptax demo")
    taken = parser.parse_args().demo
    if taken is not None:
        (RESULTS / "demo.json").write_text(taken.read_text())
    for name, (document, write) in SECTIONS.items():
        path = ROOT / document
        text = path.read_text()
        before, after = (f"<!-- {name}:{edge} -->" for edge in ("begin", "end"))
        start, end = text.index(before), text.index(after)
        path.write_text(f"{text[:start]}{before}\n{write()}\n{text[end:]}")


if __name__ == "__main__":
    main()
