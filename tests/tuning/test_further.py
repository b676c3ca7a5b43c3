from dataclasses import replace

import numpy as np
import pytest

from tagsmith.config import Config, ModelConfig
from tagsmith.events import silent
from tagsmith.labels import Labels
from tagsmith.model.classifier import build
from tagsmith.tuning import search as searching
from tagsmith.tuning.budget import Clock
from tagsmith.tuning.candidates import chosen_of
from tagsmith.tuning.learner import Part
from tagsmith.tuning.recipes import Entrant
from tagsmith.tuning.sampling import FIRST_LOOK
from tagsmith.tuning.search import search

NAMES = Labels.of(["complaint", "praise"])
GIVEN = {"method": "auto", "precision": "fp32", "batch_size": 64, "hybrid": "none", "blocks": 1, "trials": 3}


def config_of(**tuning):
    return Config.of({"tuning": GIVEN | tuning, "model": {"layers": 2}})


@pytest.fixture(scope="module")
def competing(make_folder, make_rows):
    """A tiny backbone with toy rows, whose speed is what we say it is, and the texts of the rows."""
    classifier = build(make_folder("llama"), ModelConfig(max_tokens=48), labels=NAMES, layers=None, seed=0)
    parts, texts = {}, {}
    for seed, (name, count) in enumerate({"train": 60, "validation": 30}.items()):
        texts[name], labels = zip(*make_rows(count, seed=seed), strict=True)
        parts[name] = Part(classifier.encoder.encode(texts[name]), NAMES.encode(labels), np.arange(count))
    entrant = Entrant("toy", classifier.eval(), parts, frozen=1e-9, step=1.0)
    return replace(entrant, step=0.8 / entrant.tokens("train")), texts  # five seconds for a trial of one block


def searched(competing, config, *, now=lambda: 0.0, listen=silent, together=None, **changes):
    entrant, texts = competing
    clock = Clock(60.0, 0.0, now=now)
    return search([replace(entrant, **changes)], texts, config, clock=clock, listen=listen, together=together)


def trials_of(found):
    return [each for each in found.candidates if each.recipe and each.recipe.trial]


@pytest.fixture(scope="module")
def found(competing):
    """A search with trials, and what each tuning in it was given."""
    calls, whole = [], searching.try_recipe

    def spied(recipe, classifier, part, states, sample, config, **options):
        calls.append((recipe, part, states, sample))
        return whole(recipe, classifier, part, states, sample, config, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "try_recipe", spied)
        return searched(competing, config_of(trials=4)), calls


def test_trials_are_judged_on_the_rows_of_the_search_from_the_states_that_it_kept(found):
    _, calls = found
    tried = [recipe.trial for recipe, *_ in calls]
    assert {*tried} == {0, 1, 2, 3, 4}
    assert len({id(sample) for *_, sample in calls}) == 1
    assert len({id(part) for _, part, *_ in calls}) == 1
    kept = {(start, id(own)) for *_, states, _ in calls for start, own in states.items()}
    assert kept
    assert len(kept) == len({start for start, _ in kept})


def test_trials_are_candidates_like_any_other(found):
    result, _ = found
    trials = trials_of(result)
    assert len(trials) == 4
    assert len({len(each.verdict.loss_H) for each in result.candidates}) == 1
    assert {each.learnt for each in trials} <= {FIRST_LOOK, 1.0}
    early = sum(each.learnt < 1 for each in trials)
    assert result.sample["trials"] == {"wanted": 4, "made": 4, "ended_early": early}
    assert any("Optuna made 4 of 4 trials" in text for text in result.texts)
    plain = [each for each in result.as_dicts() if "(trial " in each["name"]]
    assert len(plain) == 4
    for each in plain:
        assert {"learning_rate", "head_learning_rate", "epochs", "batch_size"} <= each["settings"]["tuning"].keys()
        assert each["settings"]["tuning"]["batch_size"] == 64


def test_a_trial_that_reads_clearly_better_wins_if_it_learnt_from_all_rows(found):
    result, _ = found
    candidates = list(result.candidates)
    place = next(i for i, each in enumerate(candidates) if each.recipe and each.recipe.trial and each.learnt == 1)
    better = replace(candidates[place].verdict, loss_H=0.01 * candidates[place].verdict.loss_H)
    rules = {"is_whole": True, "left": 1e9}
    assert chosen_of(candidates, **rules) != place
    candidates[place] = replace(candidates[place], verdict=better)
    assert chosen_of(candidates, **rules) == place
    candidates[place] = replace(candidates[place], learnt=FIRST_LOOK)
    assert chosen_of(candidates, **rules) != place


def test_the_same_search_makes_the_same_trials(found, competing):
    result, _ = found
    assert searched(competing, config_of(trials=4)).as_dicts() == result.as_dicts()


def test_several_trials_at_a_time_are_the_ones_that_would_be_made_one_by_one(found, competing):
    result, _ = found
    together = searched(competing, config_of(trials=4), together=TwoAtATime())
    assert [each.recipe for each in trials_of(together)] == [each.recipe for each in trials_of(result)]


class TwoAtATime:
    lanes = 2

    def __call__(self, trials):
        assert len(trials) <= 5
        return [trial.judged() for trial in trials]


def test_a_budget_bounds_the_number_of_trials(competing):
    tokens = competing[0].tokens("train")
    result = searched(competing, config_of(trials=9, budget="60s"), step=2 / tokens)
    made = len(trials_of(result))
    assert 0 < made < 9
    assert any(f"Optuna made {made} of 9 trials" in text and "no more" in text for text in result.texts)


@pytest.mark.parametrize(("budget", "expected"), [("60s", 1), (None, 3)])
def test_the_clock_ends_trials_only_where_a_budget_was_given(competing, budget, expected):
    seconds = [0.0]

    def lose_time(event):
        seconds[0] += 100.0 * ("(trial " in str(event.values.get("name")))

    config = config_of(**({} if budget is None else {"budget": budget}))
    result = searched(competing, config, now=lambda: seconds[0], listen=lose_time)
    assert len(trials_of(result)) == expected
    assert (f"{expected} of 3 trials" in " ".join(result.texts)) and result.sample["trials"]["made"] == expected
    if budget is None:
        assert not any("There is time for" in text for text in result.texts)


def test_without_a_tuning_that_was_judged_there_is_nothing_to_go_on_from(competing):
    result = searched(competing, config_of(budget="60s"), step=1e6)
    assert not trials_of(result)
    assert any("Optuna made 0 of 3 trials" in text and "no time for a tuning" in text for text in result.texts)


def test_where_the_user_gave_all_there_is_nothing_left_to_try(competing):
    given = {"learning_rate": 1e-3, "head_learning_rate": 1e-3, "layer_decay": 1.0, "epochs": 1}
    result = searched(competing, config_of(**given, lora_rank=4))
    assert not trials_of(result)
    assert any("Optuna made 0 of 3 trials" in text and "nothing else" in text for text in result.texts)
