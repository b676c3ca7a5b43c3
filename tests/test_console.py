import io
import json

import pytest

from tagsmith.console import Console
from tagsmith.events import Event


@pytest.fixture
def report(llama_bundle):
    return json.loads((llama_bundle / "report.json").read_text(encoding="utf-8"))


def test_everything_goes_to_stderr(capsys, llama_bundle, report):
    with Console() as console:
        console(Event("data", "read", values={"source": "x.csv", "rows": 3}))
        console(Event("data", "done", values={"train": 2, "test": 1}))
        console(Event("tuning", "note", values={"text": "a [bold] note"}))
        console(Event("tuning", "padding", values={"share": 0.0081}))
        console.summary(report, llama_bundle)
    said = capsys.readouterr()
    assert said.out == ""
    assert "Read 3 labelled rows from x.csv." in said.err
    assert "Split: 2 train, 1 test rows." in said.err
    assert "Note: a [bold] note" in said.err
    assert "Padding computed: 0.8%." in said.err
    assert report["verdict"]["text"].removesuffix(".") in said.err
    assert str(llama_bundle / "report.html") in said.err


def test_scores_stand_beside_their_baselines_with_intervals(report):
    page = io.StringIO()
    Console().scores(report, file=page)
    lines = page.getvalue().splitlines()
    for name in ("this classifier", "TF-IDF + linear", "majority", "before tuning"):
        line = next(line for line in lines if line.startswith(name))
        assert " to " in line
        assert "%" in line


def test_it_knows_when_steps_are_being_made(capsys):
    console = Console()
    step = {"loss": 0.5, "accuracy": 0.5, "seconds_left": 1.0}
    seen = []
    for event in (
        Event("model", "frozen", 1, 2),
        Event("tuning", "step", 1, 2, step),
        Event("evaluation", "baselines", values={"text": "x"}),
    ):
        console(event)
        seen.append(console.tuning)
    assert seen == [False, True, False]


def test_a_probe_is_not_called_an_epoch(capsys):
    values = {name: 0.5 for name in ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")}
    for step in (0, 3):
        Console()(Event("tuning", "evaluated", step, 9, values))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("Probe: train loss 0.500")
    assert second.startswith("Epoch 0.50: train loss 0.500")


def test_an_event_that_it_does_not_know_is_passed_over(capsys):
    Console()(Event("deployment", "something new"))
    assert capsys.readouterr() == ("", "")


def test_a_note_that_was_shown_when_it_arose_is_not_shown_again(capsys, report):
    console, page = Console(), io.StringIO()
    console(Event("data", "note", values={"text": "two rows were dropped"}))
    console.scores(report | {"notes": ["two rows were dropped", "labels are uneven"]}, file=page)
    assert "Note: two rows were dropped" in capsys.readouterr().err
    assert "dropped" not in page.getvalue()
    assert "Note: labels are uneven" in page.getvalue()
