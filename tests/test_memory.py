"""The memory of the compiled meta-gradient does not grow with the graphs of N steps."""

import equinox as eqx
import jax
import pytest
from helpers import images, regression

import adaptax as ax


def parameter_bytes(model):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))


def temporaries(make, steps, **options):
    """Bytes of temporaries of the compiled meta-gradient of one task."""
    problem, model, task = make
    method = ax.MetaGradient(ax.Inner(steps, 0.01), **options)
    compiled = jax.jit(lambda model, task: method(problem, model, task)[:2]).lower(model, task).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("channels, side", [(16, 16), pytest.param(64, 28, marks=pytest.mark.slow)], ids=["small", "Conv4-64"])
def test_convolutions_keep_iterates_only(channels, side):
    make = images(ways=5, channels=channels, side=side, shots=1)
    one, many = temporaries(make, 1), temporaries(make, 64)
    assert many <= 1.5 * one + 64 * parameter_bytes(make[1])
    # Backpropagation keeps one graph a step.
    graphs = temporaries(make, 64, mode="backprop") - temporaries(make, 1, mode="backprop")
    assert graphs > 10 * (many - one)


def test_sqrt_keeps_fewer_iterates():
    make = regression(sizes=(1, 40, 40, 1))
    size = parameter_bytes(make[1])
    every, few = temporaries(make, 256), temporaries(make, 256, store="sqrt")
    assert every > 256 * size
    # About 16 starts, 16 recomputed iterates and the tail, with some room for work.
    assert few < 0.4 * every
