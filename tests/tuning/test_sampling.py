import math
import sys

import pytest

from tagsmith.config import Config
from tagsmith.errors import SettingError
from tagsmith.tuning.recipes import Recipe
from tagsmith.tuning.sampling import Sampler, Space, require_optuna

TUNED = {"method": "last_layers", "blocks": 2, "learning_rate": 1e-4, "batch_size": 32, "epochs": 4, "layer_decay": 0.9}
BASE = Recipe("toy", {"model": {"layers": 4, "pooling": "mean"}, "tuning": TUNED})
ADAPTED = Recipe("toy", {"model": {"layers": 4}, "tuning": {"method": "lora", "learning_rate": 5e-4, "epochs": 4}})


def config_of(**tuning):
    return Config.of({"tuning": {"method": "auto", "trials": 9} | tuning})


def sampler_of(config=None, *, bases=(BASE,), starts=(2, 4), can=lambda recipe: True, backbones=("toy",)):
    config = config or config_of()
    kinds = {base.settings["tuning"]["method"]: base for base in bases}
    spaces = [
        Space(name, {kind: Recipe(name, base.settings) for kind, base in kinds.items()}, (1, 6), starts)
        for name in backbones
    ]
    return Sampler(spaces, config, can=can)


def made_by(sampler, config, *, count, loss):
    found = []
    for _ in range(count):
        (asked,) = sampler.ask(1)
        sampler.tell(asked, loss(asked.recipe.applied(config)))
        found.append(asked.recipe)
    return found


def off(own):
    """How far a rate is from 3e-4, in factors of ten."""
    return abs(math.log10(own.tuning.learning_rate / 3e-4))


def test_the_same_seed_and_losses_give_the_same_recipes():
    config = config_of()
    one, two = (made_by(sampler_of(config), config, count=12, loss=off) for _ in range(2))
    assert one == two
    assert [recipe.trial for recipe in one] == list(range(1, 13))
    assert len({recipe.name(config) for recipe in one}) == 12
    other = config.with_settings({"seed": 9})
    assert made_by(sampler_of(other), other, count=1, loss=off) != one[:1]


def test_later_recipes_are_nearer_to_what_did_well():
    config = config_of()
    sampler = sampler_of(config)
    sampler.learn(BASE, off(BASE.applied(config)))
    found = [off(recipe.applied(config)) for recipe in made_by(sampler, config, count=40, loss=off)]
    assert sum(found[-20:]) < 0.6 * sum(found[:20])


def test_no_trial_changes_what_the_user_gave_or_asks_for_states_that_are_not_kept():
    config = Config.of({"tuning": {"method": "auto", "learning_rate": 1e-4, "batch_size": 32}, "model": {"layers": 4}})
    owns = [recipe.applied(config) for recipe in made_by(sampler_of(config), config, count=30, loss=off)]
    assert {(own.tuning.learning_rate, own.tuning.batch_size, own.model.layers) for own in owns} == {(1e-4, 32, 4)}
    assert {own.model.layers - own.tuning.blocks for own in owns} == {0, 2}


def test_a_backbone_and_its_method_are_sampled_as_well():
    config = config_of()
    found = made_by(sampler_of(config, bases=(BASE, ADAPTED), backbones=("toy", "other")), config, count=20, loss=off)
    assert {recipe.backbone for recipe in found} == {"toy", "other"}
    owns = [recipe.applied(config) for recipe in found]
    assert {own.tuning.method for own in owns} == {"last_layers", "lora"}
    assert len({own.tuning.lora_rank for own in owns if own.tuning.method == "lora"}) > 1


def test_a_first_look_that_is_worse_than_most_ends_a_trial():
    sampler = sampler_of()
    for asked in sampler.ask(6):
        assert sampler.goes_on(asked, 0.5)
        sampler.tell(asked, 0.4)
    bad, good = sampler.ask(2)
    assert not sampler.goes_on(bad, 0.6)
    assert sampler.goes_on(good, 0.4)


def test_what_there_is_no_time_to_train_is_not_tried():
    config = config_of()
    short = sampler_of(config, can=lambda recipe: recipe.applied(config).tuning.epochs <= 4)
    assert {recipe.applied(config).tuning.epochs for recipe in made_by(short, config, count=12, loss=off)} == {2, 4}


def test_where_nothing_is_left_to_try_fewer_are_given():
    keys = {"learning_rate": 1e-4, "head_learning_rate": 1e-3, "layer_decay": 0.9, "epochs": 4, "batch_size": 32}
    config = Config.of({"tuning": {"method": "auto"} | keys, "model": {"layers": 4}})
    sampler = sampler_of(config, bases=(BASE.with_tuning(**keys),))
    sampler.learn(BASE.with_tuning(**keys), 0.5)
    (only,) = sampler.ask(5)  # all four blocks learn, where the search let two of them
    assert only.recipe.applied(config).tuning.blocks == 4


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    require_optuna(config_of())
    monkeypatch.setitem(sys.modules, "optuna", None)
    require_optuna(config_of(trials=0))
    with pytest.raises(SettingError, match=r'tuning.trials is 9.*pip install "tagsmith\[optuna\]"'):
        require_optuna(config_of())
