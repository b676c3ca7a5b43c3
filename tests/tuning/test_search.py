import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tagsmith.config import Config, ModelConfig
from tagsmith.labels import Labels
from tagsmith.model.classifier import build
from tagsmith.tuning import entering
from tagsmith.tuning.budget import Clock, budget_of, trials_end
from tagsmith.tuning.candidates import Candidate, chosen_of
from tagsmith.tuning.entering import enter, within_reach
from tagsmith.tuning.halving import Cost
from tagsmith.tuning.learner import Part
from tagsmith.tuning.recipes import Entrant, Recipe, pinned, recipes_of
from tagsmith.tuning.search import _for_one_trial, _Look, search
from tagsmith.tuning.trials import Judged, Sample, draw_sample, lexical_seconds, try_recipe
from tagsmith.tuning.winner import fit_to_time

NAMES = Labels.of(["complaint", "praise"])
AUTO = {"tuning": {"method": "auto", "precision": "fp32", "budget": "60s"}}
QUICK = {
    "tuning": AUTO["tuning"] | {"learning_rate": 2e-4, "batch_size": 64, "start": "random"},
    "model": {"layers": 2},
}
"""Few recipes are left where the user has given so much."""


def parts_of(classifier, make_rows, counts):
    parts, texts = {}, {}
    for seed, (name, count) in enumerate(counts.items()):
        own, labels = zip(*make_rows(count, seed=seed), strict=True)
        texts[name] = own
        parts[name] = Part(classifier.encoder.encode(own), NAMES.encode(labels), np.arange(count))
    return parts, texts


@pytest.fixture
def compete(make_folder, make_rows):
    """Entrants of some families with toy rows, and the texts of these."""

    def made(*families, counts=None, config=None):
        entrants, texts = [], {}
        for family in families:
            classifier = build(make_folder(family), ModelConfig(max_tokens=48), labels=NAMES, layers=None, seed=0)
            parts, texts = parts_of(classifier, make_rows, counts or {"train": 160, "validation": 40})
            entrants.append(enter(family, classifier.eval(), parts, config or Config.of(AUTO)))
        return entrants, texts

    return made


def test_speeds_are_measured_and_the_classifier_is_left_alone(make_folder, make_rows):
    classifier = build(make_folder("llama"), ModelConfig(max_tokens=48), labels=NAMES, layers=None, seed=0)
    before = {name: weight.clone() for name, weight in classifier.named_parameters()}
    parts, _ = parts_of(classifier, make_rows, {"train": 80, "validation": 20})
    entrant = enter("toy", classifier, parts, Config.of(AUTO))
    assert entrant.frozen > 0
    assert entrant.step > 0
    assert all(torch.equal(before[name], weight) for name, weight in classifier.named_parameters())


def test_a_search_judges_all_on_the_same_rows_and_names_a_recipe(compete, heard):
    entrants, texts = compete("llama", "bert")
    before = [{name: weight.clone() for name, weight in each.classifier.named_parameters()} for each in entrants]
    config = Config.of({"tuning": AUTO["tuning"] | {"batch_size": 64, "start": "random"}, "model": {"layers": 2}})
    quick = [replace(each, step=1e-7, frozen=1e-8) for each in entrants]  # measured speeds depend on what else runs
    found = search(quick, texts, config, clock=Clock(20.0, 0.0, now=lambda: 0.0), listen=heard.append)
    verdicts = [each.verdict for each in found.candidates]
    assert {len(verdict.loss_H) for verdict in verdicts} == {200}
    assert (found.sample["judged"], found.sample["folds"], found.sample["repeats"]) == (200, 3, 3)
    assert {each.recipe.backbone for each in found.candidates if each.recipe} == {"llama", "bert"}
    assert {each.kind for each in found.candidates} >= {"tfidf", "head", "last_layers"}
    assert found.recipe.applied(Config.of(AUTO)).tuning.method != "auto"
    assert isinstance(found.recipe.applied(Config.of(AUTO)).model.layers, int)
    assert [event.values["name"] for event in heard if event.name == "candidate"] == [c.name for c in found.candidates]
    plain = json.loads(json.dumps(found.as_dicts()))
    assert [each["number"] for each in plain] == list(range(1, len(plain) + 1))
    losses = [each["validation"]["loss"]["value"] for each in plain]
    assert losses == sorted(losses)
    assert sum(each["chosen"] for each in plain) == 1
    for own, each in zip(before, entrants, strict=True):
        assert all(torch.equal(own[name], weight) for name, weight in each.classifier.named_parameters())


def test_the_same_search_finds_the_same(compete):
    entrants, texts = compete("llama")
    clock = Clock(60.0, 0.0, now=lambda: 0.0)
    one, two = (search(entrants, texts, Config.of(QUICK), clock=clock) for _ in range(2))
    assert one.as_dicts() == two.as_dicts()
    assert one.recipe == two.recipe


def test_with_less_time_all_learn_from_few_rows_and_the_best_from_more(compete, monkeypatch):
    monkeypatch.setattr("tagsmith.tuning.halving.FEWEST", 1)
    config = Config.of({"tuning": AUTO["tuning"] | {"batch_size": 64, "start": "random"}})
    entrants, texts = compete("llama", counts={"train": 60, "validation": 20}, config=config)
    tokens = entrants[0].tokens("train")
    slow = [
        replace(each, step=0.5 / tokens, frozen=1e-9) for each in entrants
    ]  # five seconds for a trial of two blocks
    found = search(slow, texts, config, clock=Clock(44.0, 0.0, now=lambda: 0.0))
    rungs = found.sample["rungs"]
    assert len(rungs) > 1
    tunings = [each for each in found.candidates if each.kind not in ("tfidf", "head") and each.hybrid == "none"]
    assert len(tunings) == rungs[0]["entrants"]
    assert sum(each.learnt == 1 for each in tunings) == rungs[-1]["entrants"]
    assert found.candidates[found.chosen].learnt == 1
    stayed = [each for each in tunings if each.learnt < 1]
    assert all(len(each.verdict.loss_H) == len(tunings[-1].verdict.loss_H) for each in stayed)


def test_the_cheapest_trial_may_take_longer_if_its_training_can_begin_then():
    costs, trainings = [Cost(50.0, 4.0), Cost(20.0, 2.0)], [300.0, 120.0]

    def until(spent):
        return _for_one_trial(costs, trainings, Clock(120.0, 0.0, now=lambda: spent))

    begun = 0.95 * 120 - 22 - 0.35 * 120
    assert until(30.0) == pytest.approx((30 + 1.01 * 22) / 120)
    assert until(begun - 0.1) > 0
    assert until(begun + 0.1) == 0


def test_one_tuning_is_tried_where_trials_have_time_for_none(compete, monkeypatch):
    entrants, texts = compete("bert", counts={"train": 120, "validation": 40})
    tokens = entrants[0].tokens("train")
    slow = [replace(each, step=3.6 / tokens, frozen=1e-9) for each in entrants]  # a trial: 19 seconds of 18

    def tried():
        found = search(slow, texts, Config.of(AUTO), clock=Clock(40.0, 0.0, now=lambda: 0.0))
        return [each.verdict for each in found.candidates if each.kind == "last_layers" and each.hybrid == "none"]

    assert len(tried()) == 1
    monkeypatch.setattr("tagsmith.tuning.search.BEGUN", 1e9)
    assert tried() == []


def test_without_time_for_a_tuning_a_head_alone_is_found(compete):
    entrants, texts = compete("llama")
    slow = [replace(each, step=1e6) for each in entrants]
    found = search(slow, texts, Config.of(QUICK), clock=Clock(60.0, 0.0, now=lambda: 0.0))
    assert {each.kind for each in found.candidates} == {"tfidf", "head"}
    assert found.recipe.applied(Config.of(AUTO)).tuning.method == "head"


def test_a_backbone_whose_look_takes_too_much_of_the_budget_does_not_compete(toy):
    quick, slow = replace(toy, name="quick", frozen=1e-7), replace(toy, name="slow", frozen=1e-1)
    rows = sum(len(part.truth) for part in toy.parts.values())
    assert rows < 200, "a table that has fewer rows than a sample is looked at as a whole"
    look = rows * toy.tokens("train") / len(toy.parts["train"].truth) * toy.depth
    enough = 2 * look * (slow.frozen + quick.frozen) / 0.45

    def names(entrants, budget):
        return [each.name for each in within_reach(entrants, Clock(budget, 0.0, now=lambda: 0.0))]

    assert names([slow, quick], 1.01 * enough) == ["quick", "slow"]
    assert names([slow, quick], 0.99 * enough) == ["quick"]
    assert names([slow], 1.0) == ["slow"], "one there must be"


def test_a_backbone_that_could_not_be_trained_on_all_rows_does_not_compete(toy, make_rows):
    parts, _ = parts_of(toy.classifier, make_rows, {"train": 4000, "validation": 20})
    quick = replace(toy, name="quick", parts=parts, frozen=1e-7)
    slow = replace(quick, name="slow", frozen=1e-4)
    half = slow.tokens("train") * slow.depth / 2 * slow.frozen
    names = [
        [each.name for each in within_reach([slow, quick], Clock(budget, 0.0, now=lambda: 0.0))]
        for budget in (2.02 * half, 1.98 * half)
    ]
    assert names == [["quick", "slow"], ["quick"]]


@pytest.mark.parametrize(
    ("trainings", "members", "expected"),
    [([], 1, 0.85), ([10.0, 50.0], 2, 0.65), ([200.0, 900.0], 1, 0.45), ([360.0, 900.0], 1, 0.35), ([900.0], 1, 0.3)],
)
def test_trials_end_by_how_long_the_training_after_them_may_take(trainings, members, expected):
    assert trials_end(trainings, 600.0, members=members) == pytest.approx(expected)


def test_where_a_pass_is_dear_fewer_rows_are_looked_at(compete):
    entrants, texts = compete("bert", counts={"train": 1400, "validation": 1000})
    seconds = entrants[0].tokens("train") / 1400 * entrants[0].depth
    dear = [replace(each, frozen=0.15 * 60 / (300 * seconds), step=1.0) for each in entrants]  # time for 300 rows
    found = search(dear, texts, Config.of(AUTO), clock=Clock(60.0, 0.0, now=lambda: 0.0))
    assert found.sample["judged"] == 150
    assert found.sample["learnt_from"] == 150
    dearer = [replace(each, frozen=10 * each.frozen) for each in dear]
    found = search(dearer, texts, Config.of(AUTO), clock=Clock(60.0, 0.0, now=lambda: 0.0))
    assert (found.sample["judged"], found.sample["learnt_from"]) == (150, 60)
    own = found.recipe.applied(Config.of(AUTO)).tuning
    assert own.method == "head"
    assert found.recipe.applied(Config.of(AUTO)).model.layers == 1, "not even one block has time for all held-out rows"
    assert own.most_rows < 1400
    assert any(f"There is time for {own.most_rows} of 1400 training rows" in text for text in found.texts)


def test_a_step_of_long_texts_is_timed_on_a_few_of_them(compete, monkeypatch):
    timed = []
    step_seconds = entering.step_seconds
    monkeypatch.setattr(
        entering, "step_seconds", lambda *args, **kw: (timed.append(args[2]), step_seconds(*args, **kw))[1]
    )
    monkeypatch.setattr(entering, "TOKENS_TIMED", 100)
    compete("bert")
    assert 50 <= timed[0].sizes.sum() / timed[0].steps_per_epoch <= 100


def test_what_the_clock_drops_is_said_and_not_judged(compete):
    entrants, texts = compete("llama")
    seconds = [0.0]

    def forget_the_time(event):
        seconds[0] = 1e6 if event.name == "search" else seconds[0]  # after all was planned

    late = Clock(60.0, 0.0, now=lambda: seconds[0])
    found = search(entrants, texts, Config.of(QUICK), clock=late, listen=forget_the_time)
    dropped = [each for each in found.candidates if each.verdict is None]
    assert dropped
    assert all(each.kind != "head" for each in dropped)
    assert any(f"{len(dropped)} of" in text and "dropped" in text for text in found.texts)
    assert [each["validation"] for each in found.as_dicts()][-1] is None


def test_the_head_that_competes_is_the_best_that_there_is_time_for(toy):
    probes = {
        (depth, "last"): candidate("", np.full(4, loss)).verdict for depth, loss in ((1, 0.9), (2, 0.4), (3, 0.5))
    }
    look = _Look(toy, None, {}, probes)
    seconds = {
        depth: Recipe("toy", {"model": {"layers": depth}, "tuning": {"method": "head"}}).seconds(toy, Config.of(AUTO))
        for depth in (1, 2, 3)
    }
    chosen = [look._best_head(Config.of(AUTO), 1.01 * seconds[depth])[0] for depth in (3, 2, 1)]
    assert chosen == [2, 2, 1]
    assert look._best_head(Config.of(AUTO), 0.5 * seconds[1])[0] == 1


# ---- Hybrids


def test_hybrids_are_candidates_like_any_other_unless_the_user_says_which(compete):
    entrants, texts = compete("llama")
    clock = Clock(60.0, 0.0, now=lambda: 0.0)
    few = QUICK | {"tuning": QUICK["tuning"] | {"method": "auto"}}
    slow = [replace(each, step=1e6) for each in entrants]  # a head alone is quick to try
    found = search(slow, texts, Config.of(few), clock=clock)
    averaged = next(each for each in found.candidates if each.hybrid == "average")
    assert "averaged with TF-IDF" in averaged.name
    assert averaged.recipe.applied(Config.of(few)).tuning.hybrid == "average"
    assert 0 <= averaged.recipe.applied(Config.of(few)).tuning.hybrid_share <= 1  # 40 validation rows fit no weight
    assert {each.hybrid for each in found.candidates} == {"none", "average"}
    asked = {kind: Config.of({**few, "tuning": few["tuning"] | {"hybrid": kind}}) for kind in ("none", "average")}
    alone = search(slow, texts, asked["none"], clock=clock)
    assert {each.hybrid for each in alone.candidates} == {"none"}
    both = search(slow, texts, asked["average"], clock=clock)
    assert both.recipe.applied(asked["average"]).tuning.hybrid == "average"


def test_a_hybrid_wins_only_where_it_reads_better_and_a_cascade_where_it_is_no_worse():
    loss_H = np.random.default_rng(0).exponential(size=500)
    alone = candidate("alone", loss_H, weights=10)
    luck_H = np.random.default_rng(1).normal(scale=0.1, size=500)
    luck_H -= luck_H.mean() + 1e-4
    average = replace(candidate("average", loss_H + luck_H, weights=10), hybrid="average")
    cascade = replace(candidate("cascade", loss_H - luck_H, weights=10), hybrid="cascade", share=0.5)
    assert chosen_of([alone, average], is_whole=True, left=1e9) == 0
    better = replace(candidate("average", 0.8 * loss_H, weights=10), hybrid="average")
    assert chosen_of([alone, better], is_whole=True, left=1e9) == 1
    assert chosen_of([alone, average, cascade], is_whole=True, left=1e9) == 2
    assert chosen_of([alone, better], is_whole=True, left=1e9, hybrid="none") == 0


def test_with_a_few_rows_what_draws_texts_together_wins_unless_they_speak_against_it():
    loss_H = np.random.default_rng(0).exponential(size=40)
    luck_H = np.random.default_rng(1).normal(scale=0.5, size=40)
    together = candidate("together", loss_H, kind="contrastive", weights=9)
    lucky = candidate("head", loss_H + luck_H - luck_H.mean() - 0.02, kind="head")
    assert chosen_of([together, lucky], is_whole=True, left=1e9) == 1
    assert chosen_of([together, lucky], is_whole=True, left=1e9, few=True) == 0
    error = luck_H.std(ddof=1) / np.sqrt(40)
    for errors, wins in ((2.9, 0), (3.4, 1)):
        better = candidate("head", loss_H + luck_H - luck_H.mean() - errors * error, kind="head")
        assert chosen_of([together, better], is_whole=True, left=1e9, few=True) == wins
    mixed = replace(together, hybrid="average", verdict=lucky.verdict)
    assert chosen_of([together, mixed], is_whole=True, left=1e9, few=True) == 0, "TF-IDF of a few rows is no help"
    assert chosen_of([together, mixed], is_whole=True, left=1e9, few=True, hybrid="average") == 1


# ---- Recipes


def entrant_of(classifier, parts, *, frozen=1e-5, step=5e-5):
    return Entrant("toy", classifier, parts, frozen=frozen, step=step)


@pytest.fixture
def toy(make_folder, make_rows):
    classifier = build(make_folder("llama"), ModelConfig(max_tokens=48), labels=NAMES, layers=None, seed=0)
    parts, _ = parts_of(classifier, make_rows, {"train": 80, "validation": 20})
    return entrant_of(classifier, parts)


def test_no_recipe_changes_what_the_user_gave(toy):
    config = Config.of({"tuning": {"method": "auto", "epochs": 7, "learning_rate": 3e-3}, "model": {"layers": 2}})
    assert pinned(config, depth=3) == {"tuning": {"epochs": 7, "learning_rate": 3e-3}, "model": {"layers": 2}}
    for recipe in recipes_of(toy, config, depths=[2], head=(2, "last")):
        own = recipe.applied(config)
        assert (own.tuning.epochs, own.tuning.learning_rate, own.model.layers) == (7, 3e-3, 2)


def test_recipes_differ_and_leave_each_block_that_learns_its_place(toy):
    config = Config.of(AUTO)
    found = recipes_of(toy, config, depths=[1, 2, 3], head=(2, "mean"))
    assert len({recipe.name(config) for recipe in found}) == len(found)
    for recipe in found:
        own = recipe.applied(config)
        assert own.tuning.blocks <= own.model.layers or own.tuning.method != "last_layers"
        assert own.model.backbone == "toy"


def test_the_last_blocks_of_an_encoder_learn_first_where_there_is_no_time_for_all(compete):
    config = Config.of(AUTO)
    (encoder,), _ = compete("bert")

    def blocks(seconds):
        found = recipes_of(encoder, config, depths=[3], head=(3, encoder.classifier.pooling), seconds=seconds)
        own = [recipe.applied(config).tuning for recipe in found]
        return [tuning.blocks for tuning in own if tuning.method == "last_layers"]

    enough = Recipe("bert", {"model": {"layers": 3}, "tuning": {"method": "last_layers", "blocks": 3, "epochs": 4}})
    seconds = enough.seconds(encoder, config)
    assert blocks(1.01 * seconds) == [3, 3, 3]
    assert blocks(0.99 * seconds) == [2, 3, 3, 3]


def smoothing_of(encoder, config):
    found = [recipe.applied(config).tuning for recipe in recipes_of(encoder, config, depths=[3], head=(3, "mean"))]
    return {(tuning.method, tuning.label_smoothing) for tuning in found}


def test_where_blocks_of_an_encoder_learn_targets_are_smoothed_unless_the_user_says_how(compete):
    (encoder,), _ = compete("bert")
    assert smoothing_of(encoder, Config.of(AUTO)) >= {("last_layers", 0.1), ("head", 0.0)}
    given = Config.of({"tuning": AUTO["tuning"] | {"label_smoothing": 0.03}})
    assert {smoothing for _, smoothing in smoothing_of(encoder, given)} == {0.03}


def test_sets_of_labels_are_not_smoothed(compete):
    (encoder,), _ = compete("bert")
    several = {name: replace(part, truth=np.eye(2, dtype=bool)[part.truth]) for name, part in encoder.parts.items()}
    assert {smoothing for _, smoothing in smoothing_of(replace(encoder, parts=several), Config.of(AUTO))} == {0.0}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_nothing_that_a_winner_decides_is_left_in_another_that_is_taken(compete, family):
    from tagsmith.deployment.planned import UNSEARCHED

    (entrant,), _ = compete(family)
    config = Config.of({"tuning": {"method": "auto"}})
    for recipe in recipes_of(entrant, config, depths=[1, 2, 3], head=(2, "mean")):
        assert set(recipe.settings["tuning"]) <= {"method", *UNSEARCHED["tuning"]}


def test_the_time_of_tf_idf_is_reckoned_without_its_answers_and_by_words_alone_for_many_letters():
    sample = Sample({}, ((np.arange(10), np.arange(10, 40)),))
    assert lexical_seconds(4.0, sample, ["a text"] * 100) == pytest.approx(20.0)
    assert lexical_seconds(4.0, sample, ["a" * 110_000] * 100) == pytest.approx(5.0)


def test_forecast_seconds_grow_with_rows_epochs_and_blocks(toy):
    config = Config.of(AUTO)
    recipe = Recipe("toy", {"model": {"layers": 3}, "tuning": {"method": "last_layers", "blocks": 2, "epochs": 3}})
    assert (
        recipe.seconds(toy, config)
        > recipe.seconds(toy, config, rows=40)
        > recipe.seconds(toy, config, rows=40, epochs=1)
    )
    one, two = (recipe.with_tuning(blocks=blocks).trial_seconds(toy, config, rows=80, epochs=2) for blocks in (1, 2))
    assert two == pytest.approx(2 * one)
    tokens = toy.tokens("train")
    assert one == pytest.approx(2 * tokens * toy.step)


# ---- The choice, and what fits


def candidate(name, loss_H, *, kind="last_layers", weights=1):
    loss_H = np.asarray(loss_H, dtype=float)
    verdict = Judged(loss_H, np.ones(len(loss_H), dtype=bool), np.zeros((len(loss_H), 2)))
    return Candidate(name, kind, Recipe("toy", {}), verdict, 1.0, weights)


def test_the_smallest_of_equals_wins_and_a_clearly_better_one_beats_it():
    loss_H = np.random.default_rng(0).exponential(size=500)
    equals = [candidate("large", loss_H, weights=9), candidate("small", loss_H[::-1], weights=2)]
    assert chosen_of(equals, is_whole=True, left=1e9) == 1
    assert chosen_of([*equals, candidate("better", 0.5 * loss_H, weights=99)], is_whole=True, left=1e9) == 2


def test_a_head_alone_beats_a_tuning_only_where_all_rows_were_looked_at():
    loss_H = np.random.default_rng(0).exponential(size=500)
    both = [candidate("head", 0.9 * loss_H, kind="head"), candidate("tuned", loss_H)]
    assert chosen_of(both, is_whole=True, left=1e9) == 0
    assert chosen_of(both, is_whole=False, left=1e9) == 1
    assert chosen_of(both[:1], is_whole=False, left=1e9) == 0


def test_a_winner_has_time_for_most_of_its_epochs_unless_it_is_better_the_fewer_the_more():
    loss_H = np.random.default_rng(0).exponential(size=500)
    slow, quick = replace(candidate("slow", 0.9 * loss_H), seconds=100.0), candidate("quick", loss_H)
    assert chosen_of([slow, quick], is_whole=True, left=90.0) == 0
    assert chosen_of([slow, quick], is_whole=True, left=50.0) == 0, "half of its epochs, and better by a tenth"
    assert chosen_of([slow, quick], is_whole=True, left=30.0) == 1, "a third of them"
    assert chosen_of([slow], is_whole=True, left=30.0) == 0
    far = replace(slow, verdict=candidate("far", 0.5 * loss_H).verdict)
    assert chosen_of([far, quick], is_whole=True, left=30.0) == 0, "some epochs of what is far better"
    assert chosen_of([far, quick], is_whole=True, left=20.0) == 1, "not even a quarter of them"


def test_a_training_is_reckoned_by_what_its_trial_took():
    slow = replace(candidate("slow", np.ones(9)), seconds=100.0)
    assert slow.at_pace(15.0, 10.0).seconds == 150.0
    assert slow.at_pace(15.0, 10.0).at_pace(12.0, 10.0).seconds == pytest.approx(120.0), "the last trial counts"
    assert slow.at_pace(90.0, 10.0).seconds == 200.0, "other work passes"
    assert slow.at_pace(11.0, 20.0).seconds == 100.0
    assert slow.at_pace(9.9, 1.0).seconds == 100.0, "a short one is mostly a beginning"


def test_a_slow_trial_leaves_its_recipe_fewer_epochs(toy, make_rows):
    config = Config.of(AUTO)
    parts, _ = parts_of(toy.classifier, make_rows, {"train": 1400, "validation": 20})
    recipe = Recipe("toy", {"model": {"layers": 3}, "tuning": {"method": "last_layers", "blocks": 3, "epochs": 4}})
    entrant = replace(toy, parts=parts, step=1.25 / (3 * int(parts["train"].tokens.offsets[-1])), frozen=1e-12)
    clock = Clock(6.0 / 0.95, 0.0, now=lambda: 0.0)
    epochs = [
        fit_to_time(recipe, entrant, config, clock, pace=pace)[0].applied(config).tuning.epochs for pace in (1, 2)
    ]
    assert epochs == [4, 2]


def test_a_head_alone_and_what_is_cut_short_beat_a_tuning_that_is_far_worse():
    loss_H = np.random.default_rng(0).exponential(size=500)
    bad, head = candidate("bad", 4.0 * loss_H), candidate("head", loss_H, kind="head")
    slow = replace(candidate("slow", 0.95 * loss_H), seconds=100.0)
    assert chosen_of([bad, head], is_whole=False, left=50.0) == 1
    assert chosen_of([bad, head, slow], is_whole=False, left=50.0) == 2
    assert chosen_of([bad, head, slow], is_whole=False, left=20.0) == 1
    near = candidate("near", 1.1 * loss_H)
    assert chosen_of([near, head], is_whole=False, left=50.0) == 0, "it gains more from all rows than a head does"


@pytest.mark.parametrize(
    ("left", "expected"),
    [(1e9, {"soup": 3}), (11.5, {"soup": 2}), (8.0, {}), (3.0, {"epochs": 2}), (0.9, {"epochs": 1, "most_rows": True})]
    + [(3.3, {"epochs": 3, "most_rows": True}), (1.9, {"epochs": 2, "most_rows": True}), (1.4, {"epochs": 1})],
    ids=str,
)
def test_the_winner_has_as_many_epochs_and_rows_as_there_is_time_for(toy, make_rows, left, expected):
    config = Config.of(AUTO)
    parts, _ = parts_of(toy.classifier, make_rows, {"train": 1400, "validation": 20})
    recipe = Recipe("toy", {"model": {"layers": 3}, "tuning": {"method": "last_layers", "blocks": 3, "epochs": 4}})
    entrant = replace(toy, parts=parts, step=1.25 / (3 * int(parts["train"].tokens.offsets[-1])), frozen=1e-12)
    clock = Clock(left / 0.95, 0.0, now=lambda: 0.0)
    fitted, told = fit_to_time(recipe, entrant, config, clock)
    own = fitted.applied(config).tuning
    assert own.epochs == expected.get("epochs", 4)
    assert own.soup == expected.get("soup", 1)
    assert (own.most_rows is not None) == ("most_rows" in expected)
    assert fitted.seconds(entrant, config, rows=own.most_rows) <= left or own.most_rows == 1000
    assert bool(told) == bool(expected)


@pytest.mark.parametrize(
    ("method", "asked", "expected"),
    [("last_layers", {}, 3), ("last_layers", {"soup": 5}, 5), ("last_layers", {"refit": True}, 1), ("lora", {}, 1)]
    + [("lora", {"soup": 5}, 1), ("last_layers", {"seeds": 2}, 1), ("last_layers", {"soup": 1}, 1)],
    ids=str,
)
def test_as_many_tunings_are_averaged_as_were_asked_for_or_as_there_is_time_for(toy, method, asked, expected):
    config = Config.of({"tuning": {"method": "auto", **asked}})
    tuning = {"method": method, "blocks": 3, "epochs": 4, **({"soup": asked["soup"]} if "soup" in asked else {})}
    fitted, _ = fit_to_time(
        Recipe("toy", {"model": {"layers": 3}, "tuning": tuning}), toy, config, Clock(1e9, 0.0, now=lambda: 0.0)
    )
    assert fitted.applied(config).tuning.soup == expected


def test_epochs_that_the_user_asked_for_are_made_on_fewer_rows(toy, make_rows):
    config = Config.of({"tuning": {"method": "auto", "epochs": 4}})
    parts, _ = parts_of(toy.classifier, make_rows, {"train": 1400, "validation": 20})
    recipe = Recipe("toy", {"model": {"layers": 3}, "tuning": {"method": "last_layers", "blocks": 3, "epochs": 4}})
    entrant = replace(toy, parts=parts, step=1.25 / (3 * int(parts["train"].tokens.offsets[-1])), frozen=1e-12)
    fitted, _ = fit_to_time(recipe, entrant, config, Clock(4.5, 0.0, now=lambda: 0.0))
    own = fitted.applied(config).tuning
    assert own.epochs == 4
    assert own.most_rows < 1400


@pytest.mark.parametrize(("given", "expected"), [("90s", 90), ("10m", 600), ("1h", 3600), ("45", 45), (None, 60)])
def test_budgets_are_read_as_they_are_written(toy, given, expected):
    config = Config.of({"tuning": {"method": "auto", "budget": given}})
    assert budget_of(config, [toy]) == expected
    slow = replace(toy, frozen=1.0)
    assert budget_of(Config.of({"tuning": {"method": "auto"}}), [slow]) == 1800


def test_with_a_few_rows_a_slow_start_does_not_keep_texts_from_being_drawn_together(compete):
    entrants, texts = compete("bert", counts={"train": 24, "validation": 20})
    quick = [replace(each, step=1e-7, frozen=1e-8) for each in entrants]
    config = Config.of({"tuning": {"method": "auto", "precision": "fp32"}})
    clock = Clock(60.0, 0.0, now=lambda: 55.0)
    found = search(quick, texts, config, clock=clock)
    tried = {each.kind: each.verdict is not None for each in found.candidates}
    assert tried["contrastive"]
    together = next(each.recipe for each in found.candidates if each.kind == "contrastive")
    assert fit_to_time(together, quick[0], config, clock) == (together, [])
    assert together.applied(config).tuning.epochs == 10
    slow = [replace(each, step=1.0, frozen=1.0) for each in entrants]
    late = search(slow, texts, config, clock=Clock(60.0, 0.0, now=lambda: 55.0))
    assert late.recipe.applied(config).tuning.method == "head"


def test_a_recipe_is_tried_from_where_it_starts(toy):
    sample, config = draw_sample(toy.parts, rows=80, seed=0), Config.of(AUTO)
    losses = []
    for start in ("probe", "random"):
        tuning = {"method": "last_layers", "blocks": 1, "batch_size": 32, "start": start}
        recipe = Recipe("toy", {"model": {"layers": 1, "pooling": "mean"}, "tuning": tuning})
        part = sample.of(toy.parts)
        losses.append(try_recipe(recipe, toy.classifier, part, {}, sample, config, epochs=1).loss)
    assert losses[0] != losses[1]
