import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig
from tagsmith.events import listened, silent
from tagsmith.labels import Labels
from tagsmith.model.activations import FrozenBlocks, frozen_states, states_by_depth
from tagsmith.model.classifier import build
from tagsmith.tuning import depth as depth_module
from tagsmith.tuning.depth import _better_pooling, _kept, choose_depth, shortlist
from tagsmith.tuning.learner import Part
from tagsmith.tuning.methods import cut_copy
from tagsmith.tuning.trials import Sample

NAMES = Labels.of(["complaint", "praise"])
TEXTS = ["a lovely room", "x", "the waiter was rude and the soup was cold", "breakfast at nine, dinner at seven"]


def classifier_of(folder, *, layers=None):
    config = ModelConfig(max_tokens=48)
    return build(folder, config, labels=NAMES, layers=layers, seed=0).eval().requires_grad_(False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert"])
def test_states_of_every_depth_are_those_of_a_backbone_cut_there(family, make_folder):
    whole = classifier_of(make_folder(family))
    tokens = whole.encoder.encode(TEXTS)
    depths = range(whole.backbone.depth + 1)
    every = FrozenBlocks(whole.backbone, stop=whole.backbone.depth, dtype=torch.float32)
    found = listened(states_by_depth(every, tokens, depths), silent)
    assert set(found) == set(depths)
    for depth in depths:
        frozen = FrozenBlocks(whole.backbone, stop=depth, dtype=torch.float32)
        expected_TD = listened(frozen_states(frozen, tokens), silent).hidden_TD
        torch.testing.assert_close(found[depth].hidden_TD, expected_TD, atol=1e-5, rtol=1e-5)


def losses(means, *, noise=0.02, rows=200):
    random = np.random.default_rng(0)
    common_N = random.exponential(size=rows)
    return {depth: mean + common_N + noise * random.normal(size=rows) for depth, mean in means.items()}


def test_the_shortlist_holds_the_best_probe_one_deeper_and_all_blocks():
    means = {2: 0.9, 5: 0.5, 8: 0.2, 11: 0.4, 14: 0.5, 17: 0.6, 20: 0.7}
    assert shortlist(losses(means)) == [8, 14, 20]


def test_the_least_deep_of_equally_good_probes_is_on_the_shortlist():
    flat = losses(dict.fromkeys((2, 5, 8, 11, 14), 0.5), noise=0.0)
    assert shortlist(flat) == [2, 8, 14]


@pytest.mark.parametrize("best", [8, 17, 20])
def test_the_shortlist_has_three_depths_wherever_the_best_probe_is(best):
    means = dict.fromkeys((2, 5, 8, 11, 14, 17, 20), 0.9) | {best: 0.1}
    found = shortlist(losses(means))
    assert len(found) >= 3
    assert {best, 20} <= set(found)


def test_a_backbone_of_two_blocks_has_two_depths():
    assert shortlist(losses({1: 0.5, 2: 0.4})) == [1, 2]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_cut_copy_answers_as_the_cut_backbone_and_shares_what_is_frozen(family, make_folder):
    folder = make_folder(family)
    whole, cut = classifier_of(folder), classifier_of(folder, layers=2)
    cut.head.load_state_dict(whole.head.state_dict())
    copied = cut_copy(whole, 2, start=1)
    tokens = whole.encoder.encode(TEXTS)
    ids_BL, lengths_B = (torch.from_numpy(each) for each in tokens.padded(np.arange(len(TEXTS))))
    torch.testing.assert_close(copied(ids_BL, lengths_B), cut(ids_BL, lengths_B))
    assert whole.backbone.depth == 3
    for i in (0, 1):
        own, other = (list(each.backbone.blocks[i].parameters()) for each in (whole, copied))
        assert {one is two for one, two in zip(own, other, strict=True)} == {i == 0}


def parts_of(classifier, make_rows):
    found = {}
    for seed, (name, count) in enumerate({"train": 160, "validation": 60, "calibration": 30}.items()):
        texts, labels = zip(*make_rows(count, seed=seed), strict=True)
        found[name] = Part(classifier.encoder.encode(texts), NAMES.encode(labels))
    return found


@pytest.mark.parametrize("method", ["head", "last_layers", "full"])
def test_a_depth_is_chosen_between_short_tunings_and_the_classifier_is_left_alone(
    method, tiny_folder, make_rows, heard
):
    classifier = classifier_of(tiny_folder)
    before = {name: weight.clone() for name, weight in classifier.named_parameters()}
    parts = parts_of(classifier, make_rows)
    config = Config.of({"tuning": {"method": method, "blocks": 1, "precision": "fp32", "learning_rate": 5e-3}})
    choice, _ = choose_depth(classifier, parts, config, listen=heard.append)
    assert [tried.layers for tried in choice.tunings] == [1, 2, 3]
    assert choice.rows["validation"] == 250, "all rows of a small table are judged, in folds"
    trials = [event for event in heard if event.stage == "tuning" and event.name == "trial"]
    ended = [event.values["layers"] for event in trials if event.step == event.total]
    assert ended == ([] if method == "head" else [layers for layers in (1, 2, 3) for _ in range(3)])
    assert {(probed.layers, probed.pooling) for probed in choice.probes} == {
        (depth, how) for depth in (1, 2, 3) for how in ("last", "mean")
    }
    assert choice.layers in (1, 2, 3)
    chosen = next(tried for tried in choice.tunings if tried.layers == choice.layers)
    best = min(choice.tunings, key=lambda tried: tried.loss)
    assert choice.cost == pytest.approx(chosen.loss - best.loss, abs=1e-6)
    assert choice.low <= choice.cost <= choice.high
    assert choice == choose_depth(classifier, parts, config)[0]
    assert all(torch.equal(before[name], weight) for name, weight in classifier.named_parameters())
    assert classifier.backbone.depth == 3


def test_short_tunings_begin_as_the_training_will(tiny_folder, make_rows):
    classifier = classifier_of(tiny_folder)
    parts, tried = parts_of(classifier, make_rows), {}
    for start in ("random", "probe"):
        tuning = {"method": "last_layers", "blocks": 1, "precision": "fp32", "start": start}
        tried[start] = [each.loss for each in choose_depth(classifier, parts, Config.of({"tuning": tuning}))[0].tunings]
    assert np.abs(np.subtract(tried["random"], tried["probe"])).min() > 1e-3


@pytest.mark.parametrize(("most", "is_whole"), [(160, True), (159, False)])
def test_what_all_rows_have_been_through_is_handed_over(most, is_whole, tiny_folder, make_rows, monkeypatch):
    monkeypatch.setattr(depth_module, "LEARNT_FROM", most)
    classifier = classifier_of(tiny_folder)
    parts = parts_of(classifier, make_rows)
    config = Config.of({"tuning": {"method": "last_layers", "blocks": 1, "precision": "fp32"}})
    choice, states = choose_depth(classifier, parts, config)
    assert set(states) == (set(parts) if is_whole and choice.layers > 1 else set())
    frozen = FrozenBlocks(classifier.backbone, stop=choice.layers - 1, dtype=torch.float32)
    for name, own in states.items():
        expected = listened(frozen_states(frozen, parts[name].tokens), silent)
        torch.testing.assert_close(own.hidden_TD, expected.hidden_TD, atol=1e-5, rtol=1e-5)


def test_rows_in_an_order_of_their_own_are_handed_over_in_that_of_their_part(tiny_folder, make_rows):
    classifier = classifier_of(tiny_folder)
    parts = parts_of(classifier, make_rows)
    frozen = FrozenBlocks(classifier.backbone, stop=1, dtype=torch.float32)
    random = np.random.default_rng(0)
    sample = Sample({name: random.permutation(len(part.truth)) for name, part in parts.items()}, ())
    states = listened(states_by_depth(frozen, sample.of(parts).tokens, [1]), silent)[1]
    for name, own in _kept(parts, sample, states).items():
        expected = listened(frozen_states(frozen, parts[name].tokens), silent)
        torch.testing.assert_close(own.hidden_TD, expected.hidden_TD, atol=1e-5, rtol=1e-5)


def test_the_pooling_of_the_better_probe_is_taken_unless_it_was_given(tiny_folder, make_rows):
    whole = classifier_of(tiny_folder)
    parts = parts_of(whole, make_rows)
    tuning = {"method": "head", "precision": "fp32"}
    free, _ = choose_depth(whole, parts, Config.of({"tuning": tuning}))
    best = min(free.probes, key=lambda probed: probed.loss)
    assert free.pooling in (best.pooling, "last")
    for given in ("last", "mean"):
        whole.pooling = given
        choice, _ = choose_depth(whole, parts, Config.of({"tuning": tuning, "model": {"pooling": given}}))
        assert choice.pooling == given


def test_a_clearly_better_pooling_wins_and_a_tie_goes_to_the_own_one():
    assert _better_pooling({"last": losses({1: 0.5, 2: 0.4}), "mean": losses({1: 0.1, 2: 0.2})}) == "mean"
    last, mean = (losses(means, noise=0.0) for means in ({1: 0.5, 2: 0.4}, {1: 0.4, 2: 0.5}))
    assert _better_pooling({"last": last, "mean": mean}) == "last"
