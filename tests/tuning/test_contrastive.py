import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig
from tagsmith.errors import SettingError
from tagsmith.labels import Labels
from tagsmith.model.classifier import Scorer, build
from tagsmith.tuning.contrastive import pair_loss
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import tune
from tagsmith.tuning.recipes import Entrant, recipes_of

NAMES = Labels.of(["complaint", "praise"])


@pytest.fixture
def few(bert_folder, make_rows):
    """A tiny encoder, sixteen rows to learn from, and two hundred others."""
    classifier = build(bert_folder, ModelConfig(max_tokens=48), labels=NAMES, layers=None, seed=0)
    parts = {}
    for name, count, seed in (("train", 16, 0), ("validation", 200, 1)):
        texts, labels = zip(*make_rows(count, seed=seed), strict=True)
        parts[name] = Part(classifier.encoder.encode(texts), NAMES.encode(labels), np.arange(count))
    return classifier, parts


def settings(**tuning):
    given = {"method": "contrastive", "epochs": 20, "learning_rate": 2e-3, "precision": "fp32"} | tuning
    return Config.of({"tuning": given})


def never(truth, probs):
    return 0.0


def cosines(classifier, part):
    """The mean cosine of two texts of one label, and of two labels."""
    ids, lengths = part.tokens.ragged(np.arange(len(part.truth)))
    ids, lengths = torch.from_numpy(ids), torch.from_numpy(lengths)
    with torch.inference_mode():
        pooled = classifier.eval().pooled(classifier.backbone.embed(ids, lengths), lengths, start=0)
    unit = torch.nn.functional.normalize(pooled, dim=1).numpy()
    alike = part.truth[:, None] == part.truth[None, :]
    products = unit @ unit.T
    return products[alike & ~np.eye(len(unit), dtype=bool)].mean(), products[~alike].mean()


def test_texts_of_a_label_come_together_and_others_apart(few):
    classifier, parts = few
    before = cosines(classifier, parts["train"])
    tune(classifier, parts, settings(), metric=never)
    after = cosines(classifier, parts["train"])
    assert after[0] - after[1] > before[0] - before[1] + 0.3


def test_new_texts_are_read_better_than_by_a_head_on_the_frozen_backbone(few, bert_folder):
    classifier, parts = few
    truth = parts["validation"].truth

    def right(which):
        return (Scorer(which).logits(parts["validation"].tokens).argmax(axis=1) == truth).mean()

    alone = build(bert_folder, ModelConfig(max_tokens=48), labels=NAMES, layers=None, seed=0)
    tune(alone, parts, settings(method="head"), metric=never)
    tune(classifier, parts, settings(epochs=40), metric=never)
    assert right(classifier) > right(alone)


def test_the_same_seed_gives_the_same_weights(few, bert_folder):
    classifier, parts = few
    tune(classifier, parts, settings(epochs=3), metric=never)
    again = build(bert_folder, ModelConfig(max_tokens=48), labels=NAMES, layers=None, seed=0)
    tune(again, parts, settings(epochs=3), metric=never)
    for one, two in zip(classifier.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_loss_is_least_where_cosines_say_all():
    apart = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    assert pair_loss(apart, torch.tensor([0, 0, 1])) == pytest.approx(0.0)
    assert pair_loss(apart, torch.tensor([0, 1, 1])) > 0.7
    assert torch.isfinite(pair_loss(apart, torch.tensor([0, 1, 2])))  # no two of a label


def test_label_sets_are_refused(few):
    classifier, parts = few
    sets = {name: Part(part.tokens, np.eye(2, dtype=bool)[part.truth]) for name, part in parts.items()}
    with pytest.raises(SettingError, match="a text may have several"):
        tune(classifier, sets, settings(), metric=never)


def test_a_search_tries_it_where_each_label_has_a_few_rows(few):
    classifier, parts = few
    auto = Config.of({"tuning": {"method": "auto"}})
    kinds = {}
    for rows in (16, 100, 200):
        several = np.resize(np.arange(16), rows)
        train = Part(parts["train"].tokens.of_texts(several), parts["train"].truth[several])
        entrant = Entrant("toy", classifier, {**parts, "train": train}, frozen=1e-6, step=1e-5)
        found = recipes_of(entrant, auto, depths=[3], head=(3, "mean"))
        kinds[rows] = [recipe.applied(auto).tuning.method for recipe in found]
    assert kinds[16][0] == kinds[100][0] == "contrastive"
    assert "last_layers" not in kinds[16]
    assert "last_layers" in kinds[100]
    assert "contrastive" not in kinds[200]
