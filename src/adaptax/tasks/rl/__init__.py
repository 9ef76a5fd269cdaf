"""Meta-reinforcement learning: environments, surrogate losses whose derivatives are right, and exactly solved processes."""

from adaptax.tasks.rl.advantages import LinearBaseline, advantages, returns_to_go
from adaptax.tasks.rl.environment import Environment, Rollouts, Trajectories, mean_return, problem, rollout
from adaptax.tasks.rl.environment_steps import environment_steps
from adaptax.tasks.rl.gymnasium import GymnasiumEnvironment, gymnasium_family
from adaptax.tasks.rl.locomotion import Ant, HalfCheetah, Locomotion, ant, cheetah
from adaptax.tasks.rl.navigation import Navigation, navigation
from adaptax.tasks.rl.network_baseline import NetworkBaseline
from adaptax.tasks.rl.policies import CategoricalPolicy, GaussianPolicy, SoftmaxPolicy, mean_kl
from adaptax.tasks.rl.surrogates import LVC, Clipped, DiCE, LikelihoodRatio, LoadedDiCE
from adaptax.tasks.rl.tabular import MDP, Tabular, TabularEnvironment, tabular
from adaptax.tasks.rl.video import video

__all__ = [
    "LVC",
    "MDP",
    "Ant",
    "CategoricalPolicy",
    "Clipped",
    "DiCE",
    "Environment",
    "GaussianPolicy",
    "GymnasiumEnvironment",
    "HalfCheetah",
    "LikelihoodRatio",
    "LinearBaseline",
    "LoadedDiCE",
    "Locomotion",
    "Navigation",
    "NetworkBaseline",
    "Rollouts",
    "SoftmaxPolicy",
    "Tabular",
    "TabularEnvironment",
    "Trajectories",
    "advantages",
    "ant",
    "cheetah",
    "environment_steps",
    "gymnasium_family",
    "mean_kl",
    "mean_return",
    "navigation",
    "problem",
    "returns_to_go",
    "rollout",
    "tabular",
    "video",
]
