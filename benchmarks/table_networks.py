"""A multilayer perceptron, fitted to all training rows of a table and fine-tuned on the support rows of a new group.

It is what one gets without meta-learning: the network is trained to predict, not to be adapted. How it is adapted is tuned on
the training groups.
"""

from functools import partial
from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit
from table_data import Array, Case, Choice, Mode, Table, inner_folds
from table_kernels import Scale

WIDTH = 40
BATCH = 128
RATE = 2e-3
# The numbers of steps after which the training of the pooled network may stop.
STAGES = (400, 1500)
DECAYS = (0.1, 3.0, 10.0)
# The numbers of steps of fine-tuning, its rates, and whether all adapts, the last layer, or its bias alone.
STEPS = (0, 3, 10, 30, 100, 300)
RATES = (0.01, 0.03, 0.1, 0.3)
LAYERS = ("all", "last", "bias")

Params = list[tuple[jax.Array, jax.Array]]


def _initial(features: int, seed: int) -> Params:
    rng = np.random.default_rng(seed)
    sizes = [features, WIDTH, WIDTH, 1]
    gains = (np.sqrt(2), np.sqrt(2), 0.1)
    pairs = zip(pairwise(sizes), gains, strict=True)
    return [
        (jnp.asarray(gain / np.sqrt(m) * rng.standard_normal((m, n)), jnp.float32), jnp.zeros(n, jnp.float32))
        for (m, n), gain in pairs
    ]


def _adapts(layers: str) -> Params:
    """Ones for the parameters that adapt, zeros for the others."""
    body, last = float(layers == "all"), float(layers != "bias")
    return [(body, body), (body, body), (last, 1.0)]


def _network(params: Params, x: jax.Array) -> jax.Array:
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = params[-1]
    return (x @ weight + bias)[..., 0]


def _loss(params: Params, x: jax.Array, y: jax.Array, classify: bool) -> jax.Array:
    scores = _network(params, x)
    if classify:
        return jnp.mean(optax.sigmoid_binary_cross_entropy(scores, y))
    return jnp.mean((scores - y) ** 2)


@partial(jax.jit, static_argnames="classify")
def _train(params: Params, x: jax.Array, y: jax.Array, batches: jax.Array, decay: jax.Array, classify: bool) -> Params:
    """Train on the rows of each batch in turn by Adam, the rate falling to zero; the weights decay."""
    adam = optax.scale_by_adam()
    count = len(batches)

    def step(carry: tuple, now: tuple) -> tuple:
        params, state = carry
        rows, i = now
        updates, state = adam.update(jax.grad(_loss)(params, x[rows], y[rows], classify), state)
        rate = RATE * (1 - i / count)
        params = jax.tree.map(lambda p, u: p - rate * (u + decay * p), params, updates)
        return (params, state), None

    (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), (batches, jnp.arange(count)))
    return params


@partial(jax.jit, static_argnames="classify")
def _tune(
    params: Params, xs: jax.Array, ys: jax.Array, xt: jax.Array, rate: float, adapts: Params, classify: bool
) -> jax.Array:
    """The scores (cases, steps, rows) after each number of steps; `adapts` is 1 where a parameter adapts, else 0.

    Gradients longer than 1 are cut to that length.
    """

    def one(xs: jax.Array, ys: jax.Array, xt: jax.Array) -> jax.Array:
        def descend(_: int, params: Params) -> Params:
            grads = jax.tree.map(jnp.multiply, adapts, jax.grad(_loss)(params, xs, ys, classify))
            shorter = rate / jnp.maximum(optax.global_norm(grads), 1.0)
            return jax.tree.map(lambda p, g: p - shorter * g, params, grads)

        found, adapted = [_network(params, xt)], params
        for before, after in pairwise(STEPS):
            adapted = jax.lax.fori_loop(0, after - before, descend, adapted)
            found.append(_network(adapted, xt))
        return jnp.stack(found)

    return jax.vmap(one)(xs, ys, xt)


class FineTuned:
    """Two hidden layers, trained on all training rows; gradient descent on the support rows adapts it to a new group.

    Validation chooses the length and the weight decay of the training, and steps, rate and layers of the fine-tuning.
    """

    CASES = 24  # cases of each fold, at most

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Tune the training and the fine-tuning together; train the network."""
        self.classify = table.classes is not None
        self.room = int(np.bincount(np.unique(table.group, return_inverse=True)[1]).max()) - k
        folds = inner_folds(table, groups, k, mode, seed, draws=2, limit=self.CASES)
        size = max(len(fold.cases) for fold in folds)
        choice = Choice(table)
        for fold, stage, decay in product(folds, STAGES, DECAYS):
            self._pool(table, fold.rows, stage, decay, seed)
            padded = [fold.cases[i % len(fold.cases)] for i in range(size)]
            xs, ys, xt = map(np.stack, zip(*(self._arrays(table, case) for case in padded), strict=True))
            for rate, layers in product(RATES, LAYERS):
                scores = np.asarray(_tune(self.params, xs, ys, xt, rate, _adapts(layers), self.classify))
                for (i, case), (j, steps) in product(enumerate(fold.cases), enumerate(STEPS)):
                    predicted = self._back(scores[i, j, : len(case.other)])
                    choice.add((stage, decay, rate, layers, steps), case, predicted)
        stage, decay, self.rate, self.layers, self.steps = choice.best()
        self._pool(table, table.rows(groups), stage, decay, seed)

    def _pool(self, table: Table, rows: Array, stage: int, decay: float, seed: int) -> None:
        """Train on these rows; arrays keep the shape of the whole table, so that one program serves all folds."""
        self.scale, self.target = Scale(table.x[rows]), Scale(table.y[rows])
        batches = np.random.default_rng(seed).choice(rows, (stage, BATCH))
        y = table.y if self.classify else self.target(table.y)
        x, y = jnp.asarray(self.scale(table.x), jnp.float32), jnp.asarray(y, jnp.float32)
        self.params = _train(_initial(x.shape[1], seed), x, y, jnp.asarray(batches), decay, self.classify)

    def _arrays(self, table: Table, case: Case) -> tuple[Array, Array, Array]:
        return self._padded(table.x[case.support], table.y[case.support], table.x[case.other])

    def _padded(self, xs: Array, ys: Array, xt: Array) -> tuple[Array, Array, Array]:
        xt = np.concatenate([xt, np.repeat(xt[:1], max(self.room - len(xt), 0), axis=0)])
        ys = ys if self.classify else self.target(ys)
        return tuple(np.asarray(array, np.float32) for array in (self.scale(xs), ys, self.scale(xt)))

    def _back(self, scores: Array) -> Array:
        return expit(scores.astype(float)) if self.classify else self.target.back(scores.astype(float))

    def predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """Fine-tune on these support rows, then predict."""
        arrays = (array[None] for array in self._padded(xs, ys, xt))
        scores = _tune(self.params, *arrays, self.rate, _adapts(self.layers), self.classify)
        return self._back(np.asarray(scores)[0, STEPS.index(self.steps), : len(xt)])
