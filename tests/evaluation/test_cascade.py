import numpy as np
import pytest

from tagsmith.evaluation.cascade import Sides, again, cascade_of


def sides(n, *, seed, baseline=0.9, model=0.95):
    """The baseline is right where it is sure; the model everywhere equally often."""
    rng = np.random.default_rng(seed)
    sure = rng.exponential(size=n)
    right = rng.random(n) < np.where(sure > np.quantile(sure, 0.5), 0.99, 2 * baseline - 0.99)
    return Sides(sure, right, rng.random(n) < model)


def found(held, test):
    return cascade_of(held, test, np.arange(len(test.sure)), held_out_name="calibration", margin=1.0)


def test_the_baseline_answers_where_it_is_sure():
    cascade = found(sides(2000, seed=0), sides(2000, seed=1))
    chosen = cascade["chosen"]
    assert 0.5 <= chosen["share"] < 0.9
    assert chosen["llm_share"] == pytest.approx(1 - chosen["share"])
    assert chosen["accuracy"]["value"] > 0.94
    assert chosen["on"] == {"part": "calibration", "rows": 2000}
    assert f"TF-IDF answers {100 * chosen['share']:.0f} %" in cascade["text"]


def test_points_run_from_the_llm_alone_to_the_baseline_alone():
    test = sides(1000, seed=1)
    points = found(sides(1000, seed=0), test)["points"]
    assert (points[0]["share"], points[0]["accuracy"]) == (0, test.right_model.mean())
    assert (points[-1]["share"], points[-1]["accuracy"]) == (1, test.right_baseline.mean())
    assert [point["share"] for point in points] == sorted(point["share"] for point in points)


def test_a_better_baseline_answers_everything():
    held = Sides(np.arange(100.0), np.ones(100, dtype=bool), np.arange(100) % 2 == 0)
    assert found(held, held)["chosen"]["share"] == 1


def test_a_baseline_that_is_wrong_where_it_is_sure_answers_nothing():
    held = Sides(np.arange(100.0), np.arange(100) < 20, np.ones(100, dtype=bool))
    cascade = found(held, held)
    assert cascade["chosen"]["share"] == 0
    assert "answers everything" in cascade["text"]


def test_the_test_rows_choose_nothing():
    held = sides(500, seed=0)
    first, second = (found(held, sides(300, seed=seed))["chosen"]["threshold"] for seed in (1, 2))
    assert first == second


def test_a_cascade_goes_on_with_its_threshold_on_other_rows():
    cascade = found(sides(1000, seed=0), sides(1000, seed=1))
    later = sides(500, seed=2)
    moved = again(cascade, later, np.arange(500), margin=1.0)
    assert moved["chosen"]["threshold"] == cascade["chosen"]["threshold"]
    assert moved["chosen"]["on"] == cascade["chosen"]["on"]
    assert moved["chosen"]["accuracy"]["value"] == later.right(cascade["chosen"]["threshold"]).mean()
    assert [p["threshold"] for p in moved["points"]] == [p["threshold"] for p in cascade["points"]]
    assert (moved["points"][0]["share"], moved["points"][-1]["share"]) == (0, 1)
