import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tagsmith.evaluation.page import Mishap, draw
from tagsmith.evaluation.report import build_report
from tagsmith.labels import Labels

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</bdi></td></table></main><h1>broken</h1>",
    "<!--",
    "]]><style>*{display:none}</style>",
    "javascript:alert(1)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "${verdict} $$ $tone \\frac{a}{b} $x^2$",
    "\u202eevil\u0000\u0007\ud800",
    "مرحبا بالعالم שלום 🎉",
    "x" * 5000,
    "<iframe src=//evil.example></iframe><base href=//evil.example>",
]
RUN = {"date": "2026-01-01", "timing": {"tuning": 12.5}, "environment": {"python": "3.11"}}


def report(classes=3, n=90, names=None, **changes):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + 2 * np.eye(classes)[truth]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    plain = build_report(
        data={
            "rows": 500,
            "history": [{"step": "clean", "rows_before": 500, "rows_after": 440, "reason": "empty", "rows": range(60)}],
            "splits": {"train": 300, "validation": 25, "calibration": 25, "test": n},
            "leak": {"exact": 1, "near": 2, "threshold": 0.8},
            "truncated": {"rows": 3, "share": 0.01},
        },
        model={"backbone": "tiny", "layers": 2},
        settings={"seed": 1, "data": {"text": None}},
        truth=truth,
        probs=probs,
        baseline_probs={"majority": np.full((n, classes), 1 / classes), "tfidf": probs[:, ::-1].copy()},
        groups=np.arange(n),
        labels=Labels(tuple(names or [f"label {i}" for i in range(classes)])),
        margin=1.0,
        resamples=200,
        seed=1,
        before_probs=np.full((n, classes), 1 / classes),
        curves=[{"step": s, "train_loss": 1 / s, "validation_loss": None, "train_accuracy": 0.5} for s in (1, 2, 3)],
        reproduce="tagsmith train rows.csv --seed 1",
    ).as_dict()
    return plain | changes


class Tags(HTMLParser):
    """The tags and attributes that a browser would see, and whether they are balanced."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes, self.open = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "use", "path", "image"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in ("meta", "use", "path", "image"):
            assert self.open.pop() == tag


def parsed(page):
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_labels_and_texts_cannot_act(payload):
    names = [payload, payload + "b", "c"]
    mistakes = [Mishap(4, payload, names[0], names[1], 0.9)]
    plain = report(names=names, notes=[payload], reproduce=payload, model={"backbone": payload, payload: payload})
    page = draw(plain, {"environment": {payload: payload}}, mistakes)
    tags = parsed(page)
    assert "<script" not in page.lower()
    assert not tags.names & {"script", "img", "iframe", "base", "h4", "object", "form", "a", "link"}
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert page.count("<h1>") == 1
    assert page.encode("utf-8")


def test_the_page_asks_for_nothing_from_outside():
    page = draw(report(classes=30, n=300), RUN, [])
    targets = [value for name, value in parsed(page).attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith(("#", "data:")) for value in targets)
    assert not re.findall(r"@import|url\((?!#|&quot;#)", page)
    assert "default-src 'none'" in page


def test_the_verdict_comes_first_and_the_warnings_next():
    plain = report(notes=["Near twins stand in training."])
    page = draw(plain, RUN, [])
    verdict = page.index('class="verdict')
    assert verdict < page.index("Near twins stand in training.") < page.index("How good it is")


def test_what_the_score_estimates_is_said_once():
    assert draw(report(), RUN, []).count("not live traffic") == 1


def test_long_texts_and_row_lists_are_shortened():
    page = draw(report(), RUN, [Mishap(1, "word " * 1000, "label 0", "label 1", 0.9)])
    assert page.count("word ") < 80
    assert "(60 in all)" in page


def test_a_hundred_and_fifty_labels_are_drawn_with_their_confused_pairs():
    page = draw(report(classes=150, n=600), RUN, [])
    assert "data:image/png;base64," in page
    assert "Most confused pairs" in page
    assert 'class="confusion"' not in page
    assert len(page) < 1_000_000


def test_a_report_of_other_rows_without_parts_and_curves_is_drawn():
    plain = report() | {"curves": [], "before_tuning": None, "data": {"rows": 9}, "calibration": {}, "reproduce": ""}
    del plain["notes"]
    page = draw(plain, {}, [])
    assert "How it learned" not in page


def test_the_same_report_gives_the_same_bytes():
    plain = report()
    assert draw(plain, RUN, []) == draw(plain, RUN, [])


def test_pictures_take_the_colours_of_the_theme_and_ids_of_their_own():
    page = draw(report(), RUN, [])
    assert "#01020" not in page
    assert "currentColor" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_single_test_row_is_drawn():
    assert "How good it is" in draw(report(n=1), RUN, [])


@pytest.mark.parametrize(("cost", "told"), [(0.0, "None of the depths tried has a lower loss"), (0.02, "0.020 nats")])
def test_a_depth_that_was_chosen_is_drawn_and_what_it_costs_is_said(cost, told):
    depth = {
        "layers": 8,
        "probes": [
            {"layers": n, "pooling": how, "loss": 1 / n, "accuracy": 0.5}
            for how in ("last", "mean")
            for n in (4, 8, 12)
        ],
        "tunings": [{"layers": n, "loss": 0.5 / n, "accuracy": 0.9} for n in (4, 8, 12)],
        "rows": {"train": 300, "validation": 100},
        "cost": cost,
        "low": cost - 0.01,
        "high": cost + 0.01,
    }
    page = draw(report(model={"backbone": "tiny", "layers": 8, "depth": depth}), RUN, [])
    assert "<h2>How deep</h2>" in page
    assert told in page
    assert all(label in page for label in ("probe, last", "probe, mean", "short tuning"))
    assert "How deep" not in draw(report(), RUN, [])
