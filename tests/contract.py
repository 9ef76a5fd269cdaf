"""The table of all strategies, and the one problem they are held to. A new strategy is one row."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import no_tasks

import adaptax as ax
from adaptax.curvature import Annealed, FiniteDifference, FirstOrder, GaussianSmoothing, ZerothOrder
from adaptax.gradients import Smoothed
from adaptax.stepsize import Learned

STEPS = 3
traces: list[int] = []
ticks: Counter[str] = Counter()


def loss(p, x):
    """Smooth, with curvature between leaves; non-floating leaves take part."""
    traces.append(1)
    mixed = p["a"] * p["count"][0] + jnp.sum(p["b"]) - x
    return jnp.mean(jnp.cos(mixed)) + 0.3 * jnp.sum(p["a"] ** 2) + 0.2 * jnp.sum(p["b"] * p["b"][::-1])


PROBLEM = ax.FiniteSum(loss, no_tasks)


def point(seed, dtype=None):
    """Parameters and a task."""
    rng = np.random.default_rng(seed)
    draw = lambda size: jnp.asarray(0.7 * rng.normal(size=size), dtype or jnp.result_type(float))  # noqa: E731
    return {"a": draw(3), "b": draw(2), "count": jnp.array([2]), "name": "cos"}, ax.Task(draw(3), draw(3))


# Each mark is an identity that reports what is asked of it. Differentiating the loss brings the cotangent back through it;
# differentiating that gradient once more finds the cotangent of the marked parameter to have a tangent.
def tick(name):
    jax.debug.callback(lambda: ticks.update([name]))


@jax.custom_jvp
def backward(cotangent):
    tick("gradient")
    return cotangent


@backward.defjvp
def _backward(primals, tangents):
    tick("product")
    return primals[0], tangents[0]


@jax.custom_vjp
def mark(leaf):
    tick("loss")
    return leaf


def _mark(leaf):
    tick("loss")
    return leaf, None


mark.defvjp(_mark, lambda _, cotangent: (backward(cotangent),))
COUNTED = ax.FiniteSum(lambda p, x: loss({**p, "a": mark(p["a"])}, x), no_tasks)


class Row(NamedTuple):
    """A strategy under contract.

    Arguments:
        make: the method for an inner step size.
        error: how far from backpropagation through the same inner loop: a bound on the relative error, "mean" (the mean
            over keys is within four standard errors), or None where the method is another on purpose.
    """

    make: Callable
    error: float | str | None = 1e-10

    def params(self, w, alpha):
        rates = self.make(alpha).inner.stepsize
        return ax.Meta(w, rates.start(w, STEPS)) if isinstance(rates, Learned) else w


def inner(alpha, optimizer=None, **options):
    return ax.Inner(STEPS, alpha, optimizer=optimizer, **options)


def gradient(curvature=ax.curvature.Exact(), *, multi=None, store="iterates", learned=None, **options):  # noqa: B008
    """A row's method, from its parts."""

    def make(alpha):
        rate = alpha if learned is None else Learned(alpha, **learned)
        return ax.MetaGradient(inner(rate, **options), curvature, multi_step=multi, store=store)

    return make


def only_a(path):
    return path == "a"


OPTIMIZERS = {
    "sgd": optax.sgd(0.9),
    "momentum": optax.sgd(0.9, momentum=0.8),
    "nesterov": optax.sgd(0.9, momentum=0.8, nesterov=True),
    "adam": optax.adam(0.9, eps_root=1e-3),
    "clip": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.9)),
    "decay": optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.9, momentum=0.8)),
}
# Differences of third-order error: delta^2 nu / 6 for each factor, of which there are three.
WIDTH = 1e-3
ROWS = {
    "exact": Row(gradient()),
    "sqrt": Row(gradient(store="sqrt")),
    "frozen": Row(gradient(adapt=only_a)),
    "proximal": Row(gradient(proximal=0.4)),
    "adam and proximal": Row(gradient(optimizer=OPTIMIZERS["adam"], proximal=0.4)),
    "multi-step": Row(gradient(multi=ax.MultiStep())),
    "multi-step momentum": Row(gradient(multi=ax.MultiStep(), optimizer=OPTIMIZERS["momentum"], store="sqrt")),
    **{name: Row(gradient(optimizer=optimizer)) for name, optimizer in OPTIMIZERS.items()},
    "learned scalar": Row(gradient(learned={})),
    "learned leaf": Row(gradient(learned={"per": "leaf", "per_step": True})),
    "learned parameter": Row(gradient(learned={"per": "parameter"}, optimizer=OPTIMIZERS["momentum"], proximal=0.4)),
    "first order": Row(gradient(FirstOrder()), None),
    "first order adam": Row(gradient(FirstOrder(), optimizer=OPTIMIZERS["adam"]), None),
    "annealed": Row(gradient(Annealed(0))),
    "annealed learned": Row(gradient(Annealed(5), learned={}), None),
    "differences": Row(gradient(FiniteDifference(delta=WIDTH)), 10 * WIDTH**2),
    "differences learned": Row(gradient(FiniteDifference(), learned={"per": "leaf"}), 1e-8),
    "smoothing": Row(gradient(GaussianSmoothing(samples=2)), "mean"),
    "antithetic": Row(gradient(GaussianSmoothing(samples=2, delta=1e-3, antithetic=True), learned={}), "mean"),
    "smoothing momentum": Row(gradient(GaussianSmoothing(samples=2), optimizer=OPTIMIZERS["momentum"]), "mean"),
    "values": Row(gradient(ZerothOrder(samples=2)), "mean"),
    "values uncorrected": Row(gradient(ZerothOrder(samples=2, stein=False)), None),
    "values alone": Row(gradient(ZerothOrder(samples=2), gradients=Smoothed(samples=2)), None),
    # Gradients of values, differenced: two estimators nested.
    "values antithetic": Row(
        gradient(GaussianSmoothing(samples=2, delta=0.1), gradients=Smoothed(samples=2, delta=0.1, antithetic=True)), None
    ),
    "implicit": Row(lambda alpha: ax.Implicit(inner(alpha, proximal=3.0), iterations=4), None),
    "implicit frozen": Row(lambda alpha: ax.Implicit(inner(alpha, proximal=3.0, adapt=only_a), iterations=2), None),
    "reptile": Row(lambda alpha: ax.Reptile(inner(alpha)), None),
}
