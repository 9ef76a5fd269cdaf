"""Write docs/benchmarks.md, and the figures of README.md, from the saved results, so that no figure is typed by hand.

    python benchmarks/page.py [--demo demo/demo.json] [--check]

With --demo the figures of a run of `adaptax demo` are taken over into results/ first. README.md has its figures between the
markers <!-- figures:begin --> and <!-- figures:end -->, if it has them. With --check nothing is written: the command fails if
a document says something else than the results.
"""

import argparse
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import learning
import page_grouped
import page_images
import page_scale
import page_speed
import page_text
from learning_cases import CASES
from tables import RESULTS, ROOT, load, rows_of

PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"


@dataclass(frozen=True)
class Section:
    """A table under its heading: the results that it is made of, and the command that measures them."""

    title: str
    name: str
    command: str
    write: Callable[[dict], str]

    def text(self) -> str:
        """The section, or nothing while there are no results."""
        result = load(self.name)
        if result is None:
            return ""
        parts = [f"## {self.title}", f"`{self.command}`", self.write(result), page_speed.provenance(result)]
        return "\n\n".join(part for part in parts if part)


SECTIONS = (
    Section("Demo", "demo", "make demo", page_speed.demo),
    Section("Speed beside plain JAX and PyTorch", "peers", "python benchmarks/peers.py", page_speed.peers),
    Section("Beside plain JAX", "plain_jax", "python benchmarks/plain_jax.py", page_speed.plain_jax),
    Section("Memory against N, compiled", "memory", "python benchmarks/memory.py", page_speed.memory),
    Section("Few iterates: memory and time", "store", "python benchmarks/store.py", page_speed.store),
    Section("Memory against N, resident", "memory_peers", "python benchmarks/memory_peers.py", page_speed.memory_peers),
    Section("Tasks at a time", "in_flight", "python benchmarks/in_flight.py", page_speed.in_flight),
    Section("From start to first meta-step", "first_step", "python benchmarks/first_step.py", page_speed.first_step),
    Section("What the defaults learn", "learning", "python benchmarks/learning.py --data FOLDER", page_speed.learning),
    Section("Tables: a new group from a few rows", "grouped", "python benchmarks/grouped.py", page_grouped.grouped),
    Section("Tables: time and memory of a fit", "table_scale", "python benchmarks/table_scale.py", page_grouped.scale),
    Section("Few-shot characters", "images", "python benchmarks/images.py --data FOLDER", page_images.images),
    Section(
        "Time to 90 %", "time_to_accuracy", "python benchmarks/time_to_accuracy.py --data FOLDER", page_images.time_to_accuracy
    ),
    Section("Ablations on characters", "ablations", "python benchmarks/ablations.py --data FOLDER", page_images.ablations),
    Section("Strategies", "strategies", "python benchmarks/strategies.py", page_speed.strategies),
    Section(
        "Finite differences and kinks", "difference_widths", "python benchmarks/difference_widths.py --data ZIP",
        page_speed.difference_widths,
    ),
    Section(
        "Test-time training", "test_time_training", "python benchmarks/test_time_training.py", page_text.test_time_training
    ),
    Section("Low-rank adapters for a new writer", "writers", "python benchmarks/writers.py", page_text.writers),
    Section("Batches from the host", "host_batches", "python benchmarks/host_batches.py", page_speed.host_batches),
    Section("Many devices", "scaling", "python benchmarks/scaling.py", page_scale.scaling),
    Section("The same run everywhere", "equal", "python benchmarks/equal.py", page_scale.everywhere),
    Section("Checkpoints", "checkpoint_cost", "python benchmarks/checkpoint_cost.py", page_scale.checkpoint_cost),
    Section("Faults", "faults", "python benchmarks/faults.py", page_scale.faults),
    Section("Errors by precision", "precision", "python benchmarks/precision.py --data ZIP", page_speed.precision),
    Section("Few tasks a meta-step: memory", "memory_method", "python benchmarks/memory_method.py", page_speed.memory_method),
    Section("Where the time of a network goes", "roofline", "python benchmarks/roofline.py", page_images.roofline),
    Section("Images on a GPU", "gpu_images", "python benchmarks/gpu_images.py --deterministic", page_images.gpu_images),
    Section("Navigation: speed", "navigation_speed", "python benchmarks/navigation_speed.py", page_speed.navigation_speed),
    Section("Half cheetah", "cheetah", "python benchmarks/cheetah.py --runs FOLDER", page_speed.cheetah),
    Section("Half cheetah on a GPU: speed", "gpu_rl", "python benchmarks/gpu_rl.py", page_speed.gpu_rl),
)  # fmt: skip
INTRODUCTION = """# Benchmarks

`python benchmarks/page.py` writes this page from the JSON files in `benchmarks/results/`. The command under each heading
measures its table with the defaults of this commit; the machine, the command and the commit of the figures stand below the
table. Brackets after a median are the lowest and the highest of at least three rounds; a median of fewer rounds has their
number instead.
"""


def page() -> str:
    """The whole of docs/benchmarks.md."""
    return "\n".join([INTRODUCTION, "\n\n".join(text for text in (section.text() for section in SECTIONS) if text), ""])


def figures() -> str:
    """The rows of README's table: what one suffers elsewhere, and the figure here."""
    rows = [row for row in (row_of(load) for row_of in (_memory, _step_sizes, _speed, _accuracy, _policy)) if row]
    return rows_of(["What you suffer elsewhere", "Here"], rows)


def _memory(results: Callable) -> list[str]:
    if (result := results("memory")) is None:
        return []
    first, last = result["rows"][0], result["rows"][-1]
    kinds = {"recursion": "adaptax", "backpropagation": "backpropagation", "plain_jax": "plain JAX"}
    said = [f"{name} {first[kind] / 2**20:.0f} to {last[kind] / 2**20:.0f} MiB" for kind, name in kinds.items() if kind in last]
    text = f"Conv4-64, N = {first['inner_steps']} to {last['inner_steps']}: {'; '.join(said)}"
    return ["Memory that grows with N", text]


def _step_sizes(results: Callable) -> list[str]:
    if (result := results("learning")) is None:
        return []
    found = {}
    for name in (name for name in CASES if name.startswith("sinusoid-10-")):
        rows = [row for row in result["runs"] if row["case"] == name]
        auto, best = [row for row in rows if row["stepsize"] == "auto"], learning.best_fixed(CASES[name], rows)
        if auto and best is not None:
            found[CASES[name].options["inner_steps"]] = [learning.mean_and_error(runs)[0] for runs in (auto, best[1])]
    if not found:
        return []
    ours, theirs = (", ".join(f"{pair[i]:.2g}" for pair in found.values()) for i in (0, 1))
    tried = len(CASES["sinusoid-10-10"].fixed)
    text = f"no step size to choose. Held-out loss on sinusoids, N = {', '.join(map(str, found))}: {ours}"
    return ["NaN for N > 1, step sizes by guesswork", f"{text}; with the best of {tried} fixed step sizes at each N: {theirs}"]


def _speed(results: Callable) -> list[str]:
    if (result := results("peers")) is None:
        return []
    said = []
    for name, title in (("conv4", "Conv4-64"), ("sinusoid", "small MLP")):
        case = next((case for case in result["cases"] if case["name"] == name), None)
        if case is None:
            continue
        ours = case["sides"]["adaptax"]["round_medians"]
        ratios = {
            side: statistics.median(a / b for a, b in zip(record["round_medians"], ours, strict=True))
            for side, record in case["sides"].items()
            if "failed" not in record and side != "adaptax"
        }
        families = {"plain JAX": [], "PyTorch": []}
        for side, ratio in ratios.items():
            families["plain JAX" if side.startswith("plain") else "PyTorch"].append(ratio)
        best = ", ".join(f"{family} {min(found):.2g} ×" for family, found in families.items() if found)
        said.append(f"{title}: {best}")
    return ["Slow second derivatives", "time of the fastest other program over adaptax's. " + "; ".join(said)]


def _accuracy(results: Callable) -> list[str]:
    if (result := results("learning")) is None:
        return []
    said, titles = [], {"5-1": "5-way 1-shot", "5-5": "5-way 5-shot", "20-1": "20-way 1-shot"}
    for name, title in ((f"characters-{size}", title) for size, title in titles.items()):
        rows = [row for row in result["runs"] if (row["case"], row["stepsize"]) == (name, "auto")]
        if rows:
            said.append(f"{learning.cell(CASES[name], rows)} on {title}")
    text = "accuracy on unseen Omniglot alphabets by the defaults, mean and standard error over seeds"
    return ["Baselines that are hard to reproduce", f"{text}: {', '.join(said)}"] if said else []


def _policy(results: Callable) -> list[str]:
    if (result := results("navigation_speed")) is None:
        return []
    rate = statistics.median(result["sides"]["adaptax"]["rates"])
    return [
        "Meta-reinforcement learning in hours",
        f"{rate:,.0f} environment steps a second, training included, on {result['machine']['cores']} cores",
    ]


_MARKED = re.compile(r"(<!-- figures:begin -->\n)(?:.*?\n)?(<!-- figures:end -->)", re.DOTALL)


def with_figures(text: str) -> str:
    """The text with the figures between its markers."""
    return _MARKED.sub(lambda found: found[1] + figures() + "\n" + found[2], text)


def documents() -> dict[Path, str]:
    """The text that each document must have."""
    return {PAGE: page(), README: with_figures(README.read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, help="demo.json of a run of adaptax demo")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a document differs from the results")
    options = parser.parse_args()
    if options.demo is not None and not options.check:
        (RESULTS / "demo.json").write_text(options.demo.read_text())
    stale = [path for path, text in documents().items() if not path.exists() or path.read_text() != text]
    if options.check and stale:
        raise SystemExit(f"{', '.join(path.name for path in stale)} differs from the results: run python benchmarks/page.py.")
    for path in stale:
        path.write_text(documents()[path])


if __name__ == "__main__":
    main()
