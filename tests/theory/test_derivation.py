"""The theory's functions agree with their independent derivation, with definitions and with limits."""

import importlib
import types

import pytest
from theory.definitions import CHECKS
from theory.mutants import MODULES
from theory.structure import expected


@pytest.fixture(scope="module")
def library():
    """All names of the theory's modules, the internal ones too."""
    modules = [importlib.import_module(f"adaptax.theory.{name}") for name in MODULES]
    return types.SimpleNamespace(**{k: v for module in modules for k, v in vars(module).items() if not k.startswith("__")})


@pytest.mark.parametrize("check", CHECKS)
def test_theory_is(check, library):
    CHECKS[check](library)


def test_the_derivation_is_of_few_and_of_many_steps():
    assert {N for N, _, _ in expected()} == {1, 2, 3, 4, 7, 64}
    for _, _, values in expected():
        assert values["q"] < 2 and values["finite_sum_kappa"] > 0 and values["resampling_kappa"] > 0
