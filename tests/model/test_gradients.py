import sys

import numpy as np
import pytest
import torch

from tagsmith.config import ModelConfig
from tagsmith.errors import SettingError
from tagsmith.labels import Labels
from tagsmith.model.calibration import Calibration
from tagsmith.model.classifier import build
from tagsmith.model.gradients import integrated

TEXT = "the room was dreadful but lovely"


def classifier(folder, *, multi_label=False, **options):
    labels = Labels(("bad", "good", "neither"), multi_label)
    made = build(folder, ModelConfig(max_tokens=48, **options), labels=labels, layers=None, seed=0)
    torch.nn.init.normal_(made.head.score.weight, generator=torch.Generator().manual_seed(1))
    return made.eval().requires_grad_(False)


def log_odds(made, ids, target):
    logits = made(torch.tensor([ids]), torch.tensor([len(ids)])).numpy()
    probability = made.calibration.probabilities(logits)[0, target]
    return np.log(probability / (1 - probability))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_shares_of_all_words_add_up_to_what_the_text_says_beyond_padding(make_folder, family, multi_label):
    made = classifier(make_folder(family), multi_label=multi_label)
    made.calibration = Calibration(1.3, (0.2, -0.1, 0.0), multi_label)
    encoding = made.encoder.tokenizer.encode(TEXT)
    padding = [
        token if special else made.encoder.pad_id or 0
        for token, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    ]
    spans = integrated(made, TEXT, 1, steps=300)
    beyond = log_odds(made, encoding.ids, 1) - log_odds(made, padding, 1)
    assert sum(span.weight for span in spans) == pytest.approx(beyond, abs=0.03 * abs(beyond) + 0.02)


def test_each_word_has_its_share(tiny_folder):
    spans = integrated(classifier(tiny_folder), TEXT, 0)
    assert [TEXT[span.start : span.end] for span in spans] == TEXT.split()
    assert all(span.weight for span in spans)


def test_a_text_that_is_cut_is_explained_as_far_as_it_is_read(tiny_folder):
    spans = integrated(classifier(tiny_folder), "lovely " * 200, 0)
    assert spans[0].weight != 0
    assert spans[-1].weight == 0


@pytest.mark.parametrize(("text", "options"), [("lovely " * 200, {"long_texts": "windows"}), ("", {}), ("  ", {})])
def test_what_is_not_read_in_one_piece_is_refused(tiny_folder, text, options):
    with pytest.raises(SettingError):
        integrated(classifier(tiny_folder, **options), text, 0)


def test_without_the_library_the_extra_is_named(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(SettingError, match=r"tagsmith\[why\]"):
        integrated(classifier(tiny_folder), TEXT, 0)
