"""The settings of the navigation experiment, which its runs and its page share."""

from typing import Any, NamedTuple

import jax
import optax

import adaptax as ax
from adaptax.reproduce.meta_training import initial_key
from adaptax.reproduce.strategies import EXACT, FINITE_DIFFERENCE, FIRST_ORDER, GGS, STEIN

ALPHA, DISCOUNT = 0.1, 0.95
# Goals are uniform on a square with this half-width (`ax.tasks.rl.navigation`).
GOAL_BOX = 0.5
# The initial standard deviation of the policy.
STD = 1.0
# The trust region of the outer step.
TRUST = {"radius": 1e-2, "damping": 1e-5, "backtracks": 15, "shrink": 0.8}
ADAM_STEP = 1e-3
# Numbers of inner steps after which a policy is judged: along training, and at the end.
TESTED_IN_TRAINING, TESTED = (0, 1), (0, 1, 2, 3, 5)
FIXED_STEPS, EDGE_STEPS, GUARANTEED_STEPS = (2, 3, 5), (1, 2, 3, 5), (1, 2, 3, 5)
# Every shifted parameter draws episodes anew, so that the width must lie far above their noise and directions must be few.
DIRECTIONS, VALUES, WIDTH = 2, 10, 0.05
# The goals whose trajectories are drawn.
GOALS = ((0.4, 0.4), (-0.4, 0.3), (-0.2, -0.45), (0.45, -0.15))

# Names of rules and of cases in the CSV.
FIXED, EDGE, GUARANTEED = f"α = {ALPHA:g}", "Edge", "Guaranteed"
FROM_RETURNS = "zeroth order, from returns alone"
PRETRAINED, UNTRAINED = "trained without adaptation", "untrained"
REUSED = "exact, the step's samples reused"
LOADED, PLAIN = "exact, LoadedDiCE", "exact, LVC, discount weighting, not standardised"


class Setting(NamedTuple):
    """A size of the experiment.

    Arguments:
        name: the entry of the column "setting" in the CSV.
        horizon, hidden: H, and the widths of the policy's hidden layers.
        sizes: with how many trajectories a policy adapts when it is judged at the end.
        drawn: whether trajectories are kept for a figure.
        goals: the number of held-out goals.
        tasks: goals a meta-step.
        trajectories: trajectories at every use in training.
        fisher: the number of tasks on which the trust region's F is formed.
        values: directions of the zeroth-order forms.
        parts: the number of parts of a curve along training.
    """

    name: str
    horizon: int
    hidden: tuple[int, ...]
    sizes: tuple[int, ...] = (20,)
    drawn: bool = False
    goals: int = 40
    tasks: int = 20
    trajectories: int = 20
    fisher: int = 2
    values: int = VALUES
    parts: int = 5

    @property
    def network(self) -> tuple[int, ...]:
        """The widths of all layers of the policy's network."""
        return (2, *self.hidden, 2)

    @property
    def samples(self) -> ax.Samples:
        """The numbers of trajectories for steps, Hessian factors and target."""
        return ax.Samples(self.trajectories, self.trajectories, self.trajectories)


PAPER = Setting("paper", 100, (100, 100), sizes=(20, 40), drawn=True)
SMALL = Setting("small", 25, (32, 32))


class Case(NamedTuple):
    """One way of training.

    Arguments:
        name: the entry of the column "method" in the CSV.
        inner_steps, rule: N, and the rule of the inner step size.
        method: the meta-gradient, or None where nothing is trained.
        optimizer: the outer optimiser (None: the trust region).
        loss: the surrogate (None: `surrogate()`).
    """

    name: str
    inner_steps: int
    rule: str
    method: ax.MetaGradient | None
    optimizer: optax.GradientTransformation | None = None
    loss: Any = None


def surrogate(kind: Any = ax.tasks.rl.LVC, *, published: bool = True) -> Any:
    """The loss, a mean over steps; as in published code advantages are standardised and not weighted by the discount."""
    baseline = ax.tasks.rl.LinearBaseline()
    return kind(DISCOUNT, baseline=baseline, per_step=True, normalise=published, discount_weighting=not published)


def policy(setting: Setting, seed: int) -> ax.tasks.rl.GaussianPolicy:
    """The initial policy of a seed, with weights N(0, 2/(inputs + outputs)) (Glorot and Bengio, 2010).

    With larger weights the mean action grows with the position, and the point runs away before anything is learned.
    """
    network = ax.models.mlp(setting.network, key=initial_key(seed), activation=jax.nn.relu, init="glorot")
    return ax.tasks.rl.GaussianPolicy(network, 2, std=STD)


def trust_region(setting: Setting) -> ax.outer.TrustRegion:
    """The outer step of all cases without an optimiser of their own."""
    return ax.outer.TrustRegion(ax.tasks.rl.mean_kl, tasks=setting.fisher, **TRUST)


def paper_cases(setting: Setting = PAPER) -> list[Case]:
    """The cases of the paper's setting."""
    return [
        Case(EXACT, 1, FIXED, _method(setting)),
        Case(FIRST_ORDER, 1, FIXED, _method(setting, curvature=ax.curvature.FirstOrder())),
        Case(PRETRAINED, 0, FIXED, _method(setting, 0)),
        Case(UNTRAINED, 0, FIXED, None),
    ]


def small_cases(setting: Setting = SMALL) -> list[Case]:
    """The cases of the small setting."""
    c = ax.curvature
    values = c.ZerothOrder(samples=setting.values, delta=WIDTH)
    smoothed = ax.gradients.Smoothed(samples=setting.values, delta=WIDTH, antithetic=True)
    directions = c.GaussianSmoothing(samples=DIRECTIONS, delta=WIDTH)  # type: ignore[call-arg]
    from_returns = _method(setting, curvature=values, gradients=smoothed)
    return [
        *paper_cases(setting),
        Case(REUSED, 1, FIXED, _method(setting, independent_curvature=False)),
        Case(LOADED, 1, FIXED, _method(setting), loss=surrogate(ax.tasks.rl.LoadedDiCE)),
        Case(PLAIN, 1, FIXED, _method(setting), loss=surrogate(published=False)),
        Case(FINITE_DIFFERENCE, 1, FIXED, _method(setting, curvature=c.FiniteDifference(delta=WIDTH))),
        Case(GGS, 1, FIXED, _method(setting, curvature=directions)),
        Case(STEIN, 1, FIXED, _method(setting, curvature=values)),
        # The trust region holds batches fixed, but these gradients draw at every shifted parameter, so the optimiser is Adam.
        Case(FROM_RETURNS, 1, FIXED, from_returns, optax.adam(ADAM_STEP)),
        *(Case(EXACT, n, FIXED, _method(setting, n)) for n in FIXED_STEPS),
        *(Case(EXACT, n, EDGE, _method(setting, n, ax.stepsize.Edge())) for n in EDGE_STEPS),
        *(Case(EXACT, n, GUARANTEED, _method(setting, n, ax.stepsize.Guaranteed())) for n in GUARANTEED_STEPS),
    ]


def _method(
    setting: Setting, steps: int = 1, alpha: Any = ALPHA, curvature: Any = None, gradients: Any = None, **options: Any
) -> ax.MetaGradient:
    """A meta-gradient with the setting's number of trajectories at every use."""
    inner = ax.Inner(steps, alpha) if gradients is None else ax.Inner(steps, alpha, gradients=gradients)
    return ax.MetaGradient(inner, curvature or ax.curvature.Exact(), samples=setting.samples, **options)
