"""Environment steps a second of the half cheetah on an accelerator (mujoco-mjx) and with MuJoCo's C engine.

    python benchmarks/gpu_rl.py [--episodes 400 4000 20000] [--engine mjx mujoco]

Episodes of 100 steps under a policy 17-64-64-6, all abreast in one compiled program; nothing is trained. Prints one table and
writes results/gpu_rl.json.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from machine import measurement
from tables import RESULTS

import adaptax as ax

HORIZON, EACH = 100, 20


def program(engine: str, episodes: int):
    """The compiled program that gives the mean reward of all episodes, the policy, and seconds of compilation."""
    problem = ax.tasks.rl.cheetah("direction", horizon=HORIZON, physics=engine)
    network = ax.models.mlp((17, 64, 64, 6), key=jax.random.key(0), activation=jax.nn.tanh, init="glorot")
    policy = ax.tasks.rl.GaussianPolicy(network, 6)

    def draw(policy, key):
        keys = jax.random.split(key, episodes // EACH)
        return jax.vmap(lambda key: problem.draw(problem.sample_task(key), policy, key, EACH).rewards.sum())(keys).mean()

    start = time.perf_counter()
    compiled = jax.jit(draw).lower(policy, jax.random.key(1)).compile()
    return compiled, policy, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, nargs="*", default=(400, 4000, 20000))
    parser.add_argument("--engine", nargs="*", choices=("mjx", "mujoco"), default=("mjx", "mujoco"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_rl.json")
    parser.add_argument("--compile-only", action="store_true", help="fill JAX's compilation cache, and time nothing")
    arguments = parser.parse_args()
    cases = [(engine, episodes) for engine in arguments.engine for episodes in arguments.episodes]

    def attempt(case):
        try:
            return program(*case)
        except Exception as error:
            return str(error).strip().splitlines()[0][:200]

    with ThreadPoolExecutor(8) as pool:
        programs = list(pool.map(attempt, cases))
    records, cases = [], [] if arguments.compile_only else cases
    for (engine, episodes), found in zip(cases, programs, strict=False):
        records.append({"engine": engine, "episodes": episodes})
        if isinstance(found, str):
            records[-1]["failed"] = found
            print(f"{engine}, {episodes} episodes: {found}", flush=True)
            continue
        compiled, policy, compiling = found
        seconds = []
        for number in range(1 + arguments.rounds):
            start = time.perf_counter()
            jax.block_until_ready(compiled(policy, jax.random.key(number)))
            seconds.append(time.perf_counter() - start)
        rate = episodes * HORIZON / statistics.median(seconds[1:])
        records[-1] |= {"seconds": seconds[1:], "first_s": seconds[0], "compile_s": compiling, "steps_per_s": rate}
        print(f"{engine}, {episodes} episodes: {rate:,.0f} steps/s, compiled in {compiling:.0f} s", flush=True)
        device = jax.devices()[0].device_kind
        arguments.out.write_text(
            json.dumps(measurement(parser, arguments) | {"device": device, "cases": records}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
