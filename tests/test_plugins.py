import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from tagsmith import plugins
from tagsmith.errors import SettingError
from tagsmith.plugins import PLUGINS, available, find

ROOT = Path(__file__).parents[1]


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """An installed package that names two parts of its own, one of them as ours is named."""
    (tmp_path / "somewhere.py").write_text("def tracker(where, *, out, resume):\n    return 'theirs'\n")
    about = tmp_path / "elsewhere-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[tagsmith.tracker]\naim = somewhere:tracker\njsonl = somewhere:tracker\nbroken = somewhere:absent\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("target", [target for names in PLUGINS.values() for target in names.values()])
def test_each_part_of_the_table_is_where_it_says(target):
    module, _, attribute = target.partition(":")
    assert callable(getattr(import_module(module), attribute))


def test_each_optional_library_has_an_extra_that_brings_it():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for library, extra in plugins._LIBRARIES.values():
        assert not extra or [each for each in extras[extra] if each.startswith(library)]


def test_a_typo_is_told_the_nearest_name():
    with pytest.raises(SettingError, match="Unknown tracker 'mlfow'. Did you mean 'mlflow'"):
        find("tracker", "mlfow")
    with pytest.raises(SettingError, match="Known: jsonl, mlflow, tensorboard, wandb"):
        find("tracker", "xyz")


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(plugins._LIBRARIES, "tensorboard", ("no_such_library", "tensorboard"))
    with pytest.raises(SettingError, match=r'pip install "tagsmith\[tensorboard\]"'):
        find("tracker", "tensorboard")
    assert [each.name for each in available() if each.lacks == "tagsmith[tensorboard]"] == ["tensorboard"]


def test_a_part_may_be_spelt_out():
    assert find("tracker", "pathlib:Path") is Path


@pytest.mark.parametrize("name", ["no_such_module:x", "pathlib:no_such_name", "a-typo:"])
def test_a_part_that_is_not_there_is_a_setting_error(name):
    with pytest.raises(SettingError, match="cannot be loaded"):
        find("tracker", name)


def test_another_package_brings_parts_of_its_own(other_package):
    assert find("tracker", "aim")(None, out=Path("b"), resume=False) == "theirs"
    assert [each.name for each in available() if each.package == "elsewhere"] == ["aim", "broken"]
    with pytest.raises(SettingError, match="'broken' cannot be loaded from 'somewhere:absent'"):
        find("tracker", "broken")
    with pytest.raises(SettingError, match="Did you mean 'aim'"):
        find("tracker", "aimm")


def test_a_name_of_the_table_is_not_for_others_to_take(other_package):
    assert find("tracker", "jsonl").__module__ == "tagsmith.trackers"


def test_other_packages_are_not_searched_for_a_name_of_the_table(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", None)
    assert find("tracker", "jsonl").__name__ == "json_lines"
