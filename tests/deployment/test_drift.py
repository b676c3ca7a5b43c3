import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from tagsmith.deployment.drift import Monitor, Profile, collector
from tagsmith.errors import BundleError
from tagsmith.evaluation.permutation import chance_of, stability_index

LABELS = ("ham", "spam")
WORDS = [f"word{i}" for i in range(200)]


def traffic(count, *, seed, unknown=0.1, spam=0.2, longest=30, sure=6.0):
    """Texts and probabilities of a source that has `unknown` new words and `spam` of the second label."""
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        words = random.choice(WORDS, size=random.integers(3, longest))
        new = random.random(len(words)) < unknown
        texts.append(
            " ".join(f"new{random.integers(10**9)}" if fresh else word for word, fresh in zip(words, new, strict=True))
        )
    surety = random.beta(sure, 1.0, count) / 2 + 0.5
    is_spam = random.random(count) < spam
    return texts, np.where(is_spam[:, None], np.stack([1 - surety, surety], 1), np.stack([surety, 1 - surety], 1))


def profile(*, seed=0, rows=300):
    train = [" ".join(WORDS[i : i + 10]) for i in range(190)]
    return Profile.of(train, *traffic(rows, seed=seed), labels=LABELS)


def watched(changed, *, window=500, rows=300):
    monitor = Monitor(profile(rows=rows), labels=LABELS, window=window)
    monitor.observe(*traffic(window, seed=1, **changed))
    return {each.name: each for each in monitor.latest}


def test_a_window_like_the_test_rows_raises_no_alarm():
    found = watched({})
    assert not any(each.alarm for each in found.values())
    assert all(each.psi < 0.1 for each in found.values())


@pytest.mark.parametrize(
    ("changed", "feature"),
    [
        ({"unknown": 0.5}, "unknown_words"),
        ({"spam": 0.6}, "label"),
        ({"longest": 90}, "length"),
        ({"sure": 2.0}, "score"),
    ],
)
def test_what_changed_is_named(changed, feature):
    found = watched(changed)
    assert found[feature].alarm
    assert found[feature].p_value <= 0.0025


def test_without_drift_the_share_of_alarmed_windows_is_the_one_that_is_stated():
    rounds, level = 400, 0.1
    alarmed = 0
    for seed in range(rounds):
        random = np.random.default_rng(seed)
        shares = random.dirichlet(np.ones(8))
        p_values = [
            chance_of(
                random.multinomial(300, shares),
                random.multinomial(500, shares),
                random=random,
                statistic=stability_index,
            )
            for _ in range(4)
        ]
        alarmed += min(p_values) <= level / 4
    assert 0.04 * rounds < alarmed < (level + 3 * np.sqrt(level * (1 - level) / rounds)) * rounds


def test_the_rate_holds_for_bins_cut_from_the_test_rows_themselves():
    rounds, level = 150, 0.2
    alarmed = 0
    for seed in range(rounds):
        monitor = Monitor(profile(seed=1000 + seed, rows=150), labels=LABELS, window=150, alarm_rate=level, seed=seed)
        monitor.observe(*traffic(150, seed=5000 + seed))
        alarmed += min(each.p_value for each in monitor.latest) <= level / 4
    assert alarmed < (level + 3 * np.sqrt(level * (1 - level) / rounds)) * rounds


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12), st.data())
def test_the_index_is_zero_for_equal_shares_and_never_negative(counts, data):
    reference = np.array(counts)
    live = np.array(data.draw(st.lists(st.integers(0, 50), min_size=len(counts), max_size=len(counts))))
    assert stability_index(reference, live) >= 0
    assert stability_index(reference, reference) == 0


def test_windows_follow_one_another_however_texts_arrive():
    texts, probs_NC = traffic(1100, seed=3)
    whole = Monitor(profile(), labels=LABELS, window=500)
    whole.observe(texts, probs_NC)
    pieces = Monitor(profile(), labels=LABELS, window=500)
    for start in range(0, 1100, 7):
        pieces.observe(texts[start : start + 7], probs_NC[start : start + 7])
    assert whole.state() == pieces.state()
    assert (whole.windows, whole.state()["waiting"]) == (2, 100)


def test_texts_without_an_answer_are_not_counted():
    monitor = Monitor(profile(), labels=LABELS, window=10)
    monitor.observe(["", "word1"], np.array([[np.nan, np.nan], [0.1, 0.9]]))
    assert monitor.state()["waiting"] == 1


def test_texts_are_cleaned_as_those_of_the_profile_were():
    monitor = Monitor(profile(), labels=LABELS, window=2, clean=lambda texts: [text.strip("*") for text in texts])
    monitor.observe(["*word1*", "*word2*"], np.array([[0.1, 0.9], [0.9, 0.1]]))
    lengths = next(each for each in monitor.latest if each.name == "length")
    assert lengths.live[0] == 2


def test_a_profile_is_read_as_it_was_written_and_holds_no_text(tmp_path):
    made = profile()
    made.write(tmp_path)
    assert Profile.read(tmp_path) == made
    assert "word1" not in (tmp_path / "profile.json").read_text()


def test_a_bundle_without_a_profile_has_none(tmp_path):
    assert Profile.read(tmp_path) is None


def test_a_profile_of_another_format_is_refused(tmp_path):
    (tmp_path / "profile.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(BundleError, match="format 99"):
        Profile.read(tmp_path)


def test_signs_of_scripts_without_spaces_are_words():
    made = Profile.of(["東京は雨", "大阪は雨"], ["東京は晴", "雨"], np.array([[0.9, 0.1], [0.2, 0.8]]), labels=LABELS)
    assert len(made.words) == 2


def test_many_labels_share_the_last_bin():
    labels = [f"label{i:03d}" for i in range(60)]
    random = np.random.default_rng(0)
    made = Profile.of([], ["text"] * 600, random.dirichlet(np.full(60, 0.1), 600), labels=labels)
    of_labels = made.features[-1]
    assert len(of_labels.counts) == 21
    assert sum(of_labels.counts) == 600


def test_metrics_say_psi_chance_windows_and_alarms():
    monitor = Monitor(profile(), labels=LABELS, window=50)
    monitor.observe(*traffic(100, seed=2, spam=0.9))
    registry = CollectorRegistry()
    registry.register(collector(lambda: monitor))
    told = generate_latest(registry).decode()
    assert 'tagsmith_drift_psi{feature="label"}' in told
    assert 'tagsmith_drift_p_value{feature="score"}' in told
    assert "tagsmith_drift_windows_total 2.0" in told
    assert f"tagsmith_drift_alarms_total {float(monitor.alarms)}" in told


def test_no_monitor_no_metrics():
    registry = CollectorRegistry()
    registry.register(collector(lambda: None))
    assert b"drift" not in generate_latest(registry)


def test_watching_imports_nothing_heavy():
    heavy = "torch scipy polars sklearn pydantic"
    code = f"import sys, tagsmith.deployment.drift; print([m for m in {heavy.split()} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_trained_bundle_has_a_profile_of_its_test_rows(llama_bundle):
    found = Profile.read(llama_bundle)
    report = json.loads((llama_bundle / "report.json").read_text())
    assert found is not None
    assert found.rows == report["test"]["n"]
    assert sum(found.features[-1].counts) == report["test"]["n"]
