"""What cannot be used is refused in one sentence that names the remedy, before anything is computed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import no_tasks

import adaptax as ax
from adaptax.curvature import Annealed, FiniteDifference, FirstOrder, GaussianSmoothing, ZerothOrder
from adaptax.gradients import Smoothed
from adaptax.stepsize import Edge, Guaranteed, Learned, resolve

W = jnp.zeros(2)
KEY = jax.random.key(0)
ran = []


def loss(w, c):
    jax.debug.callback(lambda value: ran.append(float(value)), jnp.sum(w))
    return 0.5 * jnp.sum((w - c) ** 2)


def draw(task, params, key, size):
    return task + jax.random.normal(key, (size, 2))


def fails(*_):
    raise RuntimeError("wrong units")


class Torch:
    """An optimiser of another library."""

    def step(self):
        return None


def by(optimizer):
    return ax.MetaGradient(ax.Inner(2, optimizer=optimizer))(FINITE, W, TASK)


FINITE = ax.FiniteSum(loss, no_tasks)
NOISY = ax.Resampling(loss, no_tasks, draw)
TASK = ax.Task(jnp.ones(2), jnp.ones(2))
TASKS = ax.Task(jnp.ones((3, 2)), jnp.ones((3, 2)))
INNER = ax.Inner(2, 0.1)
PULLED = ax.Inner(2, 0.1, proximal=1.0)
METHOD = ax.MetaGradient(INNER)
LEARNED = ax.MetaGradient(ax.Inner(2, Learned(0.1)))
RULE = ax.MetaGradient(ax.Inner(2, Edge()))


def problem(loss):
    return ax.FiniteSum(loss, no_tasks)


def method(**options):
    return ax.MetaGradient(ax.Inner(2, 0.1), **options)


def adapting(adapt, params=W):
    return ax.adapt(problem(lambda w, c: loss(jax.tree.leaves(w)[0], c)), params, TASK, ax.Inner(2, 0.1, adapt=adapt))


CASES = {
    # sizes and numbers
    "start fails": (lambda: ax.adapt(FINITE, W, TASK, ax.Inner(2, start=fails)), "start=.*wrong units.*take the outer problem"),
    "line search inside": (
        lambda: ax.Inner(2, optimizer=optax.lbfgs()),
        "more than gradients.*cannot be used in the inner loop",
    ),
    "negative steps": (lambda: ax.Inner(-1), "steps=-1.*at least 0"),
    "fractional steps": (lambda: ax.Inner(2.5), "steps=2.5.*whole number"),
    "boolean steps": (lambda: ax.Inner(True), "steps=True.*whole number"),
    "zero step size": (lambda: ax.Inner(2, 0.0), "must be positive and finite"),
    "negative step size": (lambda: ax.Inner(2, -0.1), "must be positive and finite"),
    "nan step size": (lambda: ax.Inner(2, float("nan")), "must be positive and finite"),
    "infinite step size": (lambda: ax.Inner(2, np.inf), "must be positive and finite"),
    "one bad step size": (lambda: ax.Inner(2, [0.1, -0.1]), "must be positive and finite"),
    "step size matrix": (lambda: ax.Inner(2, [[0.1]]), "give a number, N numbers, or Learned"),
    "step size text": (lambda: ax.Inner(2, "edge"), "must be a number, a function of j, a rule or Learned"),
    "step size none": (lambda: ax.Inner(2, None), "must be a number, a function of j, a rule or Learned"),
    "rule class": (lambda: ax.Inner(2, Edge), r"call it, as in Edge\(\)"),
    "negative schedule": (lambda: ax.MetaGradient(ax.Inner(2, lambda j: -1.0))(FINITE, W, TASK), "one positive finite"),
    "schedule of pairs": (lambda: ax.MetaGradient(ax.Inner(2, lambda j: [1, 1]))(FINITE, W, TASK), "one positive"),
    "schedule fails": (lambda: ax.adapt(FINITE, W, TASK, ax.Inner(2, fails)), "schedule fails.*wrong units"),
    "gamma zero": (lambda: Edge(0.0), "gamma=0.0.*positive number"),
    "gamma nan": (lambda: Guaranteed(float("nan")), "gamma=nan.*positive number"),
    "gamma_plus beyond 2": (lambda: Guaranteed(gamma_plus=2.5), "gamma_plus=2.5.*positive number of at most 2"),
    "gamma text": (lambda: Edge("1"), "gamma='1'.*positive number"),
    "rule on no tasks": (lambda: Edge(tasks=0), "tasks=0.*at least 1"),
    "no iterations": (lambda: Edge(iterations=0), "iterations=0.*at least 1"),
    "never refreshed": (lambda: Edge(every=0), "every=0.*at least 1"),
    "decay": (lambda: Edge(decay=1.5), "decay=1.5.*of at least 0 and at most 1"),
    "no samples": (lambda: ax.Samples(curvature=0), "curvature=0.*at least 1"),
    "half a sample": (lambda: ax.Samples(step=0.5), "step=0.5.*whole number"),
    "learned negative": (lambda: Learned(-1.0), "positive and finite"),
    "learned nothing": (lambda: Learned({}), "holds no step size"),
    "learned text": (lambda: Learned("a"), "a number or a pytree of numbers"),
    "learned per": (lambda: Learned(0.1, per="layer"), '"scalar", "leaf" or "parameter"'),
    "proximal negative": (lambda: ax.Inner(2, 0.1, proximal=-1.0), "proximal=-1.0.*at least 0"),
    "proximal nan": (lambda: ax.Inner(2, 0.1, proximal=float("nan")), "proximal=nan.*at least 0"),
    "proximal text": (lambda: ax.Inner(2, 0.1, proximal="1"), "proximal='1'.*finite number"),
    "proximal boolean": (lambda: ax.Inner(2, 0.1, proximal=True), "proximal=True.*finite number"),
    "proximal of leaves": (lambda: ax.Inner(2, 0.1, proximal=jnp.ones(2)), "proximal=.*finite number"),
    "no optimiser": (lambda: ax.Inner(2, optimizer="adam"), "an optax transformation such as.*not str"),
    "optimiser function": (
        lambda: ax.Inner(2, optimizer=optax.adam),
        "an optax transformation such as.*not function adam: call it",
    ),
    "optimiser tuple": (lambda: ax.Inner(2, optimizer=(optax.clip(1.0), optax.sgd(0.1))), "not tuple.*by optax.chain"),
    "optimiser class": (lambda: ax.Inner(2, optimizer=Torch), r"not type Torch: call it, as in Torch\(...\)"),
    "optimiser of another library": (lambda: ax.Inner(2, optimizer=Torch()), r"momentum=0.9\), not Torch\."),
    "MultiSteps": (
        lambda: ax.Inner(2, optimizer=optax.MultiSteps(optax.sgd(0.1), 2)),
        r"pass its .gradient_transformation\(\)",
    ),
    "Adam without eps_root": (lambda: by(optax.adam(0.1)), "optax.scale_by_adam.*no finite derivative.*eps_root=1e-8"),
    "AdamW without eps_root": (lambda: by(optax.adamw(0.1)), "no finite derivative.*eps_root=1e-8"),
    "Adam in training": (
        lambda: ax.train(
            ax.FiniteSum(loss, lambda key: TASK),
            W,
            ax.MetaGradient(ax.Inner(2, optimizer=optax.adam(0.1))),
            steps=1,
            tasks_per_step=2,
        ),
        "no finite derivative.*eps_root=1e-8",
    ),
    "Adam in a derivative of adapt": (
        lambda: jax.grad(lambda w: jnp.sum(ax.adapt(FINITE, w, TASK, ax.Inner(2, optimizer=optax.adam(0.1))).params))(W),
        "no finite derivative.*eps_root=1e-8",
    ),
    "gradients class": (lambda: ax.Inner(2, gradients=Smoothed), r"such as ax.gradients.AutoDiff\(\)"),
    "gradients curvature": (lambda: ax.Inner(2, gradients=FirstOrder()), r"such as ax.gradients.AutoDiff\(\)"),
    "smoothed with a rule": (lambda: ax.Inner(2, Edge(), gradients=Smoothed()), "Edge measures.*give a number"),
    "smoothed with differences": (lambda: ax.Inner(2, Edge(differences=True), gradients=Smoothed()), "give a number"),
    "start number": (lambda: ax.Inner(2, start=1.0), r"start=.*must be a function, not float"),
    "width zero": (lambda: FiniteDifference(delta=0.0), r"FiniteDifference\(delta=0.0\) must be a positive number"),
    "width negative": (lambda: GaussianSmoothing(delta=-1.0), "delta=-1.0.*positive number"),
    "width nan": (lambda: ZerothOrder(delta=float("nan")), "delta=nan.*positive number"),
    "width infinite": (lambda: Smoothed(delta=jnp.inf), "delta=inf.*positive number"),
    "width text": (lambda: Smoothed(delta="auto"), "delta='auto'.*positive number"),
    "width boolean": (lambda: ZerothOrder(delta=True), "delta=True.*positive number"),
    "width of another library": (lambda: FiniteDifference(delta=np.float32(-1)), "delta=.*positive number"),
    "widths": (lambda: GaussianSmoothing(delta=jnp.ones(2)), "delta=.*positive number"),
    "no directions": (lambda: GaussianSmoothing(samples=0), r"GaussianSmoothing\(samples=0\).*at least 1"),
    "half a direction": (lambda: ZerothOrder(samples=2.5), "samples=2.5.*whole number"),
    "boolean directions": (lambda: Smoothed(samples=True), "samples=True.*whole number"),
    "annealed negative": (lambda: Annealed(-1), "first_order_steps=-1.*at least 0"),
    "annealed boolean": (lambda: Annealed(True), "first_order_steps=True.*whole number"),
    "annealed into nothing": (lambda: Annealed(2, then=None), r"then=.*such as ax.curvature.Exact\(\)"),
    "multi-step zero": (lambda: ax.MultiStep(0), "anneal=0.*at least 1"),
    "multi-step fraction": (lambda: ax.MultiStep(0.5), "anneal=0.5.*whole number"),
    "multi-step boolean": (lambda: method(multi_step=True), r"must be ax.MultiStep\(anneal\)"),
    "implicit without a strength": (lambda: ax.Implicit(INNER), r"ax.Inner\(..., proximal=1.0\)"),
    "implicit of strength zero": (lambda: ax.Implicit(ax.Inner(2, 0.1, proximal=0)), r"ax.Inner\(..., proximal=1.0\)"),
    "implicit learned": (lambda: ax.Implicit(ax.Inner(2, Learned(0.1), proximal=1.0)), "no derivative by step sizes"),
    "implicit iterations": (lambda: ax.Implicit(PULLED, iterations=0), "iterations=0.*at least 1"),
    "implicit number": (lambda: ax.Implicit(1.0), r"Implicit needs ax.Inner\(steps, stepsize\) first, not float"),
    "implicit samples": (lambda: ax.Implicit(PULLED, samples=3), r"ax.Samples\("),
    "reptile learned": (lambda: ax.Reptile(ax.Inner(2, Learned(0.1))), "no derivative by step sizes"),
    "reptile number": (lambda: ax.Reptile(1), r"Reptile needs ax.Inner\(steps, stepsize\) first, not int"),
    "backprop of estimates": (lambda: ax.MetaGradient(ax.Inner(2, gradients=Smoothed()), mode="backprop"), "backprop"),
    "backprop annealed": (lambda: method(curvature=Annealed(2), mode="backprop"), "backprop"),
    # names of options
    "mode": (lambda: method(mode="forward"), '"auto", "recursion" or "backprop"'),
    "store": (lambda: method(store="none"), '"iterates".*"sqrt"'),
    "store of adapt": (lambda: ax.adapt(FINITE, W, TASK, INNER, store="none"), '"iterates".*"sqrt"'),
    "curvature class": (lambda: method(curvature=ax.curvature.Exact), r"such as ax.curvature.Exact\(\)"),
    "backprop first order": (lambda: method(curvature=ax.curvature.FirstOrder(), mode="backprop"), "backprop"),
    "backprop independent": (lambda: method(mode="backprop")(NOISY, W, W, KEY), "independent_curvature=False"),
    "samples number": (lambda: method(samples=5), r"ax.Samples\("),
    "samples of adapt": (lambda: ax.adapt(NOISY, W, W, INNER, KEY, samples=5), r"ax.Samples\("),
    "inner number": (lambda: ax.MetaGradient(5), r"ax.Inner\("),
    "inner of adapt": (lambda: ax.adapt(FINITE, W, TASK, 5), r"ax.Inner\("),
    "loss number": (lambda: problem(1.0), "loss must be a function, not float"),
    "draw none": (lambda: ax.Resampling(loss, no_tasks, None), "draw must be a function"),
    "problem function": (lambda: METHOD(loss, W, TASK), "ax.FiniteSum, ax.Resampling or ax.Sequential, not function"),
    "problem of adapt": (lambda: ax.adapt(loss, W, TASK, INNER), "ax.FiniteSum, ax.Resampling or ax.Sequential, not function"),
    # losses and shapes
    "vector loss": (lambda: METHOD(problem(lambda w, c: w - c), W, TASK), r"returned float32\[2\]: take the mean"),
    "integer loss": (lambda: METHOD(problem(lambda w, c: jnp.array(1)), W, TASK), "one floating-point number"),
    "loss of nothing": (lambda: METHOD(problem(lambda w, c: None), W, TASK), "returned NoneType"),
    "loss fails": (lambda: METHOD(problem(fails), W, TASK), r"loss.*fails on the support set \(wrong units\)"),
    "wrong shape": (lambda: METHOD(FINITE, W, ax.Task(jnp.ones(3), W)), r"support set.*float32\[3\].*fit each other"),
    "wrong target": (lambda: METHOD(FINITE, W, ax.Task(W, jnp.ones(3))), "target_loss.*fails on the target set"),
    "wrong shape of adapt": (lambda: ax.adapt(FINITE, W, ax.Task(jnp.ones(3)), INNER), "fails on the support set"),
    "wrong shape in batch": (lambda: METHOD.batch(FINITE, jnp.zeros(3), TASKS), "fails on the support set"),
    "wrong shape in resolve": (
        lambda: resolve(RULE.inner, FINITE, jnp.zeros(3), TASKS),
        "fails on the support set",
    ),
    "draw fails": (lambda: METHOD(ax.Resampling(loss, no_tasks, fails), W, W, KEY), r"draw.*fails \(wrong units\)"),
    "empty support": (lambda: METHOD(FINITE, W, ax.Task(jnp.ones((0, 2)), W)), "support set is empty.*at least one"),
    "no support": (lambda: ax.adapt(FINITE, W, ax.Task(None), INNER), "support set is empty"),
    "empty target": (lambda: METHOD(FINITE, W, ax.Task(W, jnp.ones((0, 2)))), "target set is empty"),
    "empty draw": (lambda: METHOD(ax.Resampling(loss, no_tasks, lambda *_: ()), W, W, KEY), "support set is empty"),
    "no target": (lambda: METHOD(FINITE, W, ax.Task(W)), r"no target set.*ax.Task\(support, target\)"),
    "no target in batch": (lambda: METHOD.batch(FINITE, W, ax.Task(TASKS.support)), "no target set"),
    "not a task": (lambda: METHOD(FINITE, W, W), r"needs ax.Task\(support, target\), not float32\[2\]"),
    "no parameters": (lambda: adapting(None, jnp.zeros(2, int)), "no floating-point leaf"),
    # batches and keys
    "leading axes": (lambda: METHOD.batch(FINITE, W, ax.Task(TASKS.support, jnp.ones((4, 2)))), "found 3, 4"),
    "leading axes in resolve": (lambda: resolve(RULE.inner, FINITE, W, ax.Task(W, jnp.ones(3))), "found 2, 3"),
    "no leading axis": (lambda: METHOD.batch(FINITE, W, ax.Task(1.0, 1.0)), "one leading axis.*found none"),
    "no tasks": (lambda: METHOD.batch(FINITE, W, ax.Task(jnp.ones((0, 2)), jnp.ones((0, 2)))), "found 0"),
    "fewer keys": (lambda: METHOD.batch(NOISY, W, TASKS.support, jax.random.split(KEY, 2)), "found 2, 3"),
    "one key for a batch": (lambda: METHOD.batch(NOISY, W, TASKS.support, KEY), "found 3, none"),
    "keys for one task": (lambda: METHOD(NOISY, W, W, jax.random.split(KEY, 2)), "one key such as"),
    "seed for a key": (lambda: ax.adapt(NOISY, W, W, INNER, 0), r"one key such as jax.random.key\(0\), not int"),
    "no key": (lambda: METHOD(NOISY, W, W), r"pass a key, such as jax.random.key\(0\)"),
    "no key for directions": (lambda: method(curvature=ZerothOrder())(FINITE, W, TASK), "draws directions: pass a key"),
    "no keys for directions": (lambda: method(curvature=ZerothOrder()).batch(FINITE, W, TASKS), "directions: pass a key"),
    "no key for gradients": (lambda: ax.Reptile(ax.Inner(2, gradients=Smoothed()))(FINITE, W, TASK), "directions: pass a key"),
    "no key for gradients of adapt": (lambda: ax.adapt(FINITE, W, TASK, ax.Inner(2, gradients=Smoothed())), "pass a key"),
    "no keys": (lambda: METHOD.batch(NOISY, W, TASKS.support), "pass a key"),
    "no key of adapt": (lambda: ax.adapt(NOISY, W, W, INNER), "pass a key"),
    "no keys of resolve": (lambda: resolve(RULE.inner, NOISY, W, TASKS.support), "pass a key"),
    "in flight zero": (lambda: METHOD.batch(FINITE, W, TASKS, in_flight=0), "in_flight=0.*at least 1"),
    "in flight text": (lambda: METHOD.batch(FINITE, W, TASKS, in_flight="all"), "in_flight='all'.*whole number"),
    # what adapts, and learned step sizes
    "no gradient": (
        lambda: ax.adapt(
            ax.FiniteSum(lambda w, b: jnp.sum(jax.lax.while_loop(lambda x: x[0] > 1, lambda x: x / 2, w)), lambda key: None),
            W,
            ax.Task(W),
            ax.Inner(1, 0.1),
        ),
        r"jax.lax.while_loop\), which has no gradient: use jax.lax.scan",
    ),
    "nothing adapts": (lambda: adapting(lambda path: False), "selects no floating-point leaf"),
    "nothing in the prefix": (lambda: adapting(False), "selects no floating-point leaf"),
    "wrong structure": (lambda: adapting({"head": True}, {"body": W}), "prefix of the parameters' structure"),
    "adapt number": (lambda: ax.Inner(2, 0.1, adapt=1), "True or False at every leaf"),
    "learned without Meta": (lambda: LEARNED(FINITE, W, TASK), r"need ax.Meta\(params"),
    "learned without Meta in adapt": (lambda: ax.adapt(FINITE, W, TASK, LEARNED.inner), r"need ax.Meta\(params"),
    "Meta without learned": (lambda: METHOD(FINITE, ax.Meta(W, 0.1), TASK), "use ax.stepsize.Learned"),
    "Meta with a rule": (lambda: RULE.batch(FINITE, ax.Meta(W, 0.1), TASKS), "use ax.stepsize.Learned"),
    "Meta of another structure": (lambda: LEARNED(FINITE, ax.Meta(W, {"w": 0.1}), TASK), "do not fit the parameters"),
    "Meta of another shape": (lambda: LEARNED(FINITE, ax.Meta(W, jnp.ones(3)), TASK), "do not fit the parameters"),
    "Meta without steps": (
        lambda: ax.MetaGradient(ax.Inner(2, Learned(0.1, per_step=True)))(FINITE, ax.Meta(W, 0.1), TASK),
        "do not fit the parameters.*axis over the steps",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_sentence_before_any_computation(name):
    call, match = CASES[name]
    ran.clear()
    with pytest.raises(ax.InputError, match=match) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    # One sentence: a full stop at the end, and none before it that is followed by a new sentence.
    assert message.endswith(".")
    assert not re.search(r"[.!?] [A-Z]", message)
    jax.effects_barrier()
    assert ran == []


def test_what_is_right_does_run():
    ran.clear()
    METHOD(FINITE, W, TASK)
    jax.effects_barrier()
    assert len(ran) >= 3  # two steps and the target loss


@pytest.mark.parametrize("in_flight", [np.int64(2), jnp.array(2)])
def test_whole_numbers_of_other_libraries_are_taken(in_flight):
    assert METHOD.batch(FINITE, W, TASKS, in_flight=in_flight)[0] == METHOD.batch(FINITE, W, TASKS, in_flight=2)[0]
    assert ax.Inner(np.int32(3)).steps == 3


def test_keys_of_the_old_kind_are_taken():
    assert jnp.isfinite(METHOD(NOISY, W, W, jax.random.PRNGKey(0))[0])
    assert jnp.isfinite(METHOD.batch(NOISY, W, TASKS.support, jax.random.split(jax.random.PRNGKey(0), 3))[0])
