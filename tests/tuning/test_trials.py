import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.encoding import Tokens
from tagsmith.labels import Labels
from tagsmith.tuning.learner import Part
from tagsmith.tuning.losses import row_losses
from tagsmith.tuning.trials import ENOUGH, Judged, draw_sample, folds_of, judged, try_lexical


def part_of(count, *, groups=None, labels=2):
    tokens = Tokens(
        np.arange(count, dtype=np.int32),
        np.arange(count + 1, dtype=np.int64),
        np.arange(count),
        np.zeros(count, dtype=bool),
    )
    return Part(tokens, np.arange(count) % labels, np.arange(count) if groups is None else groups)


def test_a_large_table_is_judged_on_a_thousand_rows_that_nobody_learns_from():
    parts = {
        "train": part_of(5000, groups=np.arange(5000) // 3),
        "validation": part_of(300),
        "calibration": part_of(200),
    }
    sample = draw_sample(parts, rows=1500, seed=1)
    ((fit, held),) = sample.folds
    assert len(fit) == 1500
    assert len(held) == ENOUGH
    whole = sample.of(parts)
    origin = np.concatenate([np.full(len(rows), i) for i, rows in enumerate(sample.rows.values())])
    assert set(origin[fit]) == {0}
    assert set(origin[held]) == {0, 1, 2}
    extra = held[origin[held] == 0]
    assert not set(whole.groups[fit]) & set(whole.groups[extra])
    assert not set(fit) & set(held)


@given(sizes=st.lists(st.integers(1, 5), min_size=3, max_size=60), seed=st.integers(0, 99))
def test_in_folds_each_row_is_judged_once_and_groups_stay_whole(sizes, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rounds = folds_of(groups, seed=seed)
    assert sorted(np.concatenate([held for _, held in rounds])) == list(range(len(groups)))
    for fit, held in rounds:
        assert not set(groups[fit]) & set(groups[held])
        assert len(fit) + len(held) == len(groups)


def test_a_small_table_is_judged_whole():
    parts = {"train": part_of(200), "validation": part_of(40)}
    sample = draw_sample(parts, rows=1500, seed=3)
    assert len(sample.folds) == 3
    assert sorted(sample.judged) == list(range(240))
    assert sample.of(parts).truth.tolist() == [*parts["train"].truth, *parts["validation"].truth]


def test_the_rows_of_a_sample_are_the_same_texts_for_every_backbone():
    parts = {"train": part_of(50), "validation": part_of(9)}
    sample = draw_sample(parts, rows=20, seed=0)
    texts = {name: [f"{name} {i}" for i in range(len(part.truth))] for name, part in parts.items()}
    chosen = sample.texts(texts)
    assert len(chosen) == 29
    ids = sample.of(parts).tokens.ids
    assert [int(text.split()[1]) for text in chosen] == ids.tolist()


def test_being_too_sure_costs_a_candidate_nothing():
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, size=600)
    logits = 2 * np.eye(3)[truth] + random.normal(size=(600, 3))
    plain, sure = (judged(each, truth, np.arange(600)) for each in (logits, 30 * logits))
    assert sure.loss == pytest.approx(plain.loss, rel=1e-3)
    raw = row_losses(torch.from_numpy(30 * logits), torch.from_numpy(truth)).mean()
    assert raw > 3 * plain.loss


def verdict(loss_H, right_H=None):
    loss_H = np.asarray(loss_H, dtype=float)
    right_H = np.ones(len(loss_H), dtype=bool) if right_H is None else right_H
    return Judged(loss_H, right_H, np.zeros((len(loss_H), 2)))


def test_a_candidate_is_no_worse_within_half_a_standard_error_and_three_tenths_of_a_point():
    random = np.random.default_rng(1)
    best = random.exponential(size=1000)
    noise = random.normal(size=1000) - random.normal(size=1000).mean()
    error = noise.std(ddof=1) / np.sqrt(1000)
    near, far = best + noise - noise.mean() + 0.4 * error, best + noise - noise.mean() + 0.6 * error
    assert verdict(near).is_no_worse(verdict(best))
    assert not verdict(far).is_no_worse(verdict(best))
    wrong = np.arange(1000) >= 4  # 0.4 points fewer
    assert not verdict(near, wrong).is_no_worse(verdict(best))


def test_intervals_of_a_verdict_hold_its_values_and_stay_within_shares():
    plain = verdict(np.linspace(0, 1, 50), np.arange(50) > 0).as_dict()
    assert plain["n"] == 50
    for name in ("loss", "accuracy"):
        assert plain[name]["low"] <= plain[name]["value"] <= plain[name]["high"]
    assert plain["accuracy"]["high"] <= 1


@pytest.mark.parametrize("multi_label", [False, True])
def test_tfidf_is_judged_on_the_same_rows(make_rows, multi_label):
    texts, labels = zip(*make_rows(120, seed=0), strict=True)
    names = Labels.of(["complaint", "praise"], multi_label=multi_label)
    truth = names.encode_sets([[label] for label in labels]) if multi_label else names.encode(labels)
    part = Part(part_of(120).tokens, truth, np.arange(120))
    sample = draw_sample({"train": part}, rows=120, seed=0)
    found = try_lexical(sample.texts({"train": texts}), sample.of({"train": part}), sample, labels=names, seed=0)
    assert found.loss_H.shape == (120,)
    assert found.right_H.mean() > 0.8


def test_each_round_has_rows_of_each_label_to_learn_from():
    truth = np.repeat(np.arange(4), 3)
    for fit, held in folds_of(np.arange(12), seed=0, truth=truth):
        assert np.bincount(truth[fit], minlength=4).tolist() == [2, 2, 2, 2]
        assert np.bincount(truth[held], minlength=4).tolist() == [1, 1, 1, 1]


def test_few_rows_are_cut_into_folds_several_times_and_count_once():
    parts = {"train": part_of(90, groups=np.arange(90) // 2), "validation": part_of(30, groups=100 + np.arange(30))}
    once = draw_sample(parts, rows=90, seed=0)
    sample = once.repeated(3, parts, seed=0)
    assert (sample.count, sample.repeats, len(sample.folds)) == (120, 3, 9)
    for (_, again), (_, first) in zip(sample.folds[:3], once.folds, strict=True):
        assert np.array_equal(again, first)
    assert np.bincount(sample.judged).tolist() == [3] * 120
    assert not np.array_equal(sample.folds[0][1], sample.folds[3][1])
    groups = sample.of(parts).groups
    for fit, held in sample.folds:
        assert not set(groups[fit]) & set(groups[held])


def test_rows_that_are_judged_by_validation_rows_are_not_cut_again():
    parts = {"train": part_of(5000), "validation": part_of(1000)}
    sample = draw_sample(parts, rows=500, seed=0)
    assert sample.repeated(3, parts, seed=0) is sample


def test_a_row_that_is_judged_three_times_weighs_as_much_as_one_judged_once():
    random = np.random.default_rng(3)
    truth = random.integers(0, 2, size=200)
    rounds = [random.permutation(200) for _ in range(3)]
    logits = [np.eye(2)[truth[rows]] + random.normal(size=(200, 2)) for rows in rounds]
    thrice = judged(np.concatenate(logits), truth, np.concatenate(rounds))
    single = [judged(own, truth, rows) for own, rows in zip(logits, rounds, strict=True)]
    assert thrice.loss_H.shape == thrice.right_H.shape == (200,)
    assert thrice.right_H == pytest.approx(np.mean([each.right_H for each in single], axis=0))
    assert thrice.loss == pytest.approx(np.mean([each.loss for each in single]), rel=0.02)
    low, high = (thrice.as_dict()["loss"][end] for end in ("low", "high"))
    spread = thrice.loss_H.std(ddof=1) / np.sqrt(200)
    assert (high - low) / 2 == pytest.approx(1.96 * spread)


def test_labels_that_take_turns_in_a_table_do_not_spoil_the_temperature():
    random = np.random.default_rng(0)
    truth = np.arange(600) % 2
    logits = np.eye(2)[truth] + random.normal(size=(600, 2))
    shuffled = random.permutation(600)
    turns, mixed = (judged(logits[rows], truth, rows) for rows in (np.arange(600), shuffled))
    assert turns.loss == pytest.approx(mixed.loss, rel=1e-6)
    raw = row_losses(torch.from_numpy(logits), torch.from_numpy(truth)).mean()
    assert turns.loss < 1.02 * raw
