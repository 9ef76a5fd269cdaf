"""Any optax transformation on any parameters: refused in a sentence, or the meta-gradient is backpropagation's and finite."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import flat, no_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptax as ax

EXAMPLES = max(int(os.environ.get("ADAPTAX_FUZZ", "20")) // 4, 1)
SHAPES = [(), (1,), (3,), (2, 3), (2, 1, 2)]
rates = st.sampled_from([0.05, 0.3, optax.cosine_decay_schedule(0.2, 10), optax.exponential_decay(0.3, 2, 0.5)])
C = optax.contrib
# Transformations of the gradient, each with a rate where it needs one.
SIMPLE = [
    lambda r: optax.sgd(r),
    lambda r: optax.sgd(r, momentum=0.8, nesterov=True),
    lambda r: optax.adam(r),
    lambda r: optax.adam(r, eps_root=1e-6),
    lambda r: optax.adamw(r, eps_root=1e-6),
    lambda r: optax.nadam(r, eps_root=1e-6),
    lambda r: optax.amsgrad(r, eps_root=1e-6),
    lambda r: optax.adabelief(r, eps_root=1e-6),
    lambda r: optax.radam(r, eps_root=1e-6),
    lambda r: optax.adamax(r),
    lambda r: optax.adan(r),
    lambda r: optax.yogi(r),
    lambda r: optax.adagrad(r),
    lambda r: optax.adadelta(r),
    lambda r: optax.rmsprop(r, momentum=0.5),
    lambda r: optax.rmsprop(r, eps_in_sqrt=False),
    lambda r: optax.lion(r),
    lambda r: optax.sign_sgd(r),
    lambda r: optax.signum(r),
    lambda r: optax.lamb(r, eps_root=1e-6),
    lambda r: optax.lars(r),
    lambda r: optax.fromage(0.1),
    lambda r: optax.novograd(r),
    lambda r: optax.sm3(0.1),
    lambda r: optax.adafactor(0.1),
    lambda r: optax.optimistic_gradient_descent(r),
    lambda r: optax.rprop(0.1),
    lambda r: C.muon(r),
    lambda r: C.prodigy(0.1),
    lambda r: C.schedule_free_sgd(0.1),
    lambda r: C.acprop(r),
    lambda r: C.ademamix(r),
    lambda r: C.adopt(r),
    lambda r: C.dowg(0.1),
    lambda r: C.cocob(0.1),
    lambda r: optax.lookahead(optax.sgd(r), 2, 0.5),
    lambda r: optax.polyak_sgd(),
    lambda r: optax.lbfgs(),
]
BEFORE = [
    lambda: optax.clip(0.5),
    lambda: optax.clip_by_global_norm(0.5),
    lambda: optax.clip_by_block_rms(0.5),
    lambda: optax.adaptive_grad_clip(0.1),
    lambda: optax.centralize(),
    lambda: optax.normalize_by_update_norm(),
    lambda: optax.add_decayed_weights(0.1),
    lambda: optax.trace(0.7),
    lambda: optax.ema(0.7),
    lambda: optax.scale_by_rms(),
    lambda: optax.scale_by_rss(),
    lambda: optax.scale_by_stddev(),
    lambda: optax.scale_by_trust_ratio(),
    lambda: optax.scale_by_param_block_norm(),
    lambda: optax.scale_by_factored_rms(),
    lambda: optax.zero_nans(),
    lambda: optax.add_noise(0.01, 0.5, key=jax.random.key(0)),
    lambda: C.normalize(),
    lambda: optax.stateless(lambda g, p: jax.tree.map(lambda g, p: g * jnp.sqrt(jnp.abs(p) + 1), g, p)),
    lambda: optax.stateless(lambda g, p: jax.tree.map(lambda g: g * jnp.sqrt(jnp.abs(g)), g)),
    lambda: optax.stateless(lambda g, p: jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g**2)) * g, g)),
]


@st.composite
def optimizers(draw, names, depth=2):
    kind = draw(st.sampled_from(["simple", "chain", "masked", "multi", "wrapped"])) if depth else "simple"
    deeper = optimizers(names, depth - 1)
    if kind == "simple":
        return draw(st.sampled_from(SIMPLE))(draw(rates))
    if kind == "chain":
        return optax.chain(*[make() for make in draw(st.lists(st.sampled_from(BEFORE), min_size=1, max_size=2))], draw(deeper))
    if kind == "masked":
        if draw(st.booleans()):
            return optax.masked(draw(deeper), lambda p: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, p))
        return optax.masked(draw(deeper), {name: draw(st.booleans()) for name in names})
    if kind == "multi":
        labels = {name: draw(st.sampled_from("ab")) for name in names}
        return optax.multi_transform({"a": draw(deeper), "b": draw(deeper)}, labels)
    inner = draw(deeper)
    return draw(
        st.sampled_from(
            [
                lambda: optax.MultiSteps(inner, 2).gradient_transformation(),
                lambda: optax.apply_if_finite(inner, 3),
                lambda: optax.flatten(inner),
                lambda: optax.inject_hyperparams(optax.adam)(0.1, eps_root=1e-6),
                lambda: optax.inject_hyperparams(optax.sgd)(optax.cosine_decay_schedule(0.2, 10), momentum=0.9),
                lambda: optax.named_chain(("first", optax.clip(0.5)), ("second", inner)),
                lambda: optax.conditionally_transform(inner, lambda step, **_: step > 1),
            ]
        )
    )()


@st.composite
def cases(draw):
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2))
    names = [f"p{k}" for k in range(len(shapes))]
    steps, seed = draw(st.sampled_from([1, 2, 3, 6])), draw(st.integers(0, 99))
    return dict(zip(names, shapes, strict=True)), draw(optimizers(names)), steps, seed


def loss(p, batch):
    """Leaves, rows and entries whose mask is zero have no gradient."""
    terms = [jnp.sum(jnp.cos(mask * leaf - centre) * mask) for leaf, (mask, centre) in zip(p.values(), batch, strict=True)]
    return sum(terms) + 0.3 * sum(terms) ** 2


@pytest.mark.long
@settings(derandomize=True, deadline=None, max_examples=EXAMPLES)
@given(cases())
def test_an_optimiser_is_refused_or_its_meta_gradient_is_that_of_a_loop(case):
    shapes, optimizer, steps, seed = case
    rng = np.random.default_rng(seed)
    # Operation by operation, since compiling takes longer than running.
    with jax.enable_x64(True), jax.disable_jit():
        params = {name: jnp.asarray(rng.normal(size=shape) + 0.1) for name, shape in shapes.items()}
        batch = [(jnp.asarray(rng.choice([0.0, 1.0], shape)), jnp.asarray(rng.normal(size=shape))) for shape in shapes.values()]
        if not any(mask.any() for mask, _ in batch):
            batch[0] = (jnp.ones_like(batch[0][0]), batch[0][1])
        problem, task = ax.FiniteSum(loss, no_tasks), ax.Task(batch, batch)

        def by_hand(w):
            state = optimizer.init(w)
            for _ in range(steps):
                moves, state = optimizer.update(jax.grad(loss)(w, batch), state, w)
                w = optax.apply_updates(w, moves)
            return loss(w, batch)

        try:
            got = ax.MetaGradient(ax.Inner(steps, optimizer=optimizer))(problem, params, task)[1]
        except ax.InputError as error:
            assert str(error).startswith(("The inner optimiser", "Inner(optimizer="))  # noqa: PT017
            return
        expected = jax.grad(by_hand)(params)
    assert np.isfinite(flat(got)).all()
    if np.isfinite(flat(expected)).all():
        error = np.linalg.norm(flat(got) - flat(expected))
        assert error < 1e-7 * (np.linalg.norm(flat(expected)) + 1e-6), (got, expected)
