"""How many tasks at a time: the automatic choice of `in_flight` beside 1, 2, 4, 8 and all.

    python benchmarks/in_flight.py [--rounds 7] [--case sinusoids images table wide transformer] [--what batch train evaluate]

A batch of tasks (N = 5) on one device, for an exact meta-gradient (`batch`), a meta-step with Adam (`train`) and an evaluation
after 0 and 5 steps (`evaluate`):

- sinusoids: an MLP with two layers of 40 units, 32 tasks of 10 + 10 points;
- images: Conv4-64, 16 tasks of 5 classes with one image to adapt on and 5 to judge by;
- table: an embedding table of 50,000 x 64 and a linear head, 32 tasks of 10 + 10 rows;
- wide: an MLP with a hidden layer of 2,048 x 2,048, 8 tasks of 5 + 5 points;
- transformer: 1.0 million parameters (6 layers, width 112), 8 tasks of 8 + 8 sequences of 32.

Settings are interleaved, each after a run that is not counted; ratios are of medians. Memory is what the compiled program
sets aside for temporary values. Prints one table and writes results/in_flight.json; cases that are not measured stay.
"""

import argparse
import json
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from machine import measurement
from tables import RESULTS, rows_of

import adaptax as ax

STEPS = 5


def cross_entropy(net, batch):
    """The mean over the batch."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1]))


def squared(net, batch):
    """The mean over the batch."""
    return jnp.mean((net(batch[0]) - batch[1]) ** 2)


def sinusoids():
    """Problem, parameters, number of tasks and step size."""
    return ax.tasks.sinusoid(), ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0)), 32, 0.001


def images():
    """Problem, parameters, number of tasks and step size."""

    def sample(key):
        def part(key, n):
            return jax.random.uniform(key, (n, 28, 28, 1)), jnp.arange(n) % 5

        a, b = jax.random.split(key)
        return ax.Task(part(a, 5), part(b, 25))

    return ax.FiniteSum(cross_entropy, sample), ax.models.conv4(5, key=jax.random.key(0), channels=64), 16, 0.1


class Table(eqx.Module):
    """A linear model on rows of a table."""

    table: jax.Array
    head: jax.Array

    def __call__(self, index):
        return self.table[index] @ self.head


def table():
    """Problem, parameters, number of tasks and step size."""

    def sample(key):
        def part(key):
            return jax.random.randint(key, (10,), 0, 50_000), jax.random.normal(key, (10,))

        a, b = jax.random.split(key)
        return ax.Task(part(a), part(b))

    return ax.FiniteSum(squared, sample), Table(jax.random.normal(jax.random.key(0), (50_000, 64)), jnp.zeros(64)), 32, 0.1


def wide():
    """Problem, parameters, number of tasks and step size."""

    def sample(key):
        x = jax.random.uniform(key, (10, 1), minval=-5, maxval=5)
        y = jnp.sin(x)
        return ax.Task((x[:5], y[:5]), (x[5:], y[5:]))

    return ax.FiniteSum(squared, sample), ax.models.mlp((1, 2048, 2048, 1), key=jax.random.key(0)), 8, 1e-4


class Layer(eqx.Module):
    """Attention and a feed-forward part, each with layer normalisation before it."""

    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    norms: list[eqx.nn.LayerNorm]

    def __init__(self, width, key):
        a, b, c = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(4, width, key=a)
        self.up, self.down = eqx.nn.Linear(width, 4 * width, key=b), eqx.nn.Linear(4 * width, width, key=c)
        self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]

    def __call__(self, x):
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)))
        return x + jax.vmap(lambda row: self.down(jax.nn.gelu(self.up(self.norms[1](row)))))(x)


class Transformer(eqx.Module):
    """A causal language model over 64 symbols."""

    embed: jax.Array
    place: jax.Array
    layers: Layer
    out: eqx.nn.Linear

    def __init__(self, key, width=112, depth=6, length=32):
        a, b, c, d = jax.random.split(key, 4)
        self.embed = 0.02 * jax.random.normal(a, (64, width))
        self.place = 0.02 * jax.random.normal(b, (length, width))
        self.layers = eqx.filter_vmap(lambda key: Layer(width, key))(jax.random.split(c, depth))
        self.out = eqx.nn.Linear(width, 64, key=d)

    def __call__(self, tokens):
        layers, static = eqx.partition(self.layers, eqx.is_array)

        def one(tokens):
            x = self.embed[tokens] + self.place
            x = jax.lax.scan(lambda x, layer: (eqx.combine(layer, static)(x), None), x, layers)[0]
            return jax.vmap(self.out)(x)

        return jax.vmap(one)(tokens)


def transformer():
    """Problem, parameters, number of tasks and step size."""

    def sample(key):
        text = jax.random.randint(key, (16, 33), 0, 64)
        return ax.Task((text[:8, :-1], text[:8, 1:]), (text[8:, :-1], text[8:, 1:]))

    return ax.FiniteSum(cross_entropy, sample), Transformer(jax.random.key(0)), 8, 0.01


# Title, maker, and how often a program is run for one measurement.
CASES = {
    "sinusoids": ("sinusoid MLP", sinusoids, 20),
    "images": ("Conv4-64", images, 1),
    "table": ("table of 50,000 x 64", table, 1),
    "wide": ("MLP 2,048 wide, 5 points", wide, 1),
    "transformer": ("transformer, 1 M", transformer, 1),
}
WHAT = ("batch", "train", "evaluate")


def program(what: str, problem, params, count: int, alpha: float, size: int | None):
    """A program, not compiled yet, and its arguments."""
    inner = ax.Inner(STEPS, alpha)
    method = ax.MetaGradient(inner)
    tasks = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(1), count))
    arrays, static = eqx.partition(params, eqx.is_array)
    if what == "batch":
        run, inputs = lambda p, t: method.batch(problem, eqx.combine(p, static), t, in_flight=size)[:2], (arrays, tasks)
    elif what == "train":
        step = ax.make_step(problem, method, optax.adam(1e-3), count, in_flight=size)
        state, fixed = eqx.partition(step.init(params, 0), eqx.is_array)
        run, inputs = lambda s: eqx.filter(step(eqx.combine(s, fixed))[0], eqx.is_array), (state,)
    else:
        # The compiled part of ax.evaluate.
        from adaptax.training.evaluate import _evaluate

        def run(p, t):
            key = jax.random.key(1)
            return _evaluate(problem, eqx.combine(p, static), inner, t, key, count, (0, STEPS), ax.Samples(), size, None)

        inputs = (arrays, tasks)
    return jax.jit(run).lower(*inputs), inputs


def chosen_size(what: str, problem, params, count: int, alpha: float) -> int:
    """The size that the library chooses: it is noted while the program is traced."""
    from adaptax._batching import Traced

    sizes, original = [], Traced.at_a_time

    def noted(self, count, in_flight=None, **options):
        sizes.append(original(self, count, in_flight, **options))
        return sizes[-1]

    Traced.at_a_time = noted
    try:
        program(what, problem, params, count, alpha, None)
    finally:
        Traced.at_a_time = original
    return sizes[-1]


def measure(name: str, what: str, rounds: int) -> dict:
    """Seconds of each size, round by round, and the memory of each."""
    _, make, repeats = CASES[name]
    problem, params, count, alpha = make()
    chosen = chosen_size(what, problem, params, count, alpha)
    sizes = sorted({1, 2, 4, 8, count, chosen})
    programs = {size: program(what, problem, params, count, alpha, size) for size in sizes}
    programs = {size: (lowered.compile(), inputs) for size, (lowered, inputs) in programs.items()}
    times: dict[int, list[float]] = {size: [] for size in programs}
    for _ in range(rounds):
        for size, (run, inputs) in programs.items():
            # Not counted: it fetches the memory that the program before has given back.
            jax.block_until_ready(run(*inputs))
            start = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(run(*inputs))
            times[size].append((time.perf_counter() - start) / repeats)
    medians = {size: statistics.median(values) for size, values in times.items()}
    memory = {size: run.memory_analysis().temp_size_in_bytes / 2**20 for size, (run, _) in programs.items()}
    # The least memory among those that are as fast as the choice, or faster.
    least = min(memory[size] for size in sizes if medians[size] <= 1.02 * medians[chosen])
    return {
        "tasks": count,
        "chosen": chosen,
        "chosen_over_best": medians[chosen] / min(medians.values()),
        "memory_over_least": memory[chosen] / least,
        "temporaries_mib": {str(size): value for size, value in memory.items()},
        "seconds": {str(size): values for size, values in times.items()},
    }


def table_of(result: dict) -> tuple[list[str], list[list[str]]]:
    """Median times and memory by size of the groups."""
    head = ["", "program", "tasks", *(f"{n} at a time" for n in (1, 2, 4, 8)), "all", "time / best", "memory / least", "commit"]
    rows = []
    for case in result["cases"].values():
        cells = []
        for size in (1, 2, 4, 8, case["tasks"]):
            seconds = statistics.median(case["seconds"][str(size)])
            text = f"{1e3 * seconds:.3g} ms, {case['temporaries_mib'][str(size)]:.3g} MiB"
            cells.append(f"**{text}**" if size == case["chosen"] else text)
        if case["tasks"] == 8:
            cells[-1] = ""
        ratios = (
            f"{case['chosen_over_best']:.2f} ({case['chosen']} at a time)",
            f"{case['memory_over_least']:.2f}",
            case["commit"],
        )
        rows.append([case["title"], case["what"], str(case["tasks"]), *cells, *ratios])
    return head, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", nargs="*", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--what", nargs="*", choices=WHAT, default=WHAT)
    options = parser.parse_args()
    path = RESULTS / "in_flight.json"
    cases = json.loads(path.read_text())["cases"] if path.exists() else {}
    commit = measurement(parser, options)["commit"]
    for name in options.case:
        for what in options.what:
            found = {"title": CASES[name][0], "what": what, "commit": commit, **measure(name, what, options.rounds)}
            cases[f"{name}, {what}"] = found
            print(f"{name}, {what}: {found['chosen']} at a time, {found['chosen_over_best']:.2f} x the best time,",
                  f"{found['memory_over_least']:.2f} x the least memory", flush=True)  # fmt: skip
            jax.clear_caches()
    result = measurement(parser, options) | {"cases": cases}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(rows_of(*table_of(result)))


if __name__ == "__main__":
    main()
