import json

import numpy as np
import pytest

from tagsmith.config import Config
from tagsmith.deployment.bundle import load
from tagsmith.deployment.engine_process import check_probes
from tagsmith.errors import SettingError
from tagsmith.pipeline import train
from tagsmith.refitting import require_refit

TEXTS = ["a lovely room", "the waiter was rude", "a parcel in the morning"]


@pytest.fixture(scope="module")
def both(tmp_path_factory, toy_csv, quick_config):
    """The same training without and with a refit."""
    folder = tmp_path_factory.mktemp("refit")
    made = {}
    for refit in (False, True):
        config = quick_config(tuning={"refit": refit, "epochs": 2, "start": "random"})
        made[refit] = train(toy_csv, out=folder / f"refit-{refit}", config=config)
    return made


def test_the_scores_are_those_of_the_classifier_before(both):
    assert both[True].report["test"] == both[False].report["test"]
    assert both[True].report["baselines"] == both[False].report["baselines"]


def test_what_is_saved_is_another_one_and_the_report_says_so(both):
    assert not np.allclose(both[True].predict_proba(TEXTS), both[False].predict_proba(TEXTS), atol=1e-6)
    (note,) = (note for note in both[True].report["notes"] if "tuning.refit" in note)
    splits = both[True].report["data"]["splits"]
    assert f"learnt from {splits['train']} rows" in note
    assert f"from {splits['train'] + splits['validation']}" in note
    assert not any("tuning.refit" in each for each in both[False].report["notes"])


def test_the_saved_one_is_whole(both):
    folder = both[True].folder
    loaded = load(folder)
    check_probes(folder, loaded.engine)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), both[True].predict_proba(TEXTS))
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["notes"] == both[True].report["notes"]


def test_a_refit_is_as_if_the_validation_rows_had_been_training_rows(
    both, toy_csv, tmp_path, quick_config, monkeypatch
):
    seen = []
    from tagsmith.tuning import soup

    plain = soup.tune_soup

    def tune(classifier, parts, config, **options):
        seen.append((len(parts["train"].truth), config.tuning.epochs))
        return plain(classifier, parts, config, **options)

    monkeypatch.setattr("tagsmith.tuning.soup.tune_soup", tune)
    again = train(
        toy_csv, out=tmp_path / "b", config=quick_config(tuning={"refit": True, "epochs": 2, "start": "random"})
    )
    splits = again.report["data"]["splits"]
    assert seen[-1][0] == splits["train"] + splits["validation"]
    assert seen[-1][1] == -(-again.report["model"]["best_step"] // -(-splits["train"] // 16))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), both[True].predict_proba(TEXTS))


@pytest.mark.parametrize(
    "tuning",
    [
        {"method": "head"},
        {"hybrid": "average", "epochs": 1},
        {"method": "lora", "epochs": 1},
        {"method": "contrastive", "epochs": 2},
    ],
)
def test_whatever_learnt_can_learn_again(tuning, toy_csv, tmp_path, quick_config):
    made = train(toy_csv, out=tmp_path / "b", config=quick_config(tuning={"refit": True, **tuning}))
    check_probes(made.folder, load(made.folder).engine)
    assert any("tuning.refit" in note for note in made.report["notes"])


def test_several_processes_do_not_refit():
    config = Config.of({"tuning": {"refit": True}})
    with pytest.raises(SettingError, match=r"2 share this training.*leave tuning.refit out"):
        require_refit(config, processes=2)
    require_refit(config, processes=1)


def test_a_bound_and_a_refit_exclude_one_another():
    asked = {"tuning": {"refit": True}, "evaluation": {"max_error": 0.05}}
    with pytest.raises(SettingError, match=r"evaluation\.max_error rests on rows"):
        require_refit(Config.of(asked))
    require_refit(Config.of({"tuning": {"refit": True}}))
