"""Time of the exact meta-gradient of Conv4-64 on a GPU: ways to convolve, precisions, tasks in flight, and PyTorch.

    python benchmarks/gpu_images.py [--tasks 32 128] [--rounds 5] [--torch python] [--deterministic]

5-way 1-shot, 5 queries a class, N = 5. `--torch` names a Python that has PyTorch (default: this one). Every side gets the same
parameters and tasks. PyTorch runs learn2learn's algorithm in eager mode (one task after another), and the same by `torch.func`
with all tasks together, as it is and compiled. Plain JAX is `jit(vmap(grad(scan)))` (`peer_jax.py`). Prints a table and writes
results/gpu_images.json.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import operations
import peer_inputs
from machine import measurement
from peers import difference
from tables import RESULTS

HERE = Path(__file__).parent
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# The ways of convolving, as tables name them.
WAYS = {
    "adaptax": "adaptax",
    "rows": "adaptax, one matrix product a convolution, its derivatives the compiler's",
    "grouped": "adaptax, the compiler's convolution",
    "plain JAX": "plain JAX",
}
# The way of convolving, the precision of products, tasks in flight (None: as chosen), whether the row is one program.
VARIANTS = [
    ("adaptax", "float32", None, False),
    ("adaptax", "tensorfloat32", None, False),
    ("adaptax", "tensorfloat32", None, True),
    ("adaptax", "bfloat16", None, False),
    ("rows", "tensorfloat32", None, False),
    ("grouped", "tensorfloat32", None, False),
    ("plain JAX", "float32", None, False),
    ("plain JAX", "tensorfloat32", None, False),
    ("adaptax", "tensorfloat32", 8, False),
]
# The compiler option that makes two runs equal; the command line sets it.
DETERMINISTIC = "--xla_gpu_deterministic_ops"
# Meta-gradients of one measurement.
IN_A_ROW = 10


def model_of(params, way: str):
    """Conv4 with its convolutions in another way; the leaves stay the same."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from jax import lax

    own = importlib.import_module("adaptax.models.convolution")
    if way == "adaptax":
        return params

    def convolve(x, weight):
        if way == "grouped":
            # Under vmap over tasks with weights of their own XLA makes this one grouped convolution.
            return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        size, _, inputs, outputs = weight.shape
        n, h, w, _ = x.shape
        p = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows = jnp.concatenate([p[:, i : i + h, j : j + w] for i in range(size) for j in range(size)], axis=-1)
        return (rows.reshape(-1, size**2 * inputs) @ weight.reshape(-1, outputs)).reshape(n, h, w, outputs)

    class Other(own.Block):
        def __call__(self, x, given=None):
            y = convolve(x, self.weight)
            mean, factor = self._statistics(y, given)
            sign = lax.stop_gradient(jnp.where(self.scale < 0, -1, 1).astype(y.dtype))
            return jax.nn.relu((sign * own.max_pool(sign * y) - mean) * factor + self.shift)

    blocks = tuple(Other(b.weight, b.scale, b.shift) for b in params.blocks)
    return eqx.tree_at(lambda m: m.blocks, params, blocks)


def measure_jax(inputs: Path, rounds: int, out: Path, ways: list[str]) -> None:
    """Time all variants on one file of inputs: their programs are compiled side by side, then timed one after another."""
    import jax
    import peer_jax
    from peer_adaptax import load

    from adaptax._batching import in_flight_for
    from adaptax._keys import first

    if jax.default_backend() == "cpu":
        raise SystemExit("JAX finds no accelerator here: this benchmark is for one.")
    problem, method, params, tasks, names = load("conv4", inputs, "float32")
    reference, records, variants = None, [], [variant for variant in VARIANTS if variant[0] in ("adaptax", *ways)]
    chosen = in_flight_for(problem, params, first(tasks), jax.tree.leaves(tasks)[0].shape[0], method.samples)
    plain, plain_tasks, steps, stepsize = peer_jax.load("conv4", inputs, "float32")
    by_hand = peer_jax.over_tasks(peer_jax.meta_gradient(peer_jax.loss_of("conv4"), steps, stepsize))
    algorithm = {"float32": "float32", "tensorfloat32": "tensorfloat32", "bfloat16": "BF16_BF16_F32"}

    def compiled(variant):
        way, precision, in_flight, chunk = variant
        start = time.perf_counter()
        if way == "plain JAX":
            with jax.default_matmul_precision(algorithm[precision]):
                lowered = by_hand.lower(plain, plain_tasks)
            return (plain, plain_tasks), lowered.compile(), time.perf_counter() - start
        with jax.default_matmul_precision(algorithm[precision]):
            model = model_of(params, way)

            def once(p, t):
                return method.batch(problem, p, t, in_flight=in_flight)[:2]

            def many(p, t):
                # Steps of almost nothing make each meta-gradient wait for the one before.
                def step(_, p):
                    return jax.tree.map(lambda w, g: w - 1e-6 * g, p, once(p, t)[1])

                return jax.lax.fori_loop(0, IN_A_ROW, step, p)

            lowered = jax.jit(many if chunk else once).lower(model, tasks)
        return (model, tasks), lowered.compile(), time.perf_counter() - start

    def attempt(variant):
        try:
            return compiled(variant)
        except Exception as error:
            return str(error).strip().splitlines()[0][:200]

    with ThreadPoolExecutor(8) as pool:
        programs = list(pool.map(attempt, variants))
    for (way, precision, in_flight, chunk), found in zip(variants, programs, strict=True):
        at_once = len(plain_tasks[0][0]) if way == "plain JAX" else in_flight or chosen
        record = {"way": way, "precision": precision, "in_flight": at_once, "one_program": chunk}
        records.append(record)
        if isinstance(found, str):
            record["failed"] = found
            continue
        given, program, compiling = found
        outcome, seconds = jax.block_until_ready(program(*given)), []
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in range(1 if chunk else IN_A_ROW):
                last = program(*given)
            jax.block_until_ready(last)
            seconds.append((time.perf_counter() - start) / IN_A_ROW)
        temporaries = program.memory_analysis().temp_size_in_bytes / 2**20
        record |= {"seconds": seconds, "compile_s": compiling, "temporaries_mib": temporaries}
        print(f"{WAYS[way]}, {precision} {in_flight} {chunk}: {1e3 * statistics.median(seconds):.3f} ms", flush=True)
        if chunk:
            continue
        loss, grad = outcome
        leaves = [grad[name] for name in names] if way == "plain JAX" else jax.tree.leaves(grad)
        flat = np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(float)
        reference = flat if reference is None else reference
        off = float(np.linalg.norm(flat - reference) / np.linalg.norm(reference))
        record |= {"loss": float(loss), "difference": off}
        if len(records) == 1:
            np.savez(out.with_suffix(".npz"), **dict(zip(names, map(np.asarray, leaves), strict=True)))
    peaks = {}
    for precision in PRECISIONS:
        with jax.default_matmul_precision(algorithm[precision]):
            product = jax.jit(lambda a: jax.lax.fori_loop(0, 10, lambda _, b: a @ b * 1e-4, a))
            square = jax.random.normal(jax.random.key(0), (8192, 8192))
            jax.block_until_ready(product(square))
            start = time.perf_counter()
            jax.block_until_ready(product(square))
            peaks[precision] = 20 * 8192**3 / (time.perf_counter() - start)
    record = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "sides": records, "product_flops": peaks}
    record["deterministic"] = f"{DETERMINISTIC}=true" in os.environ.get("XLA_FLAGS", "")
    out.write_text(json.dumps(record))


def agreement(ours: Path, theirs: Path) -> float:
    """The difference of PyTorch's gradient from adaptax's, over the norm of the latter."""
    with np.load(ours) as a, np.load(theirs) as b:
        return difference(dict(b), dict(a))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="*", default=(32,))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", default=sys.executable, help="a Python that has PyTorch (default: this one)")
    parser.add_argument("--ways", nargs="*", default=tuple(WAYS)[1:], help="ways beside adaptax's (default: all)")
    parser.add_argument("--limit", type=float, help="seconds for PyTorch's sides (default: none)")
    parser.add_argument("--deterministic", action="store_true", help="adaptax's side as the command line runs it")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_images.json")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return measure_jax(Path(arguments.side[0]), arguments.rounds, Path(arguments.side[1]), arguments.ways)
    cases = []
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if arguments.deterministic:
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}=true"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tasks in arguments.tasks:
            inputs, ours, theirs = folder / f"{tasks}.npz", folder / f"ours{tasks}.json", folder / f"theirs{tasks}.json"
            peer_inputs.TASKS["conv4"] = tasks
            peer_inputs.write("conv4", inputs)
            common = ["--rounds", str(arguments.rounds)]
            side = [sys.executable, str(HERE / "gpu_images.py"), *common, "--side", str(inputs), str(ours)]
            side += ["--ways", *arguments.ways]
            subprocess.run(side, check=True, env=environment)
            other = [arguments.torch, str(HERE / "gpu_torch.py"), *common, "--inputs", str(inputs), "--out", str(theirs)]
            flops = operations.meta_gradient("conv4", tasks)
            case = {"tasks": tasks, "operations": flops, "adaptax": json.loads(ours.read_text())}
            # PyTorch writes each result as it goes, so that those before the limit are kept.
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(other, check=False, timeout=arguments.limit)
            if theirs.exists():
                case["torch"] = json.loads(theirs.read_text())
                case["agreement"] = agreement(ours.with_suffix(".npz"), theirs.with_suffix(".npz"))
            cases.append(case)
            arguments.out.write_text(json.dumps(measurement(parser, arguments) | {"cases": cases}, indent=1) + "\n")
    for case in cases:
        print(f"\n{case['tasks']} tasks; PyTorch's float32 gradient differs by {case.get('agreement', math.nan):.1e}")
        print("| side | ms | TFLOP/s by formula | difference from float32 |\n| --- | --- | --- | --- |")
        for side in [*case["adaptax"]["sides"], *case.get("torch", {}).get("sides", [])]:
            title = side.get("name") or f"{WAYS[side['way']]}, {side['in_flight']} in flight"
            title += f", {side['precision']}" + (", one program" if side.get("one_program") else "")
            if "failed" in side:
                print(f"| {title} | {side['failed']} | | |")
                continue
            best = statistics.median(side["seconds"])
            off = side.get("difference", math.nan)
            print(f"| {title} | {1e3 * best:.2f} | {case['operations'] / best / 1e12:.1f} | {off:.1e} |")


if __name__ == "__main__":
    main()
