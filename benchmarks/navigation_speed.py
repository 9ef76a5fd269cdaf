"""Environment steps per second of meta-reinforcement learning on planar navigation, training included.

    make bench-env && python benchmarks/navigation_speed.py [--rounds 3] [--sides adaptax numpy]

The setting is the paper's: 20 tasks of 20 episodes, horizon 100, one inner step, a policy 2-100-100-2; the outer step is Adam
on the meta-gradient through the inner step, whose samples its Hessian re-uses. adaptax trains by `ax.train`; beside it are
three ways of writing it in PyTorch (`navigation_torch.py`). Every side is a process of its own, free to use all cores; sides
take turns, round after round. All must give one gradient on shared episodes, and the same mean returns, before adaptation and
after, on episodes of their own. Prints one table and writes results/navigation_speed.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import measurement
from tables import RESULTS, rows_of, spread

HERE = Path(__file__).parent
PEER_PYTHON = HERE.parent / ".venv-bench" / "bin" / "python"
TASKS, EPISODES, HORIZON = 20, 20, 100
STEPS = 2 * TASKS * EPISODES * HORIZON  # of one meta-iteration
SIDES = {
    "adaptax": "adaptax",
    "numpy": "PyTorch, NumPy environment, all tasks and episodes abreast",
    "workers": "PyTorch, an environment object an episode, policy called for a task's 20 at a time",
    "episodes": "PyTorch, an environment object an episode, policy called for one at a time",
}
ITERATIONS = {"adaptax": 40, "numpy": 15, "workers": 5, "episodes": 1}
NAMES = ("w1", "b1", "w2", "b2", "w3", "b3", "log_std")


# Operations (multiplications and additions) of one forward pass of the policy 2-100-100-2 for one step.
FORWARD = 2 * (2 * 100 + 100 * 100 + 100 * 2)


def operations() -> float:
    """The least operations of one meta-iteration, where the forward passes of the rollouts serve the gradients too.

    A gradient takes twice a forward pass in addition. A Hessian-vector product takes five times a forward pass (one for the
    outputs, four for the products of backpropagation), and is needed for the first half of the episodes only.
    """
    return FORWARD * STEPS * (1 + 2 + 5 / 2)


def product_peak(size: int = 3000, repeats: int = 7) -> float:
    """Operations a second of a float32 matrix product by NumPy on all cores, which no program here can beat."""
    square, best = np.random.default_rng(0).random((size, size), np.float32), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        square @ square
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def setting():
    """Problem, method and initial policy."""
    import jax
    import jax.numpy as jnp

    import adaptax as ax

    rl = ax.tasks.rl
    baseline = rl.LinearBaseline(leave_one_out=False)
    loss = rl.LVC(0.95, baseline=baseline, per_step=True, normalise=True, discount_weighting=False)
    problem = rl.navigation(horizon=HORIZON, loss=loss)
    network = ax.models.mlp((2, 100, 100, 2), key=jax.random.key(0), activation=jnp.tanh)
    method = ax.MetaGradient(ax.Inner(1, 0.1), samples=ax.Samples(*[EPISODES] * 3), independent_curvature=False)
    return problem, method, rl.GaussianPolicy(network, 2, std=1.0)


def write_inputs(path: Path) -> dict:
    """Write parameters, goals, and episodes before and after adaptation; return the gradient on them, and mean returns."""
    import jax
    import jax.numpy as jnp

    from adaptax._keys import STEP, TARGET, fold

    # In single precision the baseline's least squares differ by percents between solvers.
    jax.config.update("jax_enable_x64", True)
    problem, method, policy = setting()
    goals = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(1), TASKS))
    floats = jax.tree.leaves(policy)

    def step(policy, batch):
        return jax.tree.map(lambda w, g: w - 0.1 * g, policy, jax.grad(problem.loss)(policy, batch))

    @jax.jit
    def collect(key):
        def one(goal, key):
            first = problem.draw(goal, policy, key, EPISODES)
            last = problem.draw(goal, step(policy, first), jax.random.fold_in(key, 1), EPISODES)
            return first, last

        return jax.vmap(one)(goals, jax.random.split(key, TASKS))

    def objective(policy, first, last):
        return jnp.mean(jax.vmap(lambda a, b: problem.loss(step(policy, a), b))(first, last))

    first, last = collect(jax.random.key(2))
    gradient = jax.tree.leaves(jax.jit(jax.grad(objective))(policy, first, last))
    many = [[float(b.rewards.sum(-1).mean()) for b in collect(jax.random.key(3 + i))] for i in range(10)]
    # Training follows the same gradient: on episodes of its own, the method's recursion gives that of differentiation.
    keys = jax.random.split(jax.random.key(4), TASKS)
    ours = method.batch(problem, policy, goals, keys)[1]

    def same(policy, key, goal):
        first = problem.draw(goal, policy, fold(key, STEP, 0), EPISODES)
        last = problem.draw(goal, step(policy, first), fold(key, TARGET), EPISODES)
        return jax.grad(objective)(policy, *jax.tree.map(lambda leaf: leaf[None], (first, last)))

    plain = jax.tree.map(lambda leaf: leaf.mean(0), jax.jit(jax.vmap(lambda k, g: same(policy, k, g)))(keys, goals))
    off = difference(*(dict(zip(NAMES, map(np.asarray, jax.tree.leaves(tree)), strict=True)) for tree in (ours, plain)))
    if not off < 1e-6:
        raise SystemExit(f"The meta-gradient differs from that by differentiation by {off}: compare nothing.")
    parts = {"x": lambda b: b.observations[:, :, :-1], "a": lambda b: b.actions, "r": lambda b: b.rewards}
    batches = {f"{w}_{n}": np.asarray(f(b)) for w, b in (("first", first), ("last", last)) for n, f in parts.items()}
    np.savez(path, goals=np.asarray(goals), **batches, **dict(zip(NAMES, map(np.asarray, floats), strict=True)))
    return {"gradient": dict(zip(NAMES, map(np.asarray, gradient), strict=True)), "returns": np.asarray(many)}


def difference(a: dict, b: dict) -> float:
    """The norm of a - b over that of b."""
    flat = [np.concatenate([np.ravel(grads[name]) for name in NAMES]) for grads in (a, b)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def run_adaptax(iterations: int, compiling: bool, out: Path) -> None:
    """Time `ax.train` with a host device for each core, after a run that compiles, or together with the compilation."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    import optax

    import adaptax as ax

    problem, method, policy = setting()
    seconds, optimizer = [], optax.adam(1e-3)
    for steps in (iterations,) if compiling else (1, iterations):
        start = time.perf_counter()
        state, _ = ax.train(problem, policy, method, optimizer=optimizer, steps=steps, tasks_per_step=TASKS)
        jax.block_until_ready(state.params)
        seconds = [(time.perf_counter() - start) / steps]
    record = {"seconds": seconds}
    out.write_text(json.dumps(record))


def measure(side: str, iterations: int, inputs: Path, folder: Path, compiling: bool = False) -> tuple[dict, dict | None]:
    out, cores = folder / "out.json", str(os.cpu_count())
    common = ["--iterations", str(iterations), "--out", str(out)]
    if side == "adaptax":
        flag = ["--compiling"] if compiling else []
        subprocess.run([sys.executable, str(Path(__file__)), "--side", side, *common, *flag], check=True)
        return json.loads(out.read_text()), None
    command = [str(PEER_PYTHON), str(HERE / "navigation_torch.py"), "--way", side, "--cores", cores, "--inputs", str(inputs)]
    subprocess.run([*command, *common], check=True)
    with np.load(out.with_suffix(".npz")) as file:
        return json.loads(out.read_text()), {name: file[name] for name in file.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="*", choices=tuple(SIDES), default=tuple(SIDES))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--iterations", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--compiling", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return run_adaptax(args.iterations, args.compiling, args.out)
    if not PEER_PYTHON.exists():
        raise SystemExit("The peers are not installed: run make bench-env first.")
    sides: dict = {name: {"title": SIDES[name], "rates": []} for name in args.sides}
    with tempfile.TemporaryDirectory() as folder:
        folder, inputs = Path(folder), Path(folder) / "inputs.npz"
        ours = write_inputs(inputs)
        middle, spread = ours["returns"].mean(0), ours["returns"].std(0, ddof=1)
        for number in range(args.rounds):
            for name, side in sides.items():
                record, gradient = measure(name, ITERATIONS[name], inputs, folder)
                side["rates"].append(STEPS / statistics.median(record["seconds"]))
                print(f"round {number + 1}, {name}: {side['rates'][-1]:,.0f} environment steps a second", flush=True)
                if gradient is None:
                    continue
                side |= {"difference": difference(gradient, ours["gradient"]), "returns": record["returns"]}
                off = np.abs(np.asarray(record["returns"]) - middle) / spread
                if not (side["difference"] < 1e-6 and np.all(off < 5)):
                    raise SystemExit(f"{name} computes something else ({side['difference']}, {off}): compare nothing.")
        whole = 200 * measure("adaptax", 200, inputs, folder, compiling=True)[0]["seconds"][0] if "adaptax" in sides else None
    least = {"operations": operations(), "product_flops": product_peak()}
    result = measurement(parser, args) | {"returns": middle.tolist(), "run_of_200_seconds": whole, "sides": sides} | least
    print(table(result))
    if whole is not None:
        print(f"A run of 200 meta-iterations takes adaptax {whole:.0f} s, compilation included.")
    (RESULTS / "navigation_speed.json").write_text(json.dumps(result, indent=1) + "\n")


def table(result: dict) -> str:
    """Rates and ratios of all sides, as markdown."""
    ours, rows = result["sides"].get("adaptax", {"rates": []})["rates"], []
    for side in result["sides"].values():
        ratios = [mine / theirs for mine, theirs in zip(ours, side["rates"], strict=False)]
        text = spread(ratios, "{:.3g} ×") if ratios else ""
        rows.append([side["title"], f"{statistics.median(side['rates']):,.0f}", text])
    return rows_of(["", "environment steps a second", "adaptax is faster by"], rows)


if __name__ == "__main__":
    main()
