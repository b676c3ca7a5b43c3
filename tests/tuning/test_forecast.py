import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.config import Config, ModelConfig
from tagsmith.errors import ResourceError
from tagsmith.labels import Labels
from tagsmith.model.classifier import build
from tagsmith.tuning.fitting import Memory, Room, fitting, free_in_group, peak, require_fit, resident
from tagsmith.tuning.forecast import Pace, lasting, make_forecast, spread
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import tune
from tagsmith.tuning.plan import plan_of

NAMES = Labels.of(["complaint", "praise"])
PLENTY = Room(memory=2**40, output=2**40, temporary=2**40)


def settings(**tuning):
    quick = {"epochs": 2, "learning_rate": 5e-3, "precision": "fp32", "batch_size": 8}
    return Config.of({"tuning": quick | tuning, "seed": 7})


@pytest.fixture
def ready(tiny_folder, bert_folder, make_rows):
    """`ready(family="llama")`: an untrained classifier and the four parts of a run."""

    def make(family="llama"):
        folder = {"llama": tiny_folder, "bert": bert_folder}[family]
        classifier = build(folder, ModelConfig(max_tokens=48), labels=NAMES, layers=None, seed=7)
        parts = {}
        for seed, (name, count) in enumerate({"train": 120, "validation": 40, "calibration": 0, "test": 40}.items()):
            texts, labels = zip(*make_rows(count, seed=seed), strict=True) if count else ((), ())
            parts[name] = Part(classifier.encoder.encode(texts), NAMES.encode(labels))
        return classifier, parts

    return make


def forecast(classifier, parts, config, room=PLENTY, output=None):
    return make_forecast(classifier, parts, config, letters=5000, output=output, room=room)


# BERT has dropout: a random state that was moved would show.
@pytest.mark.parametrize(
    ("family", "method"), [("llama", "last_layers"), ("bert", "full"), ("llama", "lora"), ("bert", "head")]
)
def test_a_forecast_changes_no_byte_of_a_tuning(family, method, ready):
    weights = []
    for is_forecast in (False, True):
        classifier, parts = ready(family)
        config = settings(method=method)
        before = torch.get_rng_state(), [weight.detach().clone() for weight in classifier.parameters()]
        if is_forecast:
            forecast(classifier, parts, config)
            assert torch.equal(torch.get_rng_state(), before[0])
            assert all(map(torch.equal, classifier.parameters(), before[1]))
        tuned = {name: part for name, part in parts.items() if name in ("train", "validation")}
        tune(classifier, tuned, config, metric=lambda truth, probs: float(probs[:, 0].mean()))
        weights.append([weight.detach().clone() for weight in classifier.parameters()])
    assert all(map(torch.equal, *weights))


def test_every_part_of_the_work_is_counted(ready):
    classifier, parts = ready()
    found = forecast(classifier, parts, settings())
    assert set(found.seconds) == {"frozen", "steps", "evaluations", "test", "baselines", "saving"}
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.plan.steps == 30
    assert found.total == pytest.approx(sum(found.seconds.values()))
    values = found.event().values
    assert values["seconds.steps"] == found.seconds["steps"]
    assert values["text"].startswith("Forecast: about ")


def test_early_stopping_makes_a_forecast_an_upper_bound(ready):
    classifier, parts = ready()
    found = forecast(classifier, parts, settings(epochs=10, patience=1, evaluations_per_epoch=1))
    saved = 0.8 * (found.seconds["steps"] + found.seconds["evaluations"])
    assert found.total - found.least_seconds == pytest.approx(saved)
    always = forecast(classifier, parts, settings(patience=99))
    assert always.least_seconds == always.total


def test_states_that_an_earlier_run_has_kept_take_no_time(ready, tmp_path, monkeypatch):
    monkeypatch.setattr("tagsmith.tuning.loop.cache_folder", lambda: tmp_path)
    classifier, parts = ready()
    before = forecast(classifier, parts, settings()).seconds["frozen"]
    tuned = {name: part for name, part in parts.items() if name in ("train", "validation")}
    tune(classifier, tuned, settings(epochs=1), metric=lambda truth, probs: 0.0)
    classifier, parts = ready()
    assert forecast(classifier, parts, settings()).seconds["frozen"] < before / 2


@pytest.mark.parametrize(
    ("tuning", "bytes_in_memory", "told"),
    [
        ({"method": "full"}, 2**30, "No states are kept: all blocks learn, nothing is frozen."),
        ({"method": "lora"}, 2**30, "No states are kept: adapters sit on all blocks, nothing is frozen."),
        ({}, 2**30, "they are kept in the cache for later runs."),
        ({"cache_gib": 0}, 2**30, "tuning.cache_gib is 0: they are kept for this run only, in memory."),
        ({"cache_gib": 0}, 1, "tuning.cache_gib is 0: they are kept for this run only, in a temporary file."),
    ],
)
def test_a_plan_says_where_states_are_kept_and_why(tuning, bytes_in_memory, told, ready, monkeypatch):
    monkeypatch.setattr("tagsmith.tuning.plan.BYTES_IN_MEMORY", bytes_in_memory)
    assert told in plan_of(*ready(), settings(**tuning)).states_told


def test_counts_of_a_plan_are_those_of_the_run(ready):
    classifier, parts = ready()
    plan = plan_of(classifier, parts, settings(blocks=1))
    tuned = tune(
        classifier,
        {name: part for name, part in parts.items() if name in ("train", "validation")},
        settings(blocks=1),
        metric=lambda truth, probs: 0.0,
    )
    states = sum(each.hidden_TD.numel() * each.hidden_TD.itemsize for each in tuned.states.values())
    assert (tuned.steps, len(tuned.curves), states) == (plan.steps, plan.evaluations, plan.states_in("cache"))
    assert plan.learning == sum(weight.numel() for weight in classifier.head.parameters()) + sum(
        weight.numel() for weight in classifier.backbone.blocks[-1].parameters()
    )


# ---- Plans that will not fit


def room_for(plan, memory, **changes):
    """Just the memory that a plan needs."""
    return Room(memory=memory.added(plan.with_settings(**changes)), output=2**40, temporary=2**40)


def wide_plan(ready, **tuning):
    """Llama's three blocks as if their activations were large."""
    classifier, parts = ready()
    return plan_of(classifier, parts, settings(**{"blocks": 3} | tuning)), Memory(held=10**9, per_token=100_000.0)


def test_a_plan_that_fits_just_so_is_let_through(ready):
    plan, memory = wide_plan(ready)
    require_fit(plan, memory, room_for(plan, memory))
    tight = room_for(plan, memory)
    with pytest.raises(ResourceError, match=r"Tuning 3 of 3 blocks .* would need .* of memory more than is in use"):
        require_fit(plan, memory, Room(tight.memory - 1, tight.output, tight.temporary))


def test_what_would_fit_is_computed_by_the_same_arithmetic(ready):
    plan, memory = wide_plan(ready)
    room = room_for(plan, memory, blocks=1)
    told = fitting(plan, memory, room)
    assert "tuning.blocks = 1" in told
    assert "tuning.method = 'head'" in told
    least = Room(room.memory - 1, room.output, room.temporary)
    assert "tuning.blocks = 1" not in fitting(plan, memory, least)
    smaller = [each for each in told if each.startswith("tuning.tokens_per_batch")]
    size = int(smaller[0].rpartition(" ")[2])
    assert memory.added(plan.with_settings(tokens_per_batch=size)) <= room.memory
    assert memory.added(plan.with_settings(tokens_per_batch=2 * size)) > room.memory


def test_a_plan_of_which_nothing_fits_says_so(ready):
    plan, memory = wide_plan(ready)
    with pytest.raises(ResourceError, match=r"No smaller plan with this backbone fits; take a smaller model\.backbone"):
        require_fit(plan, memory, Room(1, 2**40, 2**40))


def test_a_plan_is_refused_before_anything_is_measured(ready):
    classifier, parts = ready()
    with pytest.raises(ResourceError, match="of memory more than is in use, and 0 MiB are free"):
        forecast(classifier, parts, settings(), room=Room(1000, 2**40, 2**40))


def test_a_full_disk_of_the_output_is_refused(ready):
    plan, memory = wide_plan(ready)
    disk = plan.disk
    room = Room(2**60, disk["bundle"] + disk["checkpoint"], 2**40)
    require_fit(plan, memory, room)
    with pytest.raises(ResourceError, match="The bundle may take 0 MiB, checkpoints .* choose another disk with --out"):
        require_fit(plan, memory, Room(2**60, room.output - 1, 2**40))


def test_states_that_the_temporary_disk_has_no_room_for_are_refused(ready, monkeypatch):
    monkeypatch.setattr("tagsmith.tuning.plan.BYTES_IN_MEMORY", 1)
    plan, memory = wide_plan(ready, blocks=1, cache_gib=0)
    size = plan.states_in("file")
    require_fit(plan, memory, Room(2**60, 2**40, size))
    with pytest.raises(ResourceError, match=r"Would fit: model\.max_tokens = \d+\. Or set TMPDIR to a larger disk"):
        require_fit(plan, memory, Room(2**60, 2**40, size - 1))


def test_the_limit_of_a_container_counts_as_free_memory(tmp_path):
    assert free_in_group(tmp_path) > 2**60
    version_2 = {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 5\ninactive_file 200\n"}
    for name, text in version_2.items():
        (tmp_path / name).write_text(text)
    assert free_in_group(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert free_in_group(tmp_path) > 2**60
    (tmp_path / "memory").mkdir()
    version_1 = {
        "memory.limit_in_bytes": "900",
        "memory.usage_in_bytes": "700",
        "memory.stat": "total_inactive_file 50\n",
    }
    for name, text in version_1.items():
        (tmp_path / "memory" / name).write_text(text)
    assert free_in_group(tmp_path) == 250


def test_memory_that_is_held_is_no_more_than_was_ever_held():
    assert 10 * 2**20 < resident() < 1.1 * peak()  # the kernel's counters are a little apart


@given(count=st.integers(1, 500), at_once=st.integers(1, 16))
def test_places_are_spread_over_all(count, at_once):
    at_once = min(at_once, count)
    rounds = list(spread(count, at_once=at_once))
    assert all(0 <= place < count for places in rounds for place in places)
    assert all(places == sorted(set(places)) for places in rounds)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, "1 s"), (59.4, "59 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min")]
)
def test_times_are_told_in_words(seconds, told):
    assert lasting(seconds) == told


# ---- In a run


def test_a_run_has_its_plan_in_the_report_and_what_was_measured_apart(llama_bundle):
    report = json.loads((llama_bundle / "report.json").read_text(encoding="utf-8"))["forecast"]
    run = json.loads((llama_bundle / "run.json").read_text(encoding="utf-8"))
    assert report["steps"] == 33
    assert report["states"]["kept"] == "cache"
    assert report["disk_bytes"]["bundle"] == pytest.approx(run["truth"]["bundle_bytes"], rel=0.8)
    assert run["forecast"]["seconds"]["total"] > 0
    assert 0 < run["truth"]["seconds"] < 60
    assert "seconds" not in json.dumps(report)
    page = (llama_bundle / "report.html").read_text(encoding="utf-8")
    assert "Forecast and truth" in page
    assert f"came {run['truth']['seconds']:.1f} with " in page


def test_a_batch_costs_something_once_and_each_block_again():
    pace = Pace(block=2.0, once=3.0)
    assert [pace.seconds(10, blocks=blocks) for blocks in (0, 1, 4)] == [0, 50, 110]
