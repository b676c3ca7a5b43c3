import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tagsmith.data.table import Table
from tagsmith.evaluation.report import Report
from tagsmith.evaluation.report_schema import ReportKeys, schema
from tagsmith.pipeline import evaluate, train

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def keys_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_report_of_a_training_has_the_keys_that_are_published(request, family):
    ReportKeys.model_validate(keys_of(request.getfixturevalue(f"{family}_bundle")), strict=False)


def test_so_has_that_of_several_labels_a_text(bert_folder, quick_config, tmp_path):
    rng, words = np.random.default_rng(3), np.array(["price", "staff", "food"])
    sets = [words[rng.random(3) < 0.4].tolist() for _ in range(160)]
    texts = [f"{' '.join(found)} room {number}" for number, found in enumerate(sets)]
    tuning = {"method": "head", "epochs": 1}
    bundle = train(Table.of(texts, sets), out=tmp_path / "bundle", config=quick_config(bert_folder, tuning=tuning))
    keys = keys_of(bundle.folder)
    assert keys["test"]["kind"] == "multi_label"
    ReportKeys.model_validate(keys)


def test_so_has_one_with_costs_a_prior_and_a_bound(tiny_folder, quick_config, make_rows, tmp_path, save_csv):
    asked = {"costs": {"praise": {"complaint": 2.0}}, "prior": {"complaint": 0.9, "praise": 0.1}, "coverage": 0.8}
    source = save_csv(tmp_path / "rows.csv", make_rows(240, seed=4))
    bundle = train(source, out=tmp_path / "bundle", config=quick_config(tiny_folder, evaluation=asked))
    keys = keys_of(bundle.folder)
    assert keys["expected_cost"] and keys["at_prior"] and keys["abstention"]["guarantee"]
    ReportKeys.model_validate(keys)


def test_so_has_that_of_other_rows(llama_bundle, make_rows, tmp_path, save_csv):
    report = evaluate(llama_bundle, save_csv(tmp_path / "new.csv", make_rows(120, seed=8))).as_dict()
    assert report["shift"] is not None
    ReportKeys.model_validate(report)


def test_a_key_that_nobody_described_is_refused(llama_bundle):
    with pytest.raises(ValidationError, match="surprise"):
        ReportKeys.model_validate(keys_of(llama_bundle) | {"surprise": 1})


@pytest.mark.parametrize(
    "place",
    [("calibration",), ("calibration", "out_of_fold"), ("cascade", "chosen"), ("abstention",), ("robustness", 0)],
)
def test_nor_may_one_stand_further_in(llama_bundle, place):
    keys = keys_of(llama_bundle)
    keys["calibration"].setdefault("out_of_fold", {"before": 1.0, "after": 1.0, "folds": 5})
    inner = keys
    for step in place:
        inner = inner[step]
    inner["surprise"] = 1
    with pytest.raises(ValidationError, match="surprise"):
        ReportKeys.model_validate(keys)


def test_each_field_of_a_report_is_described():
    assert set(Report.__dataclass_fields__) <= set(ReportKeys.model_fields)
    named = [schema(), *schema()["$defs"].values()]
    missing = [name for each in named for name, key in each["properties"].items() if not key.get("description")]
    assert missing == []


def test_the_published_schema_validates_a_report_as_json(llama_bundle):
    jsonschema = pytest.importorskip("jsonschema_rs", reason="needs a validator of JSON Schema")
    published = json.loads((REFERENCE / "report.schema.json").read_text(encoding="utf-8"))
    assert published == schema()
    validator = jsonschema.validator_for(published)
    assert list(validator.iter_errors(keys_of(llama_bundle))) == []
    assert list(validator.iter_errors({"test": {}})) != []
