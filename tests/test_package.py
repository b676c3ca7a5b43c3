import os
from pathlib import Path

import pytest

import tagsmith


def test_the_tests_run_against_the_package_that_was_asked_for():
    wanted = os.environ.get("TAGSMITH_EXPECTED")
    if wanted is None:
        pytest.skip("TAGSMITH_EXPECTED is not set: these tests run against the checkout; `make test-wheel` sets it")
    assert Path(tagsmith.__file__).is_relative_to(wanted)


def test_the_page_template_comes_with_the_package():
    folder = Path(tagsmith.__file__).parent / "evaluation" / "page"
    assert all((folder / f"page.{kind}").is_file() for kind in ("html", "css", "js"))
