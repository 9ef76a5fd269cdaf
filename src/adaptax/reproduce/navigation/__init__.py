"""Planar navigation by reinforcement learning: one step of adaptation, numbers of steps, rules, losses and estimators."""

from adaptax.reproduce.navigation.experiment import navigation

__all__ = ["navigation"]
