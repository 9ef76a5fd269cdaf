"""All cores are used, runs repeat and single precision is kept, unless somebody has said otherwise."""

import importlib.util
import os

import jax
import pytest

from adaptax.cli import devices


@pytest.fixture
def set_to(monkeypatch):
    """Records the settings that JAX is asked for."""
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: asked.append((name, value)))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return asked


def test_one_device_for_each_core(set_to, monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 7)
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", -1, raising=False)
    devices.use_all_cores()
    assert set_to == [("jax_num_cpu_devices", 7)]
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    devices.use_all_cores()
    assert len(set_to) == 1


def test_what_was_set_before_stays(set_to):
    devices.use_all_cores()
    assert jax.config.jax_num_cpu_devices == 2 and set_to == []


@pytest.mark.parametrize(
    "before, plugin, after",
    [
        ("", None, ""),
        ("", "a plugin", "--xla_gpu_deterministic_ops=true"),
        ("--xla_dump_to=x", "a plugin", "--xla_dump_to=x --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "a plugin", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_runs_repeat_on_a_gpu(monkeypatch, before, plugin, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: plugin)
    devices.repeat_exactly()
    assert os.environ["XLA_FLAGS"] == after


def test_products_keep_their_precision_on_accelerators(set_to, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    devices.keep_precision()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert set_to == []
    devices.keep_precision()
    assert set_to == [("jax_default_matmul_precision", "float32")]
    monkeypatch.setattr(type(jax.config), "jax_default_matmul_precision", "tensorfloat32", raising=False)
    devices.keep_precision()
    assert len(set_to) == 1


def test_cores():
    assert devices.cores() >= 1
