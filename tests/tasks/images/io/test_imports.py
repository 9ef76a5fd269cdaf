"""Reading lies apart from tasks: it imports no other module of the images than the data that it returns."""

import ast
from pathlib import Path

import adaptax.tasks.images.io as reading


def test_reading_imports_nothing_that_makes_tasks():
    files = sorted(Path(reading.__file__).parent.glob("*.py"))
    modules = {
        node.module for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)
    }
    images = {module for module in modules if module.startswith("adaptax.tasks.images.")}
    assert {module for module in images if not module.startswith("adaptax.tasks.images.io.")} == {
        "adaptax.tasks.images.characters",
        "adaptax.tasks.images.classes",
    }
    assert not {module for module in modules if module.split(".")[0] in ("jax", "equinox", "optax")}
