"""Bias and variance of the estimators of Hessian-vector products, against exact products."""

from adaptax.reproduce.estimators.experiment import hessian_estimators

__all__ = ["hessian_estimators"]
