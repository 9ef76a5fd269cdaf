"""What may import what, how light the first import is, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "adaptax"
FILES = sorted(SOURCE.rglob("*.py"))
CORE = {
    "_checks", "_tree", "problem", "errors", "objective", "recursion", "batching", "inner", "adaptation", "metagrad",
    "stepsize", "curvature", "gradients", "cost", "smoothing", "update", "method", "implicit", "reptile", "unchanging",
}  # fmt: skip
OUTSIDE_THE_CORE = {"training", "tasks", "models", "cli", "report", "theory", "measure", "reproduce"}


def name_of(path):
    """The module's name within adaptax, as a tuple: () for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path):
    """Absolute names of all modules that a file imports, at any depth, except for the type checker only."""
    tree = ast.parse(path.read_text())
    typed = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for child in ast.walk(statement)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inner_imports(path):
    """First component within adaptax of what a file imports from it ("adaptax" stands for the package's own names)."""
    parts = [name.split(".") for name in imports(path)]
    return {(p[1] if len(p) > 1 else "adaptax") for p in parts if p[0] == "adaptax"}


def files_of(*packages):
    return [path for path in FILES if name_of(path)[:1] and name_of(path)[0] in packages]


def test_the_parser_sees_imports():
    assert {"numpy", "jax.core.Tracer", "adaptax.errors.InputError"} <= imports(SOURCE / "inner.py")
    assert {"batching", "stepsize", "errors"} <= inner_imports(SOURCE / "inner.py")


def test_the_core_stands_on_theory_alone():
    assert {name_of(path)[0] for path in files_of(*CORE)} == CORE
    for path in files_of(*CORE):
        assert not inner_imports(path) - CORE - {"theory"}, path


def test_theory_imports_no_jax():
    for path in files_of("theory"):
        assert not {name.split(".")[0] for name in imports(path)} & {"jax", "equinox", "optax", "jaxtyping"}, path
        assert inner_imports(path) <= {"theory", "errors", "_checks"}, path


def test_tasks_import_problems_theory_and_models_only():
    assert files_of("tasks")
    for path in files_of("tasks"):
        assert inner_imports(path) <= {"tasks", "problem", "errors", "_tree", "_checks", "theory", "models"}, path


def test_models_know_nothing_of_meta_learning():
    for path in files_of("models"):
        assert inner_imports(path) <= {"models", "errors", "_tree", "_checks"}, path


def test_nothing_imports_the_command_line():
    for path in FILES:
        if name_of(path)[:1] != ("cli",):
            assert "cli" not in inner_imports(path), path


def test_only_the_command_line_runs_experiments():
    for path in FILES:
        if name_of(path)[:1] not in (("reproduce",), ("cli",)):
            assert "reproduce" not in inner_imports(path), path


def test_reports_draw_what_is_there():
    for path in files_of("report"):
        assert inner_imports(path) <= {"report", "errors", "_checks"}, path


def test_every_module_has_its_place():
    known = CORE | OUTSIDE_THE_CORE | {"__main__"}
    assert {name_of(path)[0] for path in FILES if name_of(path)} <= known


@pytest.mark.parametrize("module", ["adaptax", "adaptax.cli.main"])
def test_first_imports_are_light(module):
    if module.endswith("cli.main") and not (SOURCE / "cli" / "main.py").exists():
        pytest.skip("there is no command line in this checkout: install the whole package")
    heavy = "{'jax', 'jaxlib', 'equinox', 'optax', 'matplotlib', 'orbax', 'scipy'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert done.stdout.strip() == "[]"


def test_names_of_the_package_exist():
    code = "import adaptax as ax; print([name for name in ax.__all__ if not hasattr(ax, name)], callable(ax.train))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert done.stdout.strip() == "[] True"


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks"])
def test_no_file_is_long(folder):
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {str(path): n for path, n in lengths.items() if n > 400} == {}
