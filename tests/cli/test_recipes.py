"""The recipes hold options that exist, and pass the checks that come before any computation."""

from pathlib import Path

import pytest

from adaptax.cli.families import Images
from adaptax.cli.options import check
from adaptax.cli.saved import overlay, read_file

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def test_all_are_listed():
    listed = (RECIPES[0].parent / "README.md").read_text()
    assert len(RECIPES) >= 5 and all(f"`{path.stem}`" in listed for path in RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_is_a_configuration(path, tmp_path):
    config = overlay(Images(data=tmp_path), read_file(path), path.name)
    check(config)
    # Its name says what it is.
    assert f"{config.ways}way-{config.shots}shot" in path.stem
