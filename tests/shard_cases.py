"""Runs with parameters that are cut over devices. `tests/training/test_parameter_shards.py` takes them here and in others."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import process_cases

import adaptax as ax
from adaptax import _devices as dev
from adaptax.training.chunk import run_chunk

ROWS, COLUMNS = 32, 64
ADAM = optax.adam(0.05)
# A matrix that is cut, a vector that is too short for it, and whole numbers, which are no parameters.
START = {"matrix": jnp.ones((ROWS, COLUMNS)), "vector": jnp.ones(COLUMNS), "numbers": jnp.arange(2 * ROWS * COLUMNS)}


class Wide:
    """Quadratics in the matrix and the vector."""

    traces = 0

    @classmethod
    def loss(cls, w, c):
        cls.traces += 1
        return jnp.mean((w["matrix"] * (1 + w["vector"]) - c) ** 2)

    @staticmethod
    def sample(key):
        return ax.Task(*jax.random.normal(key, (2, ROWS, COLUMNS)))


PROBLEM = ax.FiniteSum(Wide.loss, Wide.sample)
METHODS = {
    "fixed": ax.MetaGradient(ax.Inner(3, 0.1)),
    "edge": ax.MetaGradient(ax.Inner(3, ax.stepsize.Edge(tasks=2, every=4))),
    "auto": ax.MetaGradient(ax.Inner(3)),
    "learned": ax.MetaGradient(ax.Inner(3, ax.stepsize.Learned(0.1, per="parameter"))),
    "first-order": ax.MetaGradient(ax.Inner(3, 0.1), curvature=ax.curvature.FirstOrder()),
}
WATCHED = {"evaluate_every": 4, "validation": PROBLEM, "monitor_every": 4, "certify": True}


class Length(ax.training.Callback):
    """A user's measurement, which mixes the state with an array of its own."""

    name = "length"

    def measure(self, state):
        return {"from_start": float(jnp.linalg.norm(state.params["matrix"] - START["matrix"]))}


def train(name="fixed", shards=2, **options):
    options = {"steps": 8, "tasks_per_step": 3, "optimizer": ADAM, "problem": PROBLEM, **options}
    return ax.train(options.pop("problem"), START, METHODS[name], parameter_shards=shards, **options)


def floats(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)]


def everything(shards=1, devices=None, **options):
    """Training with all that is measured on the way, and an evaluation."""
    state, history = train("auto", shards, devices=devices, callbacks=[Length(every=2)], **WATCHED, **options)
    more = {"devices": devices, "parameter_shards": shards}
    curve = ax.evaluate(PROBLEM, state.params, state.inner, [0, 3], 21, **more)
    leaves = {f"leaf {i}": np.asarray(leaf) for i, leaf in enumerate(floats((state.params, state.opt_state, state.inner)))}
    return leaves | history | {"mean": curve.mean["loss"], "low": curve.low["loss"]}


def in_two(folder, index):
    """What process `index` of two with two devices each does in the test."""
    place = folder if index == 0 else folder / "unseen"
    found = {"everything": everything(2, out=place / "by two")}
    found["resumed"] = everything(2, out=place / "by one", resume=True)
    refused = process_cases.refused
    told = {
        "too many": refused(lambda: train(shards=4)),
        "another": refused(lambda: train(shards=1 + index)),
        "held": str({shard.device.process_index for shard in train(steps=1)[0].params["matrix"].addressable_shards}),
    }
    return found, told


SINUSOIDS = {
    "auto": ax.MetaGradient(ax.Inner(10)),
    "fixed": ax.MetaGradient(ax.Inner(10, 0.001)),
    "first-order": ax.MetaGradient(ax.Inner(10, 0.001), curvature=ax.curvature.FirstOrder()),
}


def memory(problem, params, method, counts, tasks):
    """The bytes that each device needs for a state, in between, and for what comes out, by the number of shards."""
    found = {}
    for shards in counts:
        step = ax.make_step(problem, method, ADAM, tasks)
        step = dataclasses.replace(step, mesh=dev.mesh_of(jax.devices()[:shards], tasks, shards=shards))
        state = dev.place(step.mesh, step.init(params))
        program = run_chunk.lower(step, state, jnp.array(1), 8, jnp.array(10)).compile().compiled
        needs = program.memory_analysis()
        found[shards] = needs.argument_size_in_bytes, needs.temp_size_in_bytes, needs.output_size_in_bytes
    return found


def wide_network():
    """What each of 1, 2 and 4 devices needs for a network of 1,024 units in two layers, by method."""
    problem, params = ax.tasks.sinusoid(), ax.models.mlp((1, 1024, 1024, 1), key=jax.random.key(0))
    methods = {"fixed": ax.MetaGradient(ax.Inner(5, 0.001)), "auto": ax.MetaGradient(ax.Inner(5))}
    found = {name: memory(problem, params, method, (1, 2, 4), 4) for name, method in methods.items()}
    return {f"{name}/{shards}": np.array(needs) for name, rows in found.items() for shards, needs in rows.items()}


def sinusoids():
    """The sinusoid problem on all devices, with parameters whole, and cut in two and in four."""
    problem, params = ax.tasks.sinusoid(), ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0))
    found = {"start": np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])}
    for name, method in SINUSOIDS.items():
        for shards in (1, 2, 4):
            state, history = ax.train(problem, params, method, steps=20, tasks_per_step=24, parameter_shards=shards)
            curve = ax.evaluate(problem, state.params, state.inner, [0, 10, 20], 100, parameter_shards=shards)
            flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves((state.params, state.inner.stepsize))])
            found |= {f"{name}/{shards}/params": flat, f"{name}/{shards}/loss": history["loss"]}
            found |= {f"{name}/{shards}/mean": curve.mean["loss"], f"{name}/{shards}/low": curve.low["loss"]}
            sizes = {shard.data.shape for shard in state.params.layers[1].weight.addressable_shards}
            found[f"{name}/{shards}/part"] = np.array(sorted(sizes))
    return found | {"callback": np.array(process_cases.refused(calls_host))}


def calls_host():
    """Training on tasks that a call of the host makes, in two groups of devices."""

    def sample(key):
        shape = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32)
        drawn = jax.pure_callback(lambda key: np.ones(shape.shape, np.float32), shape, key, vmap_method="sequential")
        return ax.Task(drawn, drawn)

    train(problem=ax.FiniteSum(Wide.loss, sample))
