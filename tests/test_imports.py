"""The import graph has floors and no circles; the first import is light; no file is long."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "adaptax"
FILES = sorted(SOURCE.rglob("*.py"))
# The house from the ground up. A module may import the floors below its own, and modules of its own floor.
FLOORS = [
    "errors", "_checks", "_signals", "theory", "_tree", "_intake", "_drawn_once", "_archive", "problem", "sequential", "_keys",
    "_processes", "_devices", "_cost", "_smoothing", "_lanczos",
    "_second_order", "gradients", "curvature", "_precision", "stepsize.rates", "stepsize.learned", "stepsize.rules",
    "stepsize.auto", "_update", "_optimizers", "_schedule", "_microbatches", "_recursion", "_small_products",
    "_hoist", "_batching", "inner", "_parameters",
    "stepsize.walk", "inner_path", "_problem_checks", "_finite",
    "stepsize.measurement", "stepsize.guard", "adaptation", "methods", "diagnosis",
    "outer", "measure", "models", "tasks", "training", "tables", "learner",
    "report",
    # Tables of names for users: their names are imported when first used.
    "stepsize", "",
    "reproduce", "cli",
]  # fmt: skip
# The floors that these rooms may import, where it is less than all below.
ONLY = {
    "models": {"errors", "_checks", "_tree"},
    "tasks": {"errors", "_checks", "_tree", "problem", "theory", "models"},
    "report": {"errors", "_checks"},
}


def name_of(path):
    """The module's name within adaptax, with dots: "" for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path):
    """Absolute names of all modules and objects that a file imports, at any depth, except for the type checker only."""
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
    """Names within adaptax of the modules that a file imports."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "adaptax":
            prefixes = (".".join(parts[1:n]) for n in range(len(parts), 0, -1))
            found.add(next(prefix for prefix in prefixes if prefix in MODULES))
    return found - {name_of(path)}


def floor_of(name):
    """The floor on which a module lies: the longest of the floors' names that begins its own."""
    own = [floor for floor in FLOORS if name == floor or (floor and floor != "stepsize" and name.startswith(floor + "."))]
    assert own, f"{name} lies on no floor: give it one in FLOORS"
    return max(own, key=len)


def test_the_parser_sees_imports():
    assert {"numpy", "jax.core.Tracer", "adaptax.errors.InputError"} <= imports(SOURCE / "inner.py")
    assert {"stepsize.rules", "errors", "_tree"} <= inner_imports(SOURCE / "inner.py")


def test_no_import_goes_upward():
    upward = [
        f"{name} -> {other}"
        for name, path in MODULES.items()
        for other in inner_imports(path)
        if floor_of(name) not in ("", "stepsize") and FLOORS.index(floor_of(other)) > FLOORS.index(floor_of(name))
    ]
    assert upward == []


def test_no_imports_go_in_a_circle():
    graph = {name: inner_imports(path) for name, path in MODULES.items() if name not in ("", "stepsize")}
    done, order = set(), []

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in graph and name not in done:
            for other in sorted(graph[name]):
                visit(other, [*trail, name])
            done.add(name)
            order.append(name)

    for name in sorted(graph):
        visit(name, [])
    assert len(order) == len(graph)


@pytest.mark.parametrize("room", ONLY)
def test_some_rooms_know_little(room):
    for name, path in MODULES.items():
        if floor_of(name) == room:
            assert {floor_of(other) for other in inner_imports(path)} <= ONLY[room] | {room}, name


def test_theory_imports_no_jax():
    for name, path in MODULES.items():
        if floor_of(name) in ("errors", "_checks", "theory"):
            assert not {other.split(".")[0] for other in imports(path)} & {"jax", "equinox", "optax", "jaxtyping"}, path


def test_only_the_command_line_runs_experiments():
    for name, path in MODULES.items():
        if floor_of(name) not in ("reproduce", "cli"):
            assert not any(other.split(".")[0] in ("reproduce", "cli", "") for other in inner_imports(path)), path


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
