import json
import shlex

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tagsmith.config import PRESETS, Config, merge, parse_setting, settings_of
from tagsmith.data.preparing import prepare
from tagsmith.data.readers import read
from tagsmith.data.table import Table
from tagsmith.deployment.bundle import load
from tagsmith.errors import DataError, SettingError, TagsmithError
from tagsmith.naming import default_out, reproduce
from tagsmith.pipeline import evaluate, train
from tagsmith.tuning.loop import StoppedError

HASHED = ["report.json", "model.safetensors", "tagsmith.json", "probe.jsonl", "config.json", "MANIFEST.json"]


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def stop_after(steps):
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return asked == steps

    return stop


def test_the_report_has_the_keys_that_others_read(llama_bundle):
    report = report_of(llama_bundle)
    assert report["data"]["rows"] == 240
    assert sum(report["data"]["splits"].values()) == 240
    assert set(report["data"]["splits"]) == {"train", "validation", "calibration", "test"}
    assert report["data"]["history"][0]["step"] == "read"
    assert set(report["data"]["leak"]) == {"exact", "near", "threshold"}
    assert set(report["data"]["truncated"]) == {"rows", "share"}
    scores = [report["test"], report["before_tuning"], *(report["baselines"][name] for name in ("majority", "tfidf"))]
    for each in scores:
        assert each["n"] == report["data"]["splits"]["test"]
        for name in ("accuracy", "macro_f1", "log_loss", "ece"):
            assert {"value", "low", "high"} <= set(each[name])
        assert [line["label"] for line in each["per_label"]] == report["data"]["labels"]
        assert each["confusion"]["labels"] == report["data"]["labels"]
        assert np.sum(each["confusion"]["counts"]) == each["n"]
    assert report["test_clean"]["n"] == report["test"]["n"]
    assert report["test_leaked"] is None
    assert {"value", "text", "p_value", "minimum_difference"} <= set(report["verdict"])
    assert report["curves"]
    assert {"candidates", "seeds", "forecast", "reproduce"} <= set(report)


def test_the_run_has_its_times_apart(llama_bundle):
    run = json.loads((llama_bundle / "run.json").read_text(encoding="utf-8"))
    assert {"data", "model", "tuning", "deployment", "evaluation"} <= set(run["timing"])
    assert all(seconds >= 0 for seconds in run["timing"].values())
    assert {"date", "environment"} <= set(run)
    assert "timing" not in (llama_bundle / "report.json").read_text(encoding="utf-8")


def test_no_text_of_a_row_stands_outside_the_page_and_the_vocabulary(llama_bundle, toy_rows):
    texts = [text for text, _ in toy_rows]
    for path in llama_bundle.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".md") and path.name != "vocabulary.json":
            content = path.read_text(encoding="utf-8")
            assert not [text for text in texts if text in content], path.name


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_same_data_plan_and_seed_give_the_same_bytes(family, request, toy_csv, quick_config, tmp_path):
    folder = request.getfixturevalue({"llama": "tiny_folder", "bert": "bert_folder"}[family])
    first = request.getfixturevalue(f"{family}_bundle")
    second = train(toy_csv, out=tmp_path / "again", config=quick_config(folder)).folder
    names = {path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file()}
    names -= {"run.json", "report.html"}
    assert "report.json" in names
    assert [name for name in sorted(names) if (first / name).read_bytes() != (second / name).read_bytes()] == []


def test_the_scores_of_the_report_are_those_of_the_loaded_bundle(llama_bundle, toy_csv, quick_config):
    config = quick_config()
    test = prepare(read(toy_csv), config.data, seed=config.seed).splits.test
    bundle = load(llama_bundle)
    report = report_of(llama_bundle)["test"]
    probs = bundle.predict_proba(test.texts)
    truth = bundle.engine.labels.encode(test.labels)
    assert np.mean(np.array(bundle.predict(test.texts)) == np.array(test.labels)) == pytest.approx(
        report["accuracy"]["value"]
    )
    log_loss = -np.log(probs[np.arange(len(truth)), truth]).mean()
    assert log_loss == pytest.approx(report["log_loss"]["value"], abs=1e-5)


def test_tuning_beats_the_untuned_model(llama_bundle):
    report = report_of(llama_bundle)
    assert report["test"]["log_loss"]["value"] < report["before_tuning"]["log_loss"]["value"]


@pytest.mark.parametrize("how", ["undersample", "oversample", "weights"])
def test_balanced_training_undoes_its_prior_when_it_answers(how, toy_rows, quick_config, tmp_path, save_csv):
    praise = [row for row in toy_rows if row[1] == "praise"][:40]
    source = save_csv(tmp_path / "in.csv", praise + [row for row in toy_rows if row[1] == "complaint"])
    config = quick_config(data={"balance": how}, tuning={"epochs": 1})
    bundle = train(source, out=tmp_path / "b", config=config)
    offset = bundle.settings["calibration"]["offset"]
    shares = {"complaint": 0, "praise": 0}
    prepared = prepare(read(source), Config.of({"data": {"balance": "none"}}).data, seed=config.seed)
    for label in prepared.splits.train.labels:
        shares[label] += 1
    assert offset[0] - offset[1] == pytest.approx(np.log(shares["complaint"] / shares["praise"]))
    assert not bundle.settings["hugging_face"]
    assert any(change["step"] == "balance" for change in bundle.report["data"]["history"])


def test_given_validation_and_test_files_are_used_as_they_are(make_rows, quick_config, tmp_path, save_csv):
    given = {name: make_rows(count, seed=seed) for name, count, seed in (("v", 40, 5), ("t", 60, 6))}
    paths = {name: save_csv(tmp_path / f"{name}.csv", rows) for name, rows in given.items()}
    source = save_csv(tmp_path / "in.csv", make_rows(120))
    config = quick_config(tuning={"epochs": 1})
    bundle = train(source, validation=paths["v"], test=paths["t"], out=tmp_path / "b", config=config)
    assert bundle.report["data"]["splits"] == {"train": 120, "validation": 40, "calibration": 0, "test": 60}
    assert "--validation" in bundle.report["reproduce"]
    truth = np.array([label for _, label in given["t"]])
    share = np.mean(np.array(bundle.predict([text for text, _ in given["t"]])) == truth)
    assert share == pytest.approx(bundle.report["test"]["accuracy"]["value"])


def test_a_table_in_memory_trains_too(toy_rows, quick_config, tmp_path):
    texts, labels = zip(*toy_rows, strict=True)
    bundle = train(Table.of(texts, labels), out=tmp_path / "b", config=quick_config(tuning={"epochs": 1}))
    assert bundle.report["data"]["rows"] == 240


def test_other_columns_are_named_in_the_settings(toy_rows, quick_config, tmp_path, save_csv):
    source = save_csv(tmp_path / "in.csv", toy_rows, header=("said", "verdict"))
    config = quick_config(data={"text": "said", "label": "verdict"}, tuning={"epochs": 1})
    assert train(source, out=tmp_path / "b", config=config).labels == ("complaint", "praise")


# ---- The command that repeats a run


def parsed(command):
    words = shlex.split(command)
    settings = [parse_setting(words[i + 1]) for i, word in enumerate(words) if word == "--set"]
    return Config.of(merge(settings_of("fixed"), *settings))


def test_the_command_in_the_report_repeats_the_settings(llama_bundle, quick_config):
    command = report_of(llama_bundle)["reproduce"]
    assert command.startswith("tagsmith train ")
    assert parsed(command) == quick_config()


COLUMN = st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
ODD = st.sampled_from(
    ["2024", "true", "none", '"quoted"', "a b", "1e5", "[x]", "", "'", "2024-01-01", "x=y", "#", " a "]
)


@given(
    data=st.fixed_dictionaries(
        {
            "text": COLUMN | ODD,
            "label": COLUMN | ODD,
            "validation_share": st.floats(0.01, 0.49),
            "balance": st.sampled_from(["none", "weights"]),
        }
    ),
    tuning=st.fixed_dictionaries(
        {
            "learning_rate": st.floats(1e-9, 1),
            "head_learning_rate": st.none() | st.floats(1e-9, 1),
            "method": st.sampled_from(["head", "full"]),
        }
    ),
    layers=st.sampled_from(["all", "recommended", 1, 12]),
    backbone=st.sampled_from(["gpt2 or x", "/a folder/b", "x", "7"]),
    calibrate=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_any_settings_come_back_from_their_command(data, tuning, layers, backbone, calibrate, seed):
    config = Config.of(
        {
            "data": data,
            "tuning": tuning,
            "model": {"layers": layers, "backbone": backbone},
            "evaluation": {"calibrate": calibrate},
            "seed": seed,
        }
    )
    assert parsed(reproduce("x.csv", config=config)) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_of_a_preset_repeats_it(preset):
    config = Config.of(settings_of(preset))
    assert parsed(reproduce("x.csv", config=config)) == config


# ---- Where the bundle goes


def test_the_default_folder_counts_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(default_out("some/reviews.csv.gz")) == "reviews-tagsmith"
    (tmp_path / "reviews-tagsmith").mkdir()
    (tmp_path / "reviews-tagsmith-2").mkdir()
    assert str(default_out("reviews.csv")) == "reviews-tagsmith-3"
    assert str(default_out("-")) == "stdin-tagsmith"
    assert str(default_out("sms-spam")) == "sms-spam-tagsmith"


def test_resuming_takes_the_folder_that_has_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews-tagsmith").mkdir()
    (tmp_path / "reviews-tagsmith-2.checkpoint").mkdir()
    assert str(default_out("reviews.csv", resume=True)) == "reviews-tagsmith-2"


def test_an_existing_out_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(SettingError, match="exists"):
        train(tmp_path / "absent.csv", out=tmp_path)


def test_a_run_that_fails_leaves_an_old_bundle_as_it_was(llama_bundle, toy_csv, quick_config, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(SettingError):
        train(toy_csv, out=tmp_path / "b", config=quick_config(model={"layers": 9}), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b" / "mine.txt").read_text() == "mine"


# ---- Resume


@pytest.mark.parametrize("steps", [1, 11, 17])
def test_resuming_a_stopped_run_gives_the_bundle_of_an_unstopped_one(
    steps, llama_bundle, toy_csv, quick_config, tmp_path
):
    with pytest.raises(StoppedError, match=f"after step {steps} of 33"):
        train(toy_csv, out=tmp_path / "b", config=quick_config(), stop=stop_after(steps))
    assert [path.name for path in tmp_path.iterdir()] == ["b.checkpoint"]
    train(toy_csv, out=tmp_path / "b", config=quick_config(), resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    different = [name for name in HASHED if (tmp_path / "b" / name).read_bytes() != (llama_bundle / name).read_bytes()]
    assert different == []


def test_a_depth_that_was_found_is_in_the_bundle_and_found_again_on_resuming(
    toy_csv, quick_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("tagsmith.tuning.depth.shortlist", lambda losses: [2, 3])  # so that something is frozen
    config = quick_config().with_settings({"model": {"layers": "auto", "pooling": "last"}, "tuning": {"blocks": 1}})
    whole = train(toy_csv, out=tmp_path / "whole", config=config)
    about, weights = whole.report["model"], load_file(tmp_path / "whole" / "model.safetensors")
    assert (
        about["depth"]["layers"]
        == about["layers"]
        == 1 + max(int(name.split(".")[2]) for name in weights if ".layers." in name)
    )
    assert "the depth was chosen by them: they are kept for this run only" in whole.report["forecast"]["states"]["text"]
    with pytest.raises(StoppedError):
        train(toy_csv, out=tmp_path / "b", config=config, stop=stop_after(11))
    train(toy_csv, out=tmp_path / "b", config=config, resume=True)
    assert [name for name in HASHED if (tmp_path / "b" / name).read_bytes() != (whole.folder / name).read_bytes()] == []


# ---- Evaluate


def test_a_bundle_is_measured_on_new_rows(llama_bundle, make_rows, tmp_path, save_csv):
    rows = make_rows(50, seed=8)
    report = evaluate(llama_bundle, save_csv(tmp_path / "new.csv", rows)).as_dict()
    bundle = load(llama_bundle)
    right = np.array(bundle.predict([text for text, _ in rows])) == np.array([label for _, label in rows])
    assert report["test"]["n"] == 50
    assert report["test"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert report["baselines"]["tfidf"]["n"] == 50
    assert report["verdict"]["text"]


def test_rows_that_took_part_in_the_training_are_told_apart(llama_bundle, make_rows, toy_rows, tmp_path, save_csv):
    new = [(f"{text}, number {i}", label) for i, (text, label) in enumerate(make_rows(40, seed=9))]
    report = evaluate(llama_bundle, save_csv(tmp_path / "both.csv", [*toy_rows, *new])).as_dict()
    took_part, clean = report["test_leaked"]["n"], report["test_clean"]["n"]
    assert took_part + clean == len(toy_rows) + len(new)
    assert clean >= len(new)
    assert any(f"{took_part} of {took_part + clean} rows took part in the training" in note for note in report["notes"])

    alone = evaluate(llama_bundle, save_csv(tmp_path / "new.csv", new)).as_dict()
    assert alone["test_leaked"] is None
    assert alone["notes"] == []


def test_labels_that_training_did_not_see_are_refused_when_measuring(llama_bundle, tmp_path, save_csv):
    source = save_csv(tmp_path / "new.csv", [("lovely room", "praise"), ("a soup", "blame"), ("a bath", "praise")])
    with pytest.raises(DataError, match=r"Labels not seen in training: \['blame'\]; known: \['complaint', 'praise'\]"):
        evaluate(llama_bundle, source)


def test_rows_with_empty_texts_are_left_out_when_measuring(llama_bundle):
    table = Table.of(["lovely room", "  ", "rude waiter"], ["praise", "praise", "complaint"])
    report = evaluate(llama_bundle, table).as_dict()
    assert report["test"]["n"] == 2
    assert report["notes"] == ["1 of 3 rows have an empty text, get no answer, and count nowhere."]


def test_measuring_on_empty_texts_alone_is_refused(llama_bundle):
    with pytest.raises(DataError, match="All 2 texts are empty"):
        evaluate(llama_bundle, Table.of(["", " "], ["praise", "complaint"]))


# ---- What is counted


def test_truncated_rows_are_counted(toy_csv, quick_config, tmp_path):
    config = quick_config(model={"max_tokens": 8}, tuning={"epochs": 1, "method": "head"})
    truncated = train(toy_csv, out=tmp_path / "b", config=config).report["data"]["truncated"]
    assert truncated["rows"] > 100
    assert truncated["share"] == pytest.approx(truncated["rows"] / 240)


def test_each_stage_is_heard(toy_csv, quick_config, tmp_path, heard):
    train(toy_csv, out=tmp_path / "b", config=quick_config(tuning={"epochs": 1}), listen=heard.append)
    stages = list(dict.fromkeys(event.stage for event in heard))
    assert stages[:3] == ["data", "model", "tuning"]
    assert set(stages) == {"data", "model", "tuning", "evaluation", "deployment"}
    assert (heard[-1].stage, heard[-1].name) == ("deployment", "done")


def test_too_little_room_is_said_before_tuning(toy_csv, quick_config, tmp_path, monkeypatch, heard):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(TagsmithError, match="The bundle may take"):
        train(toy_csv, out=tmp_path / "b", config=quick_config(), listen=heard.append)
    assert "tuning" not in {event.stage for event in heard}
    assert list(tmp_path.iterdir()) == []
