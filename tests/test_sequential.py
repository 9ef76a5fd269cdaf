"""`ax.Sequential`: exact meta-gradients where each inner step has its own batch and the loss carries a state."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import MISSION, relative

import adaptax as ax

STEPS = 5
pytestmark = pytest.mark.usefixtures("x64")


def params(seed=0):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    size = {"in": (3, 4), "own": (4, 4), "out": (4,)}
    return {n: 0.5 * jax.random.normal(k, size[n], float) for n, k in zip(size, (a, b, c), strict=True)}


def loss(w, state, batch):
    """A recurrent network that is told one row after another, with a counter in its state."""
    x, y = batch
    hidden = jnp.tanh(x @ w["in"] + state["hidden"] @ w["own"])
    value = (hidden @ w["out"] - y) ** 2 * (1 + 0.1 * state["seen"])
    return value, {"hidden": hidden, "seen": state["seen"] + 1}


def plain(w, batch):
    return loss(w, {"hidden": jnp.zeros(4), "seen": 0}, batch)[0]


def begin(w):
    return {"hidden": jnp.tanh(w["out"]), "seen": jnp.zeros((), int)}


STATES = {"none": None, "fixed": {"hidden": np.full(4, 0.3), "seen": np.zeros((), int)}, "of the parameters": begin}


def task(seed=1, steps=STEPS):
    x, y = jax.random.normal(jax.random.key(seed), (steps + 1, 3), float), jnp.sin(jnp.arange(steps + 1.0))
    return ax.Task((x[:steps], y[:steps]), (x[steps], y[steps]))


def problem(state="fixed", outer="last"):
    return ax.Sequential(plain if state == "none" else loss, lambda key: task(), state=STATES[state], outer=outer)


def by_hand(w, one, state, outer, optimizer, alpha, frozen=()):
    """The outer loss by a loop in plain Python."""
    opt_state, losses = optimizer.init({k: v for k, v in w.items() if k not in frozen}), []
    carried = STATES[state](w) if callable(STATES[state]) else STATES[state]
    step = (lambda w, s, b: (plain(w, b), None)) if state == "none" else loss
    for j in range(STEPS):
        batch = jax.tree.map(lambda leaf, j=j: leaf[j], one.support)
        (value, new), g = jax.value_and_grad(step, has_aux=True)(w, carried, batch)
        losses.append(value)
        adapting = {k: v for k, v in w.items() if k not in frozen}
        updates, opt_state = optimizer.update({k: g[k] for k in adapting}, opt_state, adapting)
        w, carried = {**w, **jax.tree.map(lambda a, u: a + alpha * u, adapting, updates)}, new
    return sum(losses) / STEPS if outer == "path" else step(w, carried, one.target)[0]


OPTIMIZERS = {"sgd": None, "momentum": optax.sgd(0.5, momentum=0.9), "adam": optax.adam(0.1, eps_root=1e-8)}


@pytest.mark.parametrize("outer", ["last", "path"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_meta_gradients_are_those_of_a_loop_in_plain_jax(state, outer, name):
    one, w, optimizer = task(), params(), OPTIMIZERS[name]
    inner = ax.Inner(STEPS, 0.3, optimizer=optimizer)
    want = jax.value_and_grad(by_hand)(w, one, state, outer, optimizer or optax.sgd(1.0), 0.3)
    for options in ({}, {"store": "sqrt"}, {"store": 1}, {"mode": "backprop"}):
        value, gradient, _ = ax.MetaGradient(inner, **options)(problem(state, outer), w, one)
        assert relative((value, gradient), want) < 1e-11, options


@pytest.mark.parametrize("outer", ["last", "path"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "clip" else MISSION) for name in contract.OPTIMIZERS])
def test_every_optimiser_of_the_contract(outer, name):
    one, w, optimizer = task(), params(), contract.OPTIMIZERS[name]
    want = jax.value_and_grad(by_hand)(w, one, "of the parameters", outer, optimizer, 0.3)
    for options in ({}, {"store": 2}, {"store": "offload"}, {"truncate": STEPS}):
        method = ax.MetaGradient(ax.Inner(STEPS, 0.3, optimizer=optimizer), **options)
        assert relative(method(problem("of the parameters", outer), w, one)[:2], want) < 1e-11, options


@pytest.mark.parametrize("outer", ["last", "path"])
def test_frozen_parameters_and_finite_differences(outer):
    one, w = task(), params()
    method = ax.MetaGradient(ax.Inner(STEPS, 0.3, adapt=lambda path: path != "own"))
    gradient = method(problem("of the parameters", outer), w, one)[1]
    assert relative(gradient, jax.grad(by_hand)(w, one, "of the parameters", outer, optax.sgd(1.0), 0.3, ("own",))) < 1e-11
    along = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(5), leaf.shape, float), w)
    value = lambda t: method(problem("of the parameters", outer), jax.tree.map(lambda a, b: a + t * b, w, along), one)[0]  # noqa: E731
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert relative(slope, sum(jnp.sum(a * b) for a, b in zip(map(gradient.get, w), map(along.get, w), strict=True))) < 1e-7


def test_learned_step_sizes_multi_step_losses_and_batches_of_tasks():
    w, one = params(), task()
    rates = ax.stepsize.Learned(0.3, per="leaf", per_step=True).start(w, STEPS)
    inner = ax.Inner(STEPS, ax.stepsize.Learned(0.3))
    for multi in (None, ax.MultiStep()):
        found = [
            ax.MetaGradient(inner, mode=mode, multi_step=multi)(problem(), ax.Meta(w, rates), one)
            for mode in ("recursion", "backprop")
        ]
        assert relative(*(each[:2] for each in found)) < 1e-11
    tasks = [task(seed) for seed in range(3)]
    value, gradient, _ = ax.MetaGradient(ax.Inner(STEPS, 0.3)).batch(problem(), w, tasks)
    each = [ax.MetaGradient(ax.Inner(STEPS, 0.3))(problem(), w, t)[:2] for t in tasks]
    assert relative((value, gradient), jax.tree.map(lambda *x: sum(x) / 3, *each)) < 1e-12


def test_adapt_gives_the_last_state_with_derivatives():
    one, w, inner = task(), params(), ax.Inner(STEPS, 0.3)
    adapted = ax.adapt(problem("of the parameters"), w, one, inner)
    assert int(adapted.state["seen"]) == STEPS

    def judged(w):
        adapted = ax.adapt(problem("of the parameters"), w, one, inner)
        return loss(adapted.params, adapted.state, one.target)[0]

    want = jax.value_and_grad(by_hand)(w, one, "of the parameters", "last", optax.sgd(1.0), 0.3)
    assert relative(jax.value_and_grad(judged)(w), want) < 1e-11


def test_curvature_strategies_and_reptile_walk_the_same_path():
    one, w, inner = task(), params(), ax.Inner(STEPS, 0.3)
    exact = ax.MetaGradient(inner)(problem(), w, one)
    close = ax.MetaGradient(inner, ax.curvature.FiniteDifference())(problem(), w, one)
    assert relative(close[1], exact[1]) < 1e-4
    assert relative(close[0], exact[0]) < 1e-14
    assert relative(ax.Reptile(inner)(problem(), w, one)[0], exact[0]) < 1e-14
    for name in ("first", "path"):
        other = ax.MetaGradient(inner, ax.curvature.FirstOrder())(problem(outer="path" if name == "path" else "last"), w, one)[
            1
        ]
        assert relative(other, exact[1]) > 1e-3


@pytest.mark.parametrize("outer", ["last", "path"])
def test_evaluation_carries_the_state(outer):
    w, one, inner = params(), task(), ax.Inner(STEPS, 0.3)
    steps = range(STEPS) if outer == "path" else range(STEPS + 1)
    curve = ax.evaluate(problem(outer=outer), w, inner, steps, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), one))
    adapted = ax.adapt(problem(), w, one, inner)
    want = adapted.losses if outer == "path" else loss(adapted.params, adapted.state, one.target)[0]
    got = curve.mean["loss"] if outer == "path" else curve.mean["loss"][-1]
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("stepsize", ["Auto", "Edge", "Guaranteed"])
def test_training_measures_step_sizes_along_the_sequence(stepsize):
    def sample_task(key):
        x = jax.random.normal(key, (9, 3))
        return ax.Task((x[:8], jnp.sum(x[:8], 1)), (x[8], jnp.sum(x[8])))

    made = ax.Sequential(loss, sample_task, state=STATES["fixed"])
    method = ax.MetaGradient(ax.Inner(8, getattr(ax.stepsize, stepsize)()))
    state, history = ax.train(made, params(), method, steps=40, tasks_per_step=8, seed=0)
    assert not history["skipped"].any()
    assert history["loss"][-10:].mean() < history["loss"][:10].mean()
    assert np.isfinite(ax.evaluate(made, state.params, state.inner, [0, 8], 20).mean["loss"]).all()


def method(**options):
    return ax.MetaGradient(ax.Inner(STEPS, 0.3), **options)


def run(made, one=None, by=None):
    return lambda: (by or method())(made(), params(), task() if one is None else one())


def uneven():
    return ax.Task((jnp.ones((5, 3)), jnp.ones(4)), task().target)


def unlike():
    return ax.Sequential(loss, task, state={"hidden": jnp.zeros(4), "seen": False})


BAD = {
    "outer": (lambda: problem(outer="first"), '"last"'),
    "outer and target loss": (lambda: ax.Sequential(plain, task, outer="path", target_loss=plain), "leave target_loss= out"),
    "short": (run(problem, lambda: task(steps=3)), "3 batches for 5 inner steps"),
    "no common axis": (run(problem, uneven), "one leading axis"),
    "state": (run(unlike), "same structure"),
    "no state back": (run(lambda: ax.Sequential(lambda w, s, b: plain(w, b), task, state=begin)), "next state"),
    "no target": (run(problem, lambda: ax.Task(task().support)), "no target set"),
    "implicit": (run(problem, by=ax.Implicit(ax.Inner(5, 0.1, proximal=1.0))), "use ax.MetaGradient"),
    "multi": (run(lambda: problem(outer="path"), by=method(multi_step=ax.MultiStep())), "leave multi_step"),
    "no steps": (run(lambda: problem(outer="path"), by=ax.MetaGradient(ax.Inner(0, 0.1))), "one or more"),
    "beyond": (lambda: ax.evaluate(problem(outer="path"), params(), ax.Inner(5, 0.1), [STEPS], 2), "5 batches for 6"),
    "constants": (lambda: ax.measure.constants(problem(), params(), ax.Inner(5, 0.1)), "one inner loss"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name):
    call, message = BAD[name]
    with pytest.raises(ax.InputError, match=message):
        call()
