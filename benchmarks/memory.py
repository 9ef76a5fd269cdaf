"""Memory against N: temporaries of the compiled meta-gradient of one task, Conv4-64 on 28x28 images.

    python benchmarks/memory.py

The compiler's own analysis, for the recursion (both stores) and for plain backpropagation through the loop. Nothing is
run. Prints one table and writes results/memory.json.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from machine import description

import adaptax as ax

RESULTS = Path(__file__).parent / "results"


def temporaries(steps: int, **options) -> int:
    """Bytes of temporaries of one compiled meta-gradient."""
    loss = lambda net, batch: jnp.mean(  # noqa: E731
        jax.nn.logsumexp(net(batch[0]), -1) - jnp.take_along_axis(net(batch[0]), batch[1][:, None], 1)[:, 0]
    )
    problem = ax.FiniteSum(loss, lambda key: None)
    params = ax.models.conv4(5, key=jax.random.key(0), channels=64)
    images = lambda n: (jnp.zeros((n, 28, 28, 1)), jnp.zeros((n,), jnp.int32))  # noqa: E731
    method = ax.MetaGradient(ax.Inner(steps, 0.1), **options)
    program = jax.jit(lambda p, t: method(problem, p, t)[:2]).lower(params, ax.Task(images(5), images(25)))
    return program.compile().memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="*", default=(1, 4, 16, 64))
    counts = parser.parse_args().steps
    params = ax.models.conv4(5, key=jax.random.key(0), channels=64)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    rows = []
    print(f"parameters: {size / 2**20:.2f} MiB")
    print("| N | recursion | recursion, sqrt store | backpropagation |\n| --- | --- | --- | --- |")
    for n in counts:
        row = {
            "inner_steps": n,
            "recursion": temporaries(n),
            "recursion_sqrt": temporaries(n, store="sqrt"),
            "backpropagation": temporaries(n, mode="backprop"),
        }
        rows.append(row)
        print(f"| {n} | " + " | ".join(f"{row[k] / 2**20:.1f} MiB" for k in list(row)[1:]) + " |", flush=True)
    last = rows[-1]["inner_steps"]
    bound = 1.5 * rows[0]["recursion"] + last * size
    share = rows[-1]["recursion"] / bound
    print(f"recursion at N = {last}: {share:.2f} of 1.5 x (N = {rows[0]['inner_steps']}) + N x parameters")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(
        json.dumps({"machine": description(), "parameter_bytes": size, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
