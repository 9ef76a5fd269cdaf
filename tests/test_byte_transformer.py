"""The transformer of the benchmarks on texts sees no letter that it predicts, and no text has two uses."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def text(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    yield importlib.import_module("byte_transformer")
    sys.modules.pop("byte_transformer")


def test_no_letter_is_predicted_from_itself_or_later_ones(text):
    w = text.initial(jax.random.key(0), width=16, layers=2)
    w["out"] = jax.random.normal(jax.random.key(1), w["out"].shape)
    letters = jax.random.randint(jax.random.key(2), (1, 12), 0, text.LETTERS)
    changed = text.logits(w, letters.at[0, 7].add(1)) - text.logits(w, letters)
    moved = jnp.abs(changed).max((0, 2)) > 1e-4
    assert not moved[:7].any() and moved[7:].all()


def test_a_random_network_knows_nothing(text):
    w = text.initial(jax.random.key(0), width=16, layers=1)
    assert float(text.loss(w, np.arange(26).reshape(2, 13))) == pytest.approx(np.log(text.LETTERS), rel=1e-5)


def test_the_parts_share_no_text(text):
    texts = {str(i): np.full(size, i % 100, np.uint8) for i, size in enumerate([text.LONG] * 60 + [text.LEAST] * 9)}
    parts = text.parts(texts)
    assert [len(part) for part in parts] == [text.HELD_OUT, text.VALIDATION, 15, 9]
    assert len({id(one) for part in parts for one in part}) == 69


def test_stretches_follow_one_another_within_a_text(text):
    texts = [np.arange(600) % 120, np.arange(700) % 120]
    found = np.asarray(text.sampler(texts, 4)(jax.random.key(0)))
    assert found.shape == (4, text.LENGTH + 1) and (found[1:, 0] == found[:-1, -1]).all()
    assert (np.diff(np.concatenate([found[0], *found[1:, 1:]])) % 120 == 1).all()


def test_the_search_ends_where_neither_neighbour_is_better(text):
    best, tried = text.climb(lambda a: abs(np.log2(a) - 3) if a < 100 else float("nan"), 1.0)
    assert best == 8.0 and sorted(tried) == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert text.climb(lambda a: float("nan"), 1.0)[0] == 1.0
