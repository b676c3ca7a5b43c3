import unicodedata

import numpy as np

from tagsmith.evaluation.robustness import mangled, robustness_of, sample_rows

TEXTS = ["Claim your free prize now, call before midnight", "See you at the office at nine", "", "12 34"]


def test_the_same_seed_does_the_same_damage():
    assert mangled(TEXTS, seed=1) == mangled(TEXTS, seed=1)
    assert mangled(TEXTS, seed=1)["typos"] != mangled(TEXTS, seed=2)["typos"]


def test_typing_errors_change_a_few_letters():
    damaged = mangled(TEXTS, seed=1)["typos"]
    assert damaged[0] != TEXTS[0]
    assert abs(len(damaged[0]) - len(TEXTS[0])) <= 3
    assert damaged[2:] == TEXTS[2:]


def test_look_alikes_are_of_another_script_and_as_many():
    damaged = mangled(TEXTS, seed=1)["look-alikes"][0]
    changed = [(old, new) for old, new in zip(TEXTS[0], damaged, strict=True) if old != new]
    assert 1 <= len(changed) <= 5
    assert all("CYRILLIC" in unicodedata.name(new) and "LATIN" in unicodedata.name(old) for old, new in changed)


def test_case_is_changed_throughout():
    damaged = mangled(TEXTS, seed=1)
    assert damaged["upper case"][1] == "SEE YOU AT THE OFFICE AT NINE"
    assert damaged["lower case"][1] == "see you at the office at nine"


def test_a_drop_is_told_in_points_with_its_interval():
    whole, hurt = np.ones(100, dtype=bool), np.arange(100) >= 10
    (entry,) = robustness_of({"model": whole, "tfidf": hurt}, {"typos": {"model": hurt, "tfidf": hurt}})
    assert (entry["kind"], entry["n"], entry["accuracy"]["value"]) == ("typos", 100, 0.9)
    assert entry["drop"]["low"] < entry["drop"]["value"] == 10 < entry["drop"]["high"]
    assert entry["tfidf"]["drop"]["value"] == 0


def test_one_row_of_each_group_is_damaged():
    groups = np.repeat(np.arange(50), 3)
    chosen = sample_rows(groups, most=20, seed=1)
    assert len(chosen) == len(set(groups[chosen].tolist())) == 20
    assert len(sample_rows(groups, most=400, seed=1)) == 50
