"""What is not finite, and where first: one sentence that names it, for one task and for a batch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import no_tasks

import adaptax as ax

nan, inf = jnp.nan, jnp.inf
INNER = ax.Inner(3, 0.1)
METHOD = ax.MetaGradient(INNER)
SMALLER = "use a smaller inner step size, or a rule such as ax.stepsize.Edge()"
NO_SLOPE, NO_BEND = "the loss has no finite derivative there", "the loss has no second derivative there"


def squares(w, c):
    return jnp.sum((w - c) ** 2)


def problem(extra=None, **options):
    """Squares, plus a function of w alone."""
    return ax.FiniteSum(squares if extra is None else lambda w, c: squares(w, c) + extra(w), no_tasks, **options)


def tasks(count=3, support=1.0, target=2.0):
    return ax.Task(jnp.full((count, 2), support), jnp.full((count, 2), target))


def test_nothing_is_said_of_tasks_that_are_finite():
    assert ax.diagnose(problem(), jnp.zeros(2), METHOD, tasks()) is None
    assert ax.diagnose(problem(), jnp.zeros(2), INNER, tasks()) is None


def test_the_first_of_several_tasks_and_their_number():
    bad = tasks(7)
    bad = ax.Task(bad.support.at[jnp.array([2, 5]), 1].set(nan), bad.target.at[4].set(inf))
    said = ax.diagnose(problem(), jnp.zeros(2), METHOD, bad)
    infos = METHOD.batch(problem(), jnp.zeros(2), bad)[2]
    assert np.flatnonzero(~infos.finite).tolist() == [2, 4, 5]
    assert said.startswith("3 of 7 tasks were not finite; the first is task 2: the loss at w_0 is NaN, since its data hold NaN")
    # Without the target set one task fewer is not finite.
    assert ax.diagnose(problem(), jnp.zeros(2), INNER, bad).startswith("2 of 7 tasks were not finite; the first is task 2:")


def test_the_leaf_of_the_data_is_named_as_the_user_wrote_it():
    two = ax.FiniteSum(lambda w, b: jnp.mean((w * b["x"][0] - b["y"]) ** 2), no_tasks)
    batch = {"x": [jnp.ones((4, 2))], "y": jnp.ones((4, 2)), "labels": jnp.ones((4, 2), int)}
    for part in ("support", "target"):
        spoilt = {**batch, "y": batch["y"].at[3, 0].set(inf)}
        given = ax.Task(spoilt, batch) if part == "support" else ax.Task(batch, spoilt)
        said = ax.diagnose(two, jnp.zeros(2), METHOD, given)
        where = "the loss at w_0" if part == "support" else "the target loss at w_3"
        assert said == (
            f"1 of 4 tasks was not finite, task 3: {where} is infinite, since its data hold infinite values in "
            f"task.{part}['y']: clean them, or leave such tasks out."
        )


@pytest.mark.parametrize(
    "given, start, where, advice",
    [
        (problem(jnp.linalg.norm), [0, 0], "the gradient of the loss at w_0, where the loss is finite, is NaN", NO_SLOPE),
        (problem(lambda w: jnp.sqrt(w[1])), [1, 0], "the gradient of the loss at w_0, where .* is infinite", NO_SLOPE),
        (problem(lambda w: jnp.sum(jnp.log(w))), [0, 1], "the loss at w_0 is infinite", r"log\(0\).* float32"),
        (problem(lambda w: w[0] / w[0]), [0, 1], "the loss at w_0 is NaN", "0/0"),
        (problem(lambda w: 50 * w[0] - jnp.sqrt(w[0])), [1, 1], "the loss at w_1 is NaN", SMALLER),
        (problem(target_loss=lambda w, c: jnp.log(-jnp.sum(c))), [0, 0], "the target loss at w_3 is NaN", r"log\(0\)"),
        (problem(target_loss=lambda w, c: jnp.linalg.norm(0 * w)), [0, 0], "the gradient of the target loss at w_3", NO_SLOPE),
        (problem(), [nan, 0], r"the loss at w_0 is NaN, since the parameters hold NaN in params\b", "start from parameters"),
    ],
)  # fmt: skip
def test_the_first_place_and_the_advice(given, start, where, advice):
    said = ax.diagnose(given, jnp.array(start, float), METHOD, tasks())
    assert re.search(rf"^3 of 3 tasks were not finite; the first is task 0: {where}", said) and re.search(advice, said)
    assert (SMALLER in said) == (advice == SMALLER)


def test_a_second_derivative_that_is_not_finite_is_told_from_a_gradient():
    # |w|^1.5 at 0: value and gradient are 0, the second derivative is infinite. All iterates stay at 0.
    bent = problem(lambda w: jnp.sum(jnp.abs(w) ** 1.5))
    given = tasks(2, support=0.0)
    adapted = ax.adapt(bent, jnp.zeros(2), ax.Task(jnp.zeros(2)), INNER)
    assert np.all(np.asarray(adapted.losses) == 0) and np.all(np.asarray(adapted.params) == 0)
    for method in (METHOD, ax.MetaGradient(INNER, mode="backprop"), ax.Implicit(ax.Inner(3, 0.1, proximal=1.0))):
        said = ax.diagnose(bent, jnp.zeros(2), method, given)
        place = 3 if isinstance(method, ax.Implicit) else 2
        assert f"a Hessian-vector product at w_{place} is not finite" in said and NO_BEND in said
    assert ax.diagnose(bent, jnp.zeros(2), ax.MetaGradient(INNER, ax.curvature.FirstOrder()), given) is None


def test_an_implicit_gradient_is_not_zero_where_products_are_not_finite():
    bent = problem(lambda w: jnp.sum(jnp.abs(w) ** 1.5))
    method = ax.Implicit(ax.Inner(3, 0.1, proximal=1.0))
    value, grad, info = method(bent, jnp.zeros(2), ax.Task(jnp.zeros(2), jnp.ones(2)))
    assert value == 2 and np.all(np.isnan(grad)) and not info.finite


def test_the_step_at_which_a_path_diverges():
    # w_j = 1 - (1 - 2 alpha)^j: in single precision its square overflows once (2 alpha - 1)^j > 1.8e19.
    for alpha in (20.0, 200.0, 2e6):
        overflow = next(j for j in range(99) if 2 * (2 * alpha - 1) ** (2 * j) > 3.4e38)
        inner = ax.Inner(20, alpha)
        for method in (inner, ax.MetaGradient(inner)):
            said = ax.diagnose(problem(), jnp.zeros(2), method, tasks())
            assert f"task 0: the loss at w_{overflow} is infinite: {SMALLER}" in said
    # Past the end of the path only the target set shows it.
    overflow = next(j for j in range(99) if 2 * 39.0 ** (2 * j) > 3.4e38)
    said = ax.diagnose(problem(), jnp.zeros(2), ax.MetaGradient(ax.Inner(overflow, 20.0)), tasks())
    assert f"the target loss at w_{overflow} is infinite: {SMALLER}" in said


def test_half_precision_overflows_early():
    w = jnp.zeros(2, jnp.float16)
    given = ax.Task(jnp.full((2, 2), 300.0, jnp.float16), jnp.ones((2, 2), jnp.float16))
    said = ax.diagnose(problem(), w, INNER, given)
    # 2 * 300^2 is more than the 65,504 that half precision holds.
    assert "the loss at w_0 is infinite: look there for log(0), 0/0, or numbers too large for float16" in said
    assert ax.diagnose(problem(), w.astype(jnp.float32), INNER, given) is None
    # The gradient, 600, is within its range: so is the meta-gradient, whatever the loss.
    assert ax.diagnose(problem(), w, METHOD, given) is None


def test_the_inner_optimiser_is_named_where_its_update_is_not_finite():
    broken = optax.stateless(lambda updates, params: jax.tree.map(lambda g: g / jnp.where(params > 0.1, 0, -10.0), updates))
    inner = ax.Inner(4, optimizer=broken)
    said = ax.diagnose(problem(), jnp.zeros(2), inner, tasks())
    # The first step is 0.2, from where the next divides by zero.
    assert (
        "the parameters after step 1 are not finite, though the gradient is (w_2 is infinite): look at what the inner" in said
    )
    sgd = ax.Inner(20, optimizer=optax.sgd(2e6))
    assert "give the inner optimiser a smaller learning rate" in ax.diagnose(problem(), jnp.zeros(2), sgd, tasks())


def test_rules_and_learned_rates_get_their_own_advice():
    rule = ax.Inner(5, ax.stepsize.Edge(gamma=1e12))
    assert "lower gamma= of Edge" in ax.diagnose(problem(), jnp.zeros(2), ax.MetaGradient(rule), tasks())
    learned = ax.stepsize.Learned(2e6)
    inner = ax.Inner(20, learned)
    meta = ax.Meta(jnp.zeros(2), learned.start(jnp.zeros(2), 20))
    assert "let the learned step sizes begin smaller" in ax.diagnose(problem(), meta, ax.MetaGradient(inner), tasks())
    spoilt = ax.Meta(jnp.zeros(2), jax.tree.map(lambda leaf: nan * leaf, meta.stepsize))
    said = ax.diagnose(problem(), spoilt, ax.MetaGradient(inner), tasks())
    assert "the parameters after step 0 are not finite" in said and "the parameters hold NaN in params.stepsize" in said


def test_masked_data_are_no_cause_of_a_path_that_diverges():
    def masked(w, c):
        known = jnp.isfinite(c)
        return jnp.sum(jnp.where(known, w - jnp.where(known, c, 0), 0) ** 2)

    given = ax.Task(jnp.ones((2, 2)).at[:, 0].set(nan), jnp.ones((2, 2)))
    missing = ax.FiniteSum(masked, no_tasks)
    assert ax.diagnose(missing, jnp.zeros(2), METHOD, given) is None
    said = ax.diagnose(missing, jnp.zeros(2), ax.MetaGradient(ax.Inner(20, 2e6)), given)
    assert SMALLER in said and "data" not in said


def test_the_part_that_adapts_and_the_frozen_part_are_named():
    given = ax.FiniteSum(lambda p, c: jnp.sum((p["head"] + p["body"] - c) ** 2) + jnp.sqrt(p["head"][1]), no_tasks)
    params = {"head": jnp.array([1.0, 0.0]), "body": jnp.zeros(2), "other": jnp.ones(2)}
    said = ax.diagnose(given, params, METHOD, tasks())
    assert "holds infinite values in params['head']" in said
    params = {"head": jnp.ones(2), "body": jnp.array([nan, 0.0])}
    inner = ax.Inner(3, 0.1, adapt=lambda path: path == "head")
    said = ax.diagnose(given, params, ax.MetaGradient(inner), tasks())
    assert "the loss at w_0 is NaN, since the parameters hold NaN in params['body']" in said


def noisy(bad):
    """Draws of one number, NaN where `bad(key data)` says so."""

    def draw(task, w, key, size):
        return jnp.where(bad(key), nan, task + jax.random.normal(key, (size, 2)))

    return ax.Resampling(lambda w, x: jnp.mean(jnp.cos(w - x)), no_tasks, draw)


@pytest.mark.long
def test_the_draw_that_is_not_finite_is_named_by_its_step():
    def unlucky(key):
        return jax.random.uniform(jax.random.fold_in(key, 7)) < 0.15

    def uses(own):
        # In the order in which they are drawn, by the definition of the keys: steps 0, Hessian factors 1, target 2.
        step, factor = (jax.vmap(lambda j, use=use: jax.random.fold_in(jax.random.fold_in(own, use), j)) for use in (0, 1))
        drawn = jnp.concatenate([step(jnp.arange(3)), jax.random.fold_in(own, 2)[None], factor(jnp.array([2, 1, 0]))])
        return jax.vmap(unlucky)(drawn)

    keys = jax.random.split(jax.random.key(3), 60)
    bad = np.asarray(jax.vmap(uses)(keys))
    for first in (0, 2, 3, 4, 6):
        i = next(i for i in range(60) if bad[i].any() and np.argmax(bad[i]) == first)
        said = ax.diagnose(noisy(unlucky), jnp.zeros(2), METHOD, jnp.zeros((1, 2)), keys[i : i + 1])
        place = f"the loss at w_{first} is NaN, since the batch drawn for step {first} holds NaN in batch"
        if first == 3:
            place = "the target loss at w_3 is NaN, since the batch drawn for the target holds NaN in batch"
        elif first > 3:
            place = f"product at w_{6 - first} is not finite, though all losses and gradients are, since the batch drawn for"
        assert place in said and "look at what draw makes" in said
    i = int(np.argmin(bad.any(axis=1)))
    assert ax.diagnose(noisy(unlucky), jnp.zeros(2), METHOD, jnp.zeros((1, 2)), keys[i : i + 1]) is None


def test_a_task_of_a_resampling_problem_is_named_before_its_draws():
    said = ax.diagnose(
        noisy(lambda key: False), jnp.zeros(2), METHOD, jnp.full((2, 2), nan), jax.random.split(jax.random.key(0))
    )
    assert "since its data hold NaN in task:" in said and "batch" not in said


def test_losses_at_every_step_are_looked_at_too():
    method = ax.MetaGradient(INNER, multi_step=ax.MultiStep())
    # The path is 0, 0.2, 0.36, 0.488.
    given = problem(target_loss=lambda w, c: squares(w, c) + jnp.sqrt(0.3 - w[0]))
    assert "task 0: the target loss at w_2 or its gradient is not finite" in ax.diagnose(given, jnp.zeros(2), method, tasks())
    assert "task 0: the target loss at w_3 is NaN" in ax.diagnose(given, jnp.zeros(2), METHOD, tasks())
    within = problem(target_loss=lambda w, c: squares(w, c) + jnp.sqrt(0.5 - w[0]))
    assert ax.diagnose(within, jnp.zeros(2), method, tasks()) is None


def test_adapting_one_task_warns_where_it_is_not_finite():
    bad = ax.Task(jnp.array([1.0, nan]))
    with pytest.warns(ax.NotFiniteWarning) as told:
        adapted = ax.adapt(problem(), jnp.zeros(2), bad, INNER)
    assert len(told) == 1 and told[0].filename == __file__ and not adapted.info.finite
    assert str(told[0].message) == (
        "The adapted task is not finite: the loss at w_0 is NaN, since its data hold NaN in task.support: clean them, or leave "
        "such tasks out."
    )
    with pytest.warns(ax.NotFiniteWarning, match="the loss at w_4 is infinite: use a smaller inner step size"):
        ax.adapt(problem(), jnp.zeros(2), ax.Task(jnp.ones(2)), ax.Inner(9, 1e6))
    assert ax.adapt(problem(), jnp.zeros(2), ax.Task(jnp.ones(2)), INNER).info.finite


def test_what_is_traced_says_nothing_and_carries_a_flag():
    bad = tasks(4).support.at[2].set(nan)
    adapted = jax.vmap(lambda support: ax.adapt(problem(), jnp.zeros(2), ax.Task(support), INNER))(bad)
    assert adapted.info.finite.tolist() == [True, True, False, True]
    flag = jax.jit(lambda support: ax.adapt(problem(), jnp.zeros(2), ax.Task(support), INNER).info.finite)
    assert not flag(bad[2]) and flag(bad[0])
    # Under a derivative alone the numbers are known, and so is the cause.
    with pytest.warns(ax.NotFiniteWarning, match="since its data hold NaN in task.support"):
        jax.grad(lambda w: jnp.sum(ax.adapt(problem(), w, ax.Task(bad[2]), INNER).params))(jnp.zeros(2))


def test_a_rule_says_where_nothing_could_be_measured():
    inner, waves = ax.Inner(2, ax.stepsize.Edge()), ax.FiniteSum(lambda w, c: -jnp.sum(jnp.cos(w - c)), no_tasks)
    with pytest.warns(ax.NotFiniteWarning, match="Edge found no finite curvature .* the loss at w_0 is NaN, since its data"):
        ax.stepsize.resolve(inner, waves, jnp.zeros(2), tasks(support=nan))
    with pytest.warns(ax.NotFiniteWarning, match="not measured. In the first of them, the loss at w_0 is NaN"):
        ax.make_step(ax.FiniteSum(waves.loss, lambda key: ax.Task(jnp.full(2, nan), jnp.ones(2))), ax.MetaGradient(inner),
                     optax.sgd(0.1), 3).init(jnp.zeros(2))  # fmt: skip
    # One task in three is passed over: the curvature is that of the others, cos(0) at the end of a path or near it.
    resolved = ax.stepsize.resolve(inner, waves, jnp.ones(2), ax.Task(tasks(3).support.at[1].set(nan)))
    assert float(resolved.stepsize) == pytest.approx(1.0)


def test_wrong_arguments_are_refused():
    with pytest.raises(ax.InputError, match=r"diagnose needs a method or ax\.Inner"):
        ax.diagnose(problem(), jnp.zeros(2), 3, tasks())
    with pytest.raises(ax.InputError, match="pass a key"):
        ax.diagnose(noisy(lambda key: False), jnp.zeros(2), METHOD, jnp.zeros((2, 2)))
    with pytest.raises(ax.InputError, match="one leading axis"):
        ax.diagnose(problem(), jnp.zeros(2), METHOD, ax.Task(jnp.ones((2, 2)), jnp.ones((3, 2))))
