import json

import pytest
from typer.testing import CliRunner

from tagsmith.cli import app
from tagsmith.deployment.bundle import load
from tagsmith.deployment.explaining import explain
from tagsmith.errors import SettingError

TEXTS = ["our room awful, dreadful and stale", "", "a lovely lamp"]


@pytest.mark.parametrize("gradients", [False, True])
def test_each_answer_is_explained_and_an_empty_text_is_not(llama_bundle, gradients):
    bundle = load(llama_bundle)
    found = list(explain(bundle, TEXTS, gradients=gradients))
    assert [each.label for each in found] == bundle.predict(TEXTS)
    assert [each.text for each in found] == TEXTS
    assert "".join(piece["text"] for piece in found[0].as_dict()["pieces"]) == TEXTS[0]
    assert found[0].strongest()
    assert found[1].spans == ()


def test_weights_of_one_label_are_those_of_the_other_turned_round(llama_bundle):
    bundle = load(llama_bundle)
    one, other = (next(explain(bundle, TEXTS[:1], label=label)) for label in bundle.labels)
    assert [span.weight for span in one.spans] == pytest.approx([-span.weight for span in other.spans], abs=1e-6)


def test_a_label_that_is_unknown_is_refused(llama_bundle):
    with pytest.raises(SettingError, match="no label 'prais'"):
        next(explain(load(llama_bundle), TEXTS, label="prais"))


def test_the_command_line_lists_the_words(llama_bundle):
    done = CliRunner().invoke(app, ["explain", str(llama_bundle), TEXTS[0]])
    assert done.exit_code == 0
    first, *words = done.stdout.splitlines()
    assert first.split("\t")[1] == TEXTS[0]
    weights = [float(line.split("\t")[0]) for line in words]
    assert weights == sorted(weights, reverse=True)


def test_the_command_line_speaks_json(llama_bundle):
    done = CliRunner().invoke(app, ["explain", str(llama_bundle), "--json", "-"], input="\n".join(TEXTS) + "\n")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    assert lines[1]["label"] is None
