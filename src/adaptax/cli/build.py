"""From a configuration to the problem, the parameters, the method and the optimiser that it describes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import optax

import adaptax as ax
from adaptax.cli import environments
from adaptax.cli.environment_configs import Reinforcement
from adaptax.cli.pictures import load
from adaptax.cli.settings import canonical_stepsize
from adaptax.cli.training_configs import Images, Matrix, Sinusoid, Training
from adaptax.training.step import Step

# Meta-steps fold small numbers into the seed's key; the initial parameters come from one that no run reaches.
_INITIAL = 2**32 - 1
_CURVATURES = {
    "exact": ax.curvature.Exact,
    "first-order": ax.curvature.FirstOrder,
    "finite-difference": ax.curvature.FiniteDifference,
    "ggs": ax.curvature.GaussianSmoothing,
    "zeroth-order": ax.curvature.ZerothOrder,
}


@dataclass(frozen=True)
class Built:
    """What a configuration stands for.

    Arguments:
        problem, params, method, optimizer: as `ax.train` takes them.
        held_out: the problem whose tasks the result is judged on.
        judged_on: what these tasks are, in words.
        left_out: alphabets or classes of the test data that were left out because they are training data too.
        environment_steps: of one meta-step, in reinforcement learning.
        calibration: training tasks, whose statistics of batches for each inner step are judged with too.
        tuned: the parameters and the inner loop that a state is judged with (default: its own).
        validation: the problem whose tasks choose the best state, if there is one.
    """

    problem: ax.FiniteSum | ax.Resampling
    params: Any
    method: ax.MetaGradient
    optimizer: optax.GradientTransformation
    held_out: ax.FiniteSum | ax.Resampling
    judged_on: str
    left_out: tuple[str, ...] = ()
    environment_steps: int | None = None
    validation: ax.FiniteSum | None = None
    calibration: ax.FiniteSum | None = None
    tuned: Callable[[Any], tuple[Any, ax.Inner]] | None = None

    def step(self, tasks_per_step: int) -> Step:
        """The meta-step, whose `init` says what the state looks like."""
        return ax.make_step(self.problem, self.method, self.optimizer, tasks_per_step)


def build(config: Training) -> Built:
    """Build everything that is trained with and judged on; `InputError` if something cannot be."""
    inner = _inner(config)
    method = ax.MetaGradient(inner, _CURVATURES[config.curvature]())
    key = initial_key(config.seed)
    if isinstance(config, Reinforcement):
        return _reinforcement(config, method, key)
    falls = isinstance(config, Images) and config.schedule == "cosine"
    optimizer = _optimizer(config.optimizer, config.learning_rate, config.steps if falls else None)
    if isinstance(config, Images):
        return _images(config, method, optimizer, key)
    if isinstance(config, Sinusoid):
        problem = ax.tasks.sinusoid(config.shots, config.queries)
        params = ax.models.mlp((1, *config.hidden, 1), key=key)
        return Built(problem, params, method, optimizer, problem, "new sinusoids")
    assert isinstance(config, Matrix)
    problem = ax.tasks.factorisation(config.dim, config.sigma)
    params = ax.tasks.factorisation_init(key, config.dim)
    return Built(problem, params, method, optimizer, problem, "new matrices")


def _inner(config: Training) -> ax.Inner:
    adapt = start = None
    if isinstance(config, Images):
        adapt = _of_head if config.adapt == "head" else None
        start = ax.models.shared_head(config.ways) if config.head == "shared" else None
    return ax.Inner(config.inner_steps, parse_stepsize(config.stepsize), adapt, start=start)


def _of_head(path: str) -> bool:
    return path.startswith("head")


@functools.cache
def _optimizer(name: str, learning_rate: float, steps: int | None) -> optax.GradientTransformation:
    # One object for the same options, so that runs in one process share their compiled programs.
    rate = learning_rate if steps is None else optax.cosine_decay_schedule(learning_rate, steps)
    return {"adam": optax.adam, "sgd": optax.sgd}[name](rate)


def initial_key(seed: int) -> Any:
    """The key of the initial parameters."""
    return jax.random.fold_in(jax.random.key(seed), _INITIAL)


def parse_stepsize(text: str) -> Any:
    """A number, or the rule of that name."""
    rule, _, gamma = canonical_stepsize(text).partition(":")
    rules = {"edge": ax.stepsize.Edge, "guaranteed": ax.stepsize.Guaranteed}
    if rule not in rules:
        return float(rule)
    return rules[rule](float(gamma)) if gamma else rules[rule]()


def _reinforcement(config: Reinforcement, method: ax.MetaGradient, key: Any) -> Built:
    n = config.trajectories
    samples, independent = ax.Samples(n, n, n), config.independent_curvature
    method = ax.MetaGradient(method.inner, method.curvature, samples=samples, independent_curvature=independent)
    problem = environments.problem_of(config)
    return Built(
        problem, environments.policy_of(config, problem, key), method,
        environments.outer(config.optimizer, config.learning_rate, config.radius), problem,
        f"new goals, {n} episodes for each inner step",
        environment_steps=environments.environment_steps(config, method, problem),
    )  # fmt: skip


def _images(config: Images, method: ax.MetaGradient, optimizer: optax.GradientTransformation, key: Any) -> Built:
    assert config.data is not None  # settings.check
    distortion = ax.tasks.Affine(config.angle, config.scale, config.shift, config.shear) if config.distort else None
    train, validation, test, left_out = load(config)
    sizes = (config.ways, config.shots, config.queries)
    problem = ax.tasks.few_shot(train, *sizes, rotations=config.rotations, distortion=distortion, flips=config.flips)
    kind = "characters" if isinstance(train, ax.tasks.Characters) else "classes"
    if test is train:
        judged_on = f"the training {kind}, for want of --test-data"
    elif isinstance(test, ax.tasks.Characters):
        judged_on = f"{len(test.names)} characters of {', '.join(test.alphabets)}"
    else:
        judged_on = f"{len(test)} classes with {sum(test.counts):,} images"
    # As they were drawn: neither turned nor distorted.
    held_out = ax.tasks.few_shot(test, *sizes, rotations=False)
    chosen_by = None if validation is None else ax.tasks.few_shot(validation, *sizes, rotations=False)
    if config.method == "prototypical":
        of = ax.tasks.prototypical
        problem, held_out, chosen_by = of(problem), of(held_out), None if chosen_by is None else of(chosen_by)
    elif config.norm == "batch":
        held_out = ax.tasks.both_accuracies(held_out)
    calibration = problem if config.norm == "batch" and config.method != "prototypical" else None
    if config.method == "pretrain":
        built = _pretrained(config, ax.tasks.joint_classification(problem), optimizer, key, held_out, judged_on, left_out)
    else:
        params = _network(config, 1 if config.head == "shared" else config.ways, held_out, key)
        built = Built(problem, params, method, optimizer, held_out, judged_on, left_out, validation=chosen_by)
    return replace(built, calibration=calibration)


def _network(config: Images, outputs: int, problem: ax.FiniteSum, key: Any) -> Any:
    """The network that is asked for, of the images' size."""
    make = {"conv4": ax.models.conv4, "resnet12": ax.models.resnet12}[config.model]
    images = jax.eval_shape(problem.sample_task, jax.random.key(0)).support[0]
    return make(outputs, key=key, channels=config.channels, image=images.shape[1:], norm=config.norm)


def _pretrained(config, problem, optimizer, key, held_out, judged_on, left_out) -> Built:
    """A classifier of all training classes, which is judged with a new head that all classes share at first."""
    params = _network(config, problem.loss.ways, held_out, key)
    inner = _inner(config)
    tuned = lambda state: (ax.models.fresh_head(state.params), inner)  # noqa: E731
    method = ax.MetaGradient(ax.Inner(0, 1.0))
    return Built(problem, params, method, optimizer, held_out, judged_on, left_out, tuned=tuned)
