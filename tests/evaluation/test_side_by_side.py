import copy

import numpy as np
import pytest

from tagsmith.evaluation.comparison import compare
from tagsmith.evaluation.page.comparing import draw_comparison
from tagsmith.evaluation.report import build_report
from tagsmith.evaluation.side_by_side import Named, same_rows, short_names, side_by_side
from tagsmith.labels import Labels

TRUTH = np.random.default_rng(0).integers(0, 3, 400)
GROUPS = np.repeat(np.arange(200), 2)


def named(name, *, strength=1.5, seed=1, truth=TRUTH, labels=("a", "b", "c"), **changes):
    logits = np.random.default_rng(seed).normal(size=(len(truth), 3)) + strength * np.eye(3)[truth]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    report = build_report(
        data={"rows": 900, "splits": {"test": len(truth)}},
        model={"backbone": "tiny", "layers": int(seed)},
        settings={"seed": seed, "tuning": {"epochs": 3}},
        truth=truth,
        probs=probs,
        baseline_probs={"majority": np.full((len(truth), 3), 1 / 3), "tfidf": probs[:, ::-1].copy()},
        groups=GROUPS[: len(truth)],
        labels=Labels(labels),
        margin=1.0,
        resamples=200,
        seed=1,
    ).as_dict()
    return Named(name, report | changes, {}), probs


def test_on_the_same_rows_the_paired_difference_is_that_of_the_verdict():
    (first, ours), (other, theirs) = named("strong", strength=2.5), named("weak", seed=2)
    pair = side_by_side([first, other])["pairs"][0]
    expected = compare(TRUTH, ours, theirs, GROUPS, names=("strong", "weak"))
    assert pair["same_rows"]
    assert pair["difference"] == expected.difference.as_dict()
    assert pair["value"] == "better"
    assert "weak" in pair["text"]


def test_on_other_rows_the_numbers_are_called_incomparable():
    first, other = named("a")[0], named("b", truth=TRUTH[::-1].copy())[0]
    compared = side_by_side([first, other])
    assert not compared["pairs"][0]["same_rows"]
    assert compared["pairs"][0]["difference"] is None
    assert "cannot be compared" in compared["pairs"][0]["text"]
    assert any("different test rows" in note for note in compared["notes"])


def test_texts_that_differ_are_other_rows_whatever_their_numbers():
    first, other = named("a")[0], named("b", seed=2)[0]
    assert same_rows(first, other)
    hashes = [Named(each.name, each.report, {"looks": {"rows_sha256": each.name}}) for each in (first, other)]
    assert not same_rows(*hashes)


def test_labels_may_be_numbered_differently():
    first = named("a")[0]
    turned = copy.deepcopy(first.report)
    turned["test"]["confusion"]["labels"] = ["c", "a", "b"]
    table = turned["score_table"]
    for key in ("truth", "answer"):
        table[key] = [(i + 1) % 3 for i in table[key]]
    pair = side_by_side([first, Named("b", turned, {})])["pairs"][0]
    assert pair["same_rows"]
    assert pair["difference"]["value"] == 0


def test_a_sample_of_the_answers_allows_no_pairing():
    first, other = named("a")[0], named("b", seed=2)[0]
    other.report["score_table"]["of"] = 9000
    pair = side_by_side([first, other])["pairs"][0]
    assert pair["same_rows"]
    assert pair["difference"] is None


def test_settings_that_differ_are_listed_and_others_not():
    settings = side_by_side([named("a")[0], named("b", seed=2)[0]])["settings"]
    assert settings == {"seed": [1, 2], "layers": [1, 2]}


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/x/a", "/x/b"], ["a", "b"]),
        (["/x/one/sms", "/x/two/sms"], ["one/sms", "two/sms"]),
        (["/x/a", "/x/a"], ["/x/a (1)", "/x/a (2)"]),
    ],
)
def test_names_are_as_short_as_they_may(folders, names):
    assert short_names(folders) == names


def test_the_page_shows_three_reports_with_hostile_names(browser, tmp_path):
    payload = "<img src=x onerror=alert(1)>"
    reports = [named(name, seed=i + 1)[0] for i, name in enumerate((payload, "b", "c"))]
    path = tmp_path / "page.html"
    page = draw_comparison(reports, side_by_side(reports))
    assert "accuracy</th>" in page
    path.write_text(page, encoding="utf-8")
    browser.requests()
    browser.open(path)
    assert browser.dialog() is None
    assert browser.console() == []
    assert browser.requests() == [path.as_uri()]
    assert browser.run("return document.querySelectorAll('table').length") == 4
