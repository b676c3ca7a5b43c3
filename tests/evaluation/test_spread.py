import numpy as np
import pytest

from tagsmith.evaluation.label_sets import measure_sets
from tagsmith.evaluation.metrics import measure
from tagsmith.evaluation.spread import points, spread_of
from tagsmith.labels import Labels


def test_points_are_the_values_that_the_report_gives_with_intervals():
    random = np.random.default_rng(0)
    truth, probs = random.integers(0, 3, 80), random.dirichlet(np.ones(3), 80)
    drawn = {"resamples": 200, "seed": 0}
    whole = measure(truth, probs, np.arange(80), labels=Labels(("a", "b", "c")), **drawn).as_dict()
    assert points(truth, probs) == pytest.approx(
        {name: whole[name]["value"] for name in ("accuracy", "macro_f1", "log_loss")}
    )
    sets, chances, thresholds = random.random((80, 3)) < 0.3, random.random((80, 3)), np.array([0.3, 0.5, 0.7])
    several = Labels(("a", "b", "c"), True)
    whole = measure_sets(sets, chances, np.arange(80), thresholds=thresholds, labels=several, **drawn).as_dict()
    names = ("accuracy", "micro_f1", "macro_f1", "log_loss")
    assert points(sets, chances, thresholds=thresholds) == pytest.approx({name: whole[name]["value"] for name in names})


def test_the_spread_is_the_mean_and_the_standard_deviation_of_a_sample():
    seeds = [{"seed": i, "validation_loss": loss, "test": {"accuracy": loss / 2}} for i, loss in enumerate((0.2, 0.6))]
    spread = spread_of(seeds)
    assert spread["validation_loss"] == {"mean": pytest.approx(0.4), "standard_deviation": pytest.approx(0.2 * 2**0.5)}
    assert spread["accuracy"]["mean"] == pytest.approx(0.2)


def test_one_seed_has_no_spread():
    assert spread_of([]) == spread_of([{"seed": 1, "test": {"accuracy": 1.0}}]) == {}
