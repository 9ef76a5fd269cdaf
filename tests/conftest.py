"""Fixtures shared by all tests."""

import gc
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import jax
import pytest

# Two host devices, before the backend starts, so that spreading tasks over devices is tested on any machine.
jax.config.update("jax_num_cpu_devices", 2)
# Most programs of the tests take longer to compile than to run: the compiler's older code generator, without optimisations,
# and each program in one piece.
_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".lstrip()
# Tracing makes many small objects, few of them in circles.
gc.set_threshold(200_000, 20, 100)
jax.config.update("jax_disable_most_optimizations", True)
sys.path.insert(0, str(Path(__file__).parent))
# A shell ignores interrupts for what it runs in the background, and tests of interrupts would wait for theirs in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Workers share what they compile, in a folder that goes with the run."""
    if jax.config.jax_compilation_cache_dir is None:
        if not hasattr(config, "workerinput"):
            config.programs = os.environ["ADAPTAX_TEST_PROGRAMS"] = tempfile.mkdtemp(prefix="adaptax-programs-")
        jax.config.update("jax_compilation_cache_dir", os.environ["ADAPTAX_TEST_PROGRAMS"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def pytest_unconfigure(config):
    if (folder := getattr(config, "programs", None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """CI runs the `long` ones with those that guard the mission; cases of theirs that are slow stay so."""
    for item in items:
        item.long = item.get_closest_marker("long") is not None and item.get_closest_marker("slow") is None
        if item.long:
            item.add_marker("slow")
            item.add_marker("mission")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Programs compiled for a file go with it: each takes memory maps, of which a process on Linux may have 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision for one test, in all threads: those of the runtime call functions of the host."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(autouse=True)
def compiler(request):
    """Slow tests, and those marked so, have the compiler's optimisations; for the others, the `long` ones too, see above."""
    node = request.node
    if node.get_closest_marker("optimised") is None and (node.long or node.get_closest_marker("slow") is None):
        yield
        return
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data: $ADAPTAX_DATA, or `shared/data` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ADAPTAX_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}: set ADAPTAX_DATA to the folder that holds it")
    return folder
