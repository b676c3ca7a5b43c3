import os
from pathlib import Path

import pytest

import tagsmith


def test_the_tests_run_against_the_package_that_was_asked_for():
    wanted = os.environ.get("TAGSMITH_EXPECTED")
    if wanted is None:
        pytest.skip("TAGSMITH_EXPECTED is not set: these tests run against the checkout; `make test-wheel` sets it")
    assert Path(tagsmith.__file__).is_relative_to(wanted)


def test_the_package_has_every_file_of_its_sources():
    sources, own = Path(__file__).parents[1] / "src" / "tagsmith", Path(tagsmith.__file__).parent

    def files(folder):
        kept = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {path.as_posix() for path in kept if "__pycache__" not in path.parts}

    assert files(own) == files(sources)
    assert {f"evaluation/page/page.{kind}" for kind in ("html", "css", "js")} <= files(own)
