import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig
from tagsmith.data.encoding import mean_of_pieces
from tagsmith.evaluation.selection import selection_metric
from tagsmith.labels import Labels
from tagsmith.model.classifier import Scorer, build
from tagsmith.tuning.learner import Part
from tagsmith.tuning.long_texts import Sample, choose_long_texts
from tagsmith.tuning.loop import Loop

NAMES = Labels.of(["complaint", "praise"])


def classifier_of(folder, **model):
    config = ModelConfig(**({"max_tokens": 16} | model))
    return build(folder, config, labels=NAMES, layers=None, seed=0).eval().requires_grad_(False)


def sample(count, *, seed, place):
    """Texts of 60 bytes of noise with one telling word at their start or end."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, size=count)
    noise = ["".join(random.choice(list("abcdefgh "), size=50)) for _ in range(count)]
    words = ["zzzzzzzzzz" if label else "1111111111" for label in truth]
    texts = [
        {"start": word + filler, "end": filler + word, "middle": filler[:25] + word + filler[25:]}[place]
        for word, filler in zip(words, noise, strict=True)
    ]
    return Sample(texts, truth)


@pytest.mark.parametrize(("place", "policies"), [("start", {"head"}), ("end", {"tail"}), ("middle", {"windows"})])
def test_the_policy_that_reads_the_telling_words_is_chosen(place, policies, tiny_folder):
    classifier = classifier_of(tiny_folder)
    train, validation = sample(200, seed=1, place=place), sample(120, seed=2, place=place)
    choice = choose_long_texts(classifier, train, validation, dtype=torch.float32, seed=0)
    assert choice.policy in policies
    assert set(choice.losses) == {"head", "tail", "head_tail", "windows"}


def test_there_is_nothing_to_choose_where_all_texts_are_short(tiny_folder):
    short = Sample(["a b", "c d"] * 10, np.array([0, 1] * 10))
    choice = choose_long_texts(classifier_of(tiny_folder), short, short, dtype=torch.float32, seed=0)
    assert (choice.policy, choice.losses) == ("head", {})


def test_several_labels_a_text_can_choose_too(tiny_folder):
    train, validation = sample(150, seed=1, place="end"), sample(80, seed=2, place="end")
    both = [Sample(each.texts, np.stack([each.truth == 0, each.truth == 1], axis=1)) for each in (train, validation)]
    assert choose_long_texts(classifier_of(tiny_folder), *both, dtype=torch.float32, seed=0).policy == "tail"


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_answer_to_a_text_in_windows_is_the_mean_over_them(family, make_folder):
    classifier = classifier_of(make_folder(family), long_texts="windows")
    text = " ".join(str(i) for i in range(40))
    tokens = classifier.encoder.encode(["short", text])
    ids_BL, lengths = tokens.padded(np.arange(len(tokens.rows)))
    logits_PC = classifier(torch.from_numpy(ids_BL), torch.from_numpy(lengths)).numpy()
    expected = np.stack([logits_PC[tokens.rows == row].mean(axis=0) for row in (0, 1)])
    np.testing.assert_allclose(Scorer(classifier).logits(tokens), expected, atol=1e-5)
    np.testing.assert_allclose(mean_of_pieces(logits_PC, tokens.rows, texts=2), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["last_layers", "full"])
def test_a_step_learns_from_the_mean_over_windows(method, tiny_folder):
    """The loss of a step equals that of whole texts whose logits are averaged, from kept states and from tokens."""
    classifier = classifier_of(tiny_folder, long_texts="windows")
    texts = [" ".join(str(i + j) for i in range(30)) for j in range(6)] + ["short", "tiny"]
    truth = np.array([0, 1] * 4)
    part = Part(classifier.encoder.encode(texts), truth)
    settings = {"method": method, "blocks": 1, "batch_size": 8, "epochs": 1, "precision": "fp32"}
    logits_NC = torch.from_numpy(Scorer(classifier).logits(part.tokens))
    expected = torch.nn.functional.cross_entropy(logits_NC, torch.from_numpy(truth)).item()
    loop = Loop(
        classifier,
        {"train": part, "validation": part},
        Config.of({"tuning": settings}),
        metric=selection_metric("log_loss"),
    )
    losses = [event.values["loss"] for event in loop.events() if event.name == "step"]
    assert losses == [pytest.approx(expected, abs=1e-5)]
