import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tagsmith.evaluation.report import Report
from tagsmith.evaluation.report_schema import ReportKeys, schema
from tagsmith.pipeline import evaluate

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def keys_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_report_of_a_training_has_the_keys_that_are_published(request, family):
    ReportKeys.model_validate(keys_of(request.getfixturevalue(f"{family}_bundle")), strict=False)


def test_so_has_that_of_other_rows(llama_bundle, make_rows, tmp_path, save_csv):
    report = evaluate(llama_bundle, save_csv(tmp_path / "new.csv", make_rows(120, seed=8))).as_dict()
    assert report["shift"] is not None
    ReportKeys.model_validate(report)


def test_a_key_that_nobody_described_is_refused(llama_bundle):
    with pytest.raises(ValidationError, match="surprise"):
        ReportKeys.model_validate(keys_of(llama_bundle) | {"surprise": 1})


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
