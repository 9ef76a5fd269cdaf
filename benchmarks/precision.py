"""The error of the meta-gradient by the arithmetic of the loss, the number of inner steps and the network.

    python benchmarks/precision.py --data ZIP [--tasks 10]

The networks of `difference_widths.py`, without ResNet-12. Each error is relative, against the same meta-gradient in double
precision. TF32 is emulated: the factors of every product, also in derivatives, keep ten binary digits. Prints a table and
writes results/precision.json.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from difference_widths import Network, networks
from jax.flatten_util import ravel_pytree
from machine import measurement
from rounded_products import rounded
from tables import RESULTS

import adaptax as ax

STEPS = (1, 5, 20)
# Step sizes about as large as those that train these networks.
STEPSIZES = {"Conv4, Omniglot": 0.1, "Conv4, noise": 0.1, "relu network, sinusoids": 0.01, "transformer, random text": 0.1}
KINDS = {
    "float32": "float32",
    "tf32": "products in TF32",
    "tf32 forward": "… those of the inner steps alone",
    "tf32 target": "… those of the target loss alone",
    "tf32 backward": "… those of the way back alone",
    "bfloat16_curvature": '`precision="bfloat16_curvature"`',
    "bfloat16": '`precision="bfloat16"`',
    "all bfloat16": "parameters and iterates in bfloat16 too",
    "first order": "first order, in float32",
}


def gradient(network: Network, steps: int, alpha: float, kind: str, params: Any):
    """The meta-gradient as a function of a task, in an arithmetic."""
    problem = ax.FiniteSum(network.loss, network.sample)
    curvature = ax.curvature.FirstOrder() if kind == "first order" else ax.curvature.Exact()
    method = ax.MetaGradient(ax.Inner(steps, alpha), curvature, precision=kind if kind.startswith("bfloat16") else None)

    def run(task):
        floats = eqx.filter(method(problem, params, task)[1], eqx.is_inexact_array)
        return ravel_pytree(jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, floats))[0]

    if kind.startswith("tf32"):
        places = tuple(kind.split()[1:])
        return jax.jit(rounded(run, places) if places else rounded(run))
    return jax.jit(run)


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if eqx.is_inexact_array(x) else x, tree)


def errors(network: Network, steps: int, alpha: float, tasks: list) -> dict[str, list[float]]:
    """Relative errors of the meta-gradient by arithmetic, one for each task."""
    found = {}
    with jax.enable_x64(True):
        exact = gradient(network, steps, alpha, "float64", cast(network.model, jnp.float64))
        truth = [jax.device_get(exact(cast(task, jnp.float64))) for task in tasks]
    for kind in KINDS:
        dtype = jnp.bfloat16 if kind == "all bfloat16" else jnp.float32
        run = gradient(network, steps, alpha, kind, cast(network.model, dtype))
        got = [jax.device_get(run(cast(task, dtype))) for task in tasks]
        norm = lambda x: float((x**2).sum() ** 0.5)  # noqa: E731
        found[kind] = [norm(a - b) / norm(b) for a, b in zip(got, truth, strict=True)]
    return found


def table(result: dict) -> str:
    """The median error and the largest, by network, inner steps and arithmetic, as markdown."""
    rows = result["rows"]
    lines = ["| network | N | " + " | ".join(KINDS.values()) + " |", "| --- " * (2 + len(KINDS)) + "|"]
    for row in rows:
        cells = [f"{statistics.median(x):.1g} ({max(x):.1g})" for x in (row["errors"][kind] for kind in KINDS)]
        lines.append(f"| {row['network']} | {row['steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="ZIP", help="an Omniglot zip")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument("--networks", nargs="*", default=list(STEPSIZES), choices=list(STEPSIZES))
    arguments = parser.parse_args()
    result = measurement(parser, arguments) | {"tasks": arguments.tasks, "rows": []}
    known = networks(arguments.data)
    for name in arguments.networks:
        tasks = [known[name].sample(jax.random.key(i)) for i in range(arguments.tasks)]
        for steps in arguments.steps:
            found = errors(known[name], steps, STEPSIZES[name], tasks)
            result["rows"].append({"network": name, "steps": steps, "stepsize": STEPSIZES[name], "errors": found})
            print(table(result | {"rows": result["rows"][-1:]}), flush=True)
            (RESULTS / "precision.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
