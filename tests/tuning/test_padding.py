import json

import numpy as np
import pytest

from tagsmith.config import Config, ModelConfig
from tagsmith.data.batching import training_steps
from tagsmith.labels import Labels
from tagsmith.model.classifier import build
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import Tuned
from tagsmith.tuning.padding import padding_of

TEXTS = ["lovely", "a rude waiter and a cold soup", "the room", "the waiter was rude " * 4, "tasty bread and kettle"]


@pytest.fixture(scope="module")
def padded(tiny_folder):
    """`padded(start=, steps=, evaluations=)`: the shares for so many steps of two rows."""
    config = ModelConfig(max_tokens=48)
    classifier = build(tiny_folder, config, labels=Labels.of(["a", "b"]), layers=None, seed=0)
    tokens = classifier.encoder.encode(TEXTS)
    parts = {name: Part(tokens, np.array([0, 1, 0, 1, 0])) for name in ("train", "validation")}

    def shares(*, start, steps, evaluations, batch_size=2):
        tuned = Tuned(start=start, steps=steps, curves=[{}] * evaluations)
        return padding_of(classifier, parts, tuned, Config.of({"tuning": {"batch_size": batch_size}}))

    shares.lengths, shares.size = (
        tokens.lengths,
        sum(weight.numel() for weight in classifier.backbone.blocks[0].parameters()),
    )
    return shares


def test_steps_are_counted_by_the_rectangles_that_attention_computes(padded):
    lengths = padded.lengths.astype(float)
    steps = training_steps(padded.lengths, rows_per_step=2, seed=123, epoch=0)
    real, cells = (lengths**2).sum(), sum(len(rows) * lengths[rows].max() ** 2 for rows in steps)
    wanted = 1 - (lengths.sum() * padded.size + 64 * real) / (lengths.sum() * padded.size + 64 * cells)
    assert padded(start=1, steps=7, evaluations=0)["steps"] == pytest.approx(wanted, abs=1e-6)


def test_the_whole_lies_between_its_parts_and_leans_to_what_there_is_most_of(padded):
    few, many = (padded(start=2, steps=steps, evaluations=1) for steps in (1, 1000))
    assert min(few["frozen"], few["steps"]) < few["share"] < max(few["frozen"], few["steps"])
    assert abs(many["share"] - many["steps"]) < abs(few["share"] - few["steps"])


def test_one_row_a_step_pads_nothing(padded):
    assert padded(start=None, steps=9, evaluations=0, batch_size=1) == dict.fromkeys(
        ("frozen", "steps", "evaluations", "share"), 0.0
    )


def test_the_report_says_it(llama_bundle):
    padding = json.loads((llama_bundle / "report.json").read_text(encoding="utf-8"))["data"]["padding"]
    assert set(padding) == {"frozen", "steps", "evaluations", "share"}
    assert 0 < padding["share"] < 0.03
    page = (llama_bundle / "report.html").read_text(encoding="utf-8")
    assert f"Of what tuning computed, {100 * padding['share']:.1f} % was padding." in page
