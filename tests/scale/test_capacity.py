import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tagsmith.cli import app
from tagsmith.errors import SettingError
from tagsmith.scale import capacity as formulas
from tagsmith.scale.capacity import FIGURES, STAGES, Figure, Job, capacity, machines
from tagsmith.scale.capacity_page import capacity_page, lasting
from tagsmith.scale.foretelling import Asked, foretold

CPU, GPU = machines()["cpu-2"], machines()["h100-8"]
ROOT = Path(__file__).parents[2]
stages, counts = st.sampled_from(STAGES), st.integers(2, 400)
rows = st.floats(1e4, 1e11)


@given(stages, rows, counts)
def test_more_rows_never_take_less(stage, rows, count):
    few, many = (capacity(Job(stage, rows * times), CPU, count=count) for times in (1, 3))
    assert many.total_s >= few.total_s
    assert many.cost >= few.cost


@given(stages, rows, counts)
def test_more_machines_never_compute_longer(stage, rows, count):
    few, many = (capacity(Job(stage, rows), CPU, count=count * times) for times in (1, 2))
    assert many.seconds["computing"] <= few.seconds["computing"]
    assert many.seconds["computing"] == pytest.approx(few.seconds["computing"] / 2)


@given(stages, rows, counts, st.floats(0, 100))
def test_cost_is_hours_times_price(stage, rows, count, price):
    found = capacity(Job(stage, rows), CPU, count=count, price=price)
    assert found.cost == pytest.approx(count * found.total_s / 3600 * price)


@given(stages, rows, counts)
def test_what_overlaps_is_not_added_and_nothing_longer_is_lost(stage, rows, count):
    found = capacity(Job(stage, rows), CPU, count=count)
    assert max(found.seconds.values()) <= found.total_s <= sum(found.seconds.values())


def test_a_million_rows_are_prepared_in_the_time_that_was_measured():
    found = capacity(Job("prepare", 1e6), replace(CPU, cores=1), count=1)
    assert found.seconds["computing"] == pytest.approx(25.1)
    assert found.seconds["network"] == 0, "one machine sends nothing"


def test_the_measured_rate_of_scoring_comes_out_again():
    found = capacity(Job("score", 1e6, tokens=36), CPU, count=1)
    assert 1e6 / found.seconds["computing"] == pytest.approx(88.3, rel=0.02)


def test_the_measured_rate_of_tuning_comes_out_again():
    found = capacity(Job("train", 1e6, tokens=36), CPU, count=1)
    assert 36e6 / found.seconds["computing"] == pytest.approx(658, rel=0.02)


def test_the_shuffle_figure_is_that_of_the_bands_which_are_made():
    from tagsmith.data.near_twins import _PERMUTATIONS, _rows_per_band

    marks = _PERMUTATIONS // 8
    assert FIGURES["shuffle_bytes"].value == _PERMUTATIONS // _rows_per_band(0.8) * 8 + marks


@given(st.floats(1e3, 1e6), st.floats(1e3, 1e6))
def test_at_the_machines_named_network_and_arithmetic_take_as_long(computing, network):
    at = formulas._even(computing, network)
    if math.isinf(at):
        assert network <= computing
    else:
        assert network / at * (at - 1) / at == pytest.approx(computing / at, abs=1e-6 * network)


def test_beyond_the_limit_of_the_network_a_training_gains_nothing():
    job = Job("train", 1e8, weights=6.5e9, learning=6.5e9, rows_per_step=16_384)
    limit = next(each.at for each in capacity(job, GPU, count=4).limits if each.name == "network")
    within, beyond = (capacity(job, GPU, count=math.ceil(limit * times)) for times in (0.5, 2))
    assert within.seconds["network"] < within.seconds["computing"]
    assert beyond.seconds["network"] > beyond.seconds["computing"]


def test_blocks_that_are_frozen_pass_once_and_not_in_each_epoch():
    whole = Job("train", 1e6, weights=100, learning=100, epochs=5)
    part = replace(whole, learning=10)
    tokens = 1e6 * whole.tokens
    assert formulas.train_flops(whole) == 5 * 6 * 100 * tokens
    assert formulas.train_flops(part) == (2 * 90 + 5 * 6 * 10) * tokens


def test_states_that_fit_no_disk_are_said_and_paid_for():
    job = Job("train", 1e8, weights=6.5e9, learning=0.8e9, epochs=3, width=4096)
    small = replace(GPU, disk_bytes=1e9)
    much, little = (capacity(job, machine, count=4) for machine in (GPU, small))
    assert "run in every epoch" in " ".join(little.notes)
    assert little.seconds["computing"] > much.seconds["computing"]


def test_a_model_that_fits_no_device_is_sharded_and_one_that_fits_none_together_is_refused():
    job = Job("train", 1e6, weights=6.5e9, learning=6.5e9)
    assert "FSDP" in capacity(job, GPU, count=1).notes[0]
    with pytest.raises(SettingError, match="Expected 3 machines or more"):
        capacity(replace(job, weights=7e10, learning=7e10), GPU, count=1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked("sweep", rows=1), "no stage 'sweep'"),
        (Asked("score", rows=0), "rows = 0"),
        (Asked("score", rows=float("nan")), "rows = nan"),
        (Asked("score", rows=1, count=0), "0 machines"),
        (Asked("score", rows=1, machine="tpu"), "no machine 'tpu'. Expected one of cpu-2, h100-8"),
        (Asked("score", rows=1, price=-1), "price of a machine is -1"),
        (Asked("train", rows=1, given={"weights": 5, "learning": 6}), "6 weights are to learn, of 5"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_paragraph(asked, message):
    with pytest.raises(SettingError, match=message):
        foretold(asked)


def test_a_figure_of_ones_own_takes_the_place_of_a_published_one():
    own = {**FIGURES, "start_s": Figure(100.0, "seconds", "measured", "here")}
    plain, other = (capacity(Job("score", 1e6), CPU, count=2, figures=each) for each in (FIGURES, own))
    assert other.total_s == pytest.approx(plain.total_s + 100 - FIGURES["start_s"].value)
    assert "start_s" in plain.assumed
    assert "start_s" not in other.assumed


def test_the_page_is_what_the_formulas_say():
    assert (ROOT / "docs" / "explanation" / "capacity.md").read_text(encoding="utf-8") == capacity_page()


def test_times_have_their_two_largest_units():
    assert [lasting(s) for s in (0, 59, 61, 3600, 90061)] == ["1 s", "59 s", "1 min 1 s", "1 h", "1 d 1 h"]


def test_a_stage_is_forecast_without_torch():
    code = (
        "import sys; from tagsmith.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "forecast", "--stage", "score", "--rows", "1e9", "--nodes", "20", "--json"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert told.endswith("False\n")
    assert json.loads(told.removesuffix("False\n"))["capacity"]["machines"] == 20


def test_a_training_is_forecast_and_not_made(toy_csv, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [f"model.backbone={tiny_folder}", "model.layers=all", "tuning.epochs=1", "tuning.method=full"]
    settings.append("model.max_tokens=48")
    words = ["forecast", str(toy_csv), "--stage", "train", "--rows", "1e6", "--nodes", "4", "--json"]
    told = CliRunner().invoke(app, words + [word for each in settings for word in ("--set", each)])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["training"]["seconds"]["total"] > 0
    assert found["capacity"]["machine"] == "this"
    assert found["capacity"]["rows"] == 1e6
    assert list(tmp_path.iterdir()) == []


def test_a_search_has_no_forecast(toy_csv, tiny_folder):
    from tagsmith.config import Config, settings_of
    from tagsmith.pipeline import forecast

    with pytest.raises(SettingError, match="searches within tuning.budget and has no forecast"):
        forecast(toy_csv, config=Config.of(settings_of("auto")))
