"""The memory of the compiled meta-gradient does not grow with the graphs of N steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import images, regression

import adaptax as ax
from adaptax.curvature import FiniteDifference, GaussianSmoothing, ZerothOrder
from adaptax.stepsize import Learned

# What is measured is the program that users get.
pytestmark = pytest.mark.optimised


def parameter_bytes(model):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))


def temporaries(make, steps, **options):
    """Bytes of temporaries of the compiled meta-gradient of one task."""
    problem, model, task = make
    method = ax.MetaGradient(ax.Inner(steps, 0.01), **options)
    compiled = jax.jit(lambda model, task: method(problem, model, task)[:2]).lower(model, task).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.mission
@pytest.mark.parametrize("channels, side", [(16, 16), (64, 28)], ids=["small", "Conv4-64"])
def test_convolutions_keep_iterates_only(channels, side):
    make = images(ways=5, channels=channels, side=side, shots=1)
    one, many = temporaries(make, 1), temporaries(make, 64)
    assert many <= 1.5 * one + 64 * parameter_bytes(make[1])
    # Backpropagation keeps one graph a step.
    graphs = temporaries(make, 64, mode="backprop") - temporaries(make, 1, mode="backprop")
    assert graphs > 10 * (many - one)


@pytest.mark.long
def test_sqrt_keeps_fewer_iterates():
    make = regression(sizes=(1, 40, 40, 1))
    size = parameter_bytes(make[1])
    every, few = temporaries(make, 256), temporaries(make, 256, store="sqrt")
    assert every > 256 * size
    # About 16 starts, 16 recomputed iterates and the tail, with some room for work.
    assert few < 0.4 * every


def method(curvature=ax.curvature.Exact(), multi=None, stepsize=0.01, **options):  # noqa: B008
    return lambda steps: ax.MetaGradient(ax.Inner(steps, stepsize, **options), curvature, multi_step=multi)


PER_STEP = Learned(0.01, per="parameter", per_step=True)
ADAM = optax.adam(0.01, eps_root=1e-8)
# How many copies of the parameters are kept a step: the iterate, the optimiser's memory, and with rates of every step's own
# those rates and their derivatives.
KEPT = {
    "exact": (method(), 1),
    "momentum": (method(optimizer=optax.sgd(0.01, momentum=0.9)), 2),
    "Adam": (method(optimizer=ADAM), 3),
    "proximal": (method(proximal=0.1), 1),
    "differences": (method(FiniteDifference()), 1),
    "smoothing": (method(GaussianSmoothing(samples=2)), 1),
    "values": (method(ZerothOrder(samples=2), gradients=ax.gradients.Smoothed(samples=2)), 1),
    "multi-step": (method(multi=ax.MultiStep()), 1),
    "learned": (method(stepsize=Learned(0.01, per="parameter")), 1),
    "learned per step": (method(stepsize=PER_STEP), 3),
    "implicit": (lambda steps: ax.Implicit(ax.Inner(steps, 0.01, proximal=1.0)), 0),
    "reptile": (lambda steps: ax.Reptile(ax.Inner(steps, 0.01, optimizer=ADAM)), 0),
}


# The others take long to compile with all optimisations, which the analysis needs.
QUICK = ("exact", "multi-step")


@pytest.mark.long
@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KEPT])
def test_memory_is_that_of_iterates_and_optimiser_states(name):
    make, copies = KEPT[name]
    problem, model, task = regression(sizes=(1, 16, 16, 1))
    task = jax.tree.map(lambda leaf: jnp.tile(leaf, (20, 1)), task)
    size = parameter_bytes(model)

    def used(steps):
        rates = make(steps).inner.stepsize
        params = ax.Meta(model, rates.start(model, steps)) if isinstance(rates, Learned) else model
        # Keys are cheap to hold, and costly to compile here.
        run = jax.jit(lambda params, task: make(steps)(problem, params, task, jax.random.key(0))[:2])
        return run.lower(params, task).compile().memory_analysis().temp_size_in_bytes

    one = used(1)
    # Scalars a step: losses, counters, indices.
    assert used(256) <= 1.5 * one + 256 * (copies * size + 64)
    # The graph of a step is larger than what is kept, so that keeping it would have been noticed.
    assert one > 4 * size
