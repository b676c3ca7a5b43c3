from typing import get_args

import pytest
from pydantic import ValidationError

from tagsmith.config import PRESETS, Config, Step, fields, load_settings, merge, parse_setting, settings_of
from tagsmith.errors import SettingError


def test_every_setting_has_a_help_text():
    assert [name for name, text, _ in fields() if not text.strip()] == []


def test_every_field_of_the_config_is_listed_once():
    names = [name for name, _, _ in fields()]
    assert len(names) == len(set(names))
    assert {"data.text", "model.backbone", "tuning.epochs", "evaluation.metric", "seed"} <= set(names)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    assert Config.of(settings_of(name)).seed == 123


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(SettingError, match="Unknown preset 'bok'. Did you mean 'book'"):
        settings_of("bok")


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(SettingError, match=r"Unknown setting 'tuning.epoch'. Did you mean 'tuning.epochs'"):
        Config.of({"tuning": {"epoch": 3}})


def test_a_value_out_of_range_names_the_setting_and_the_value():
    with pytest.raises(SettingError, match=r"'tuning.epochs' cannot be 0"):
        Config.of({"tuning": {"epochs": 0}})


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Config().tuning.epochs = 7


def test_settings_laid_over_leave_the_others_alone():
    config = Config.of(settings_of("book")).with_settings({"tuning": {"epochs": 2}})
    assert (config.tuning.epochs, config.tuning.batch_size) == (2, 8)


def test_the_last_layer_of_settings_wins():
    assert merge({"tuning": {"epochs": 1, "blocks": 2}}, {"tuning": {"epochs": 3}}) == {
        "tuning": {"epochs": 3, "blocks": 2}
    }


@pytest.mark.parametrize(
    ("assignment", "nested"),
    [
        ("tuning.epochs=5", {"tuning": {"epochs": 5}}),
        ("tuning.learning_rate=5e-5", {"tuning": {"learning_rate": 5e-5}}),
        ("evaluation.calibrate=false", {"evaluation": {"calibrate": False}}),
        ("data.text=the text", {"data": {"text": "the text"}}),
        ("data.text=none", {"data": {"text": None}}),
        ("data.quoting=none", {"data": {"quoting": "none"}}),
        ("data.text=a=b", {"data": {"text": "a=b"}}),
        ("seed=7", {"seed": 7}),
    ],
)
def test_an_assignment_is_read_as_toml_or_as_a_string(assignment, nested):
    assert parse_setting(assignment) == nested


@pytest.mark.parametrize("assignment", ["tuning.epochs", "=5", ""])
def test_an_assignment_without_a_name_or_a_value_is_told_how_to_be_written(assignment):
    with pytest.raises(SettingError, match=r"section\.key=value"):
        parse_setting(assignment)


def test_a_toml_file_gives_nested_settings(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('seed = 7\n[model]\nbackbone = "gpt2"\n', encoding="utf-8")
    config = Config.of(load_settings(path))
    assert (config.seed, config.model.backbone) == (7, "gpt2")


def test_a_file_that_is_absent_or_no_toml_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"No settings file at .*absent\.toml"):
        load_settings(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("epochs: 3", encoding="utf-8")
    with pytest.raises(SettingError, match=r"bad\.toml' is not valid TOML"):
        load_settings(tmp_path / "bad.toml")


def test_settings_are_told_by_name_and_as_plain_values():
    flat = Config.of({"seed": 5, "data": {"clean": "html", "merge_labels": {"spam": ["Spam"]}}}).flat()
    assert list(flat) == [name for name, _, _ in fields()]
    assert (flat["seed"], flat["tuning.epochs"], flat["data.text"]) == (5, 3, None)
    assert (flat["data.clean"], flat["data.merge_labels"]) == ('["html"]', '{"spam": ["Spam"]}')


def test_a_config_survives_its_own_json():
    config = Config.of(settings_of("book"))
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_steps_of_cleaning_are_listed_or_separated_by_commas_and_put_in_order():
    for asked in ("spaces,html", ["spaces", "html"], "html, spaces,"):
        assert Config.of({"data": {"clean": asked}}).data.clean == ("html", "spaces")
    assert Config.of({"data": {"clean": "none"}}).data.clean == ()


def test_two_forms_of_unicode_are_refused():
    with pytest.raises(SettingError, match=r"data\.clean.*take one of them"):
        Config.of({"data": {"clean": "nfc,nfkc"}})


def test_the_steps_of_cleaning_that_can_be_asked_for_are_those_that_there_are():
    from tagsmith.data.cleaning import STEPS

    assert get_args(Step) == STEPS
