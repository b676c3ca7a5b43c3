import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tagsmith.evaluation.page.drawing import draw as draw_page
from tagsmith.evaluation.page.texts import CellText, Mishap, NearestRow, PageTexts
from tagsmith.evaluation.report import build_report
from tagsmith.evaluation.sections import Asked
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
HTTP = "http://127.0.0.1:9/"
RUN = {"date": "2026-01-01", "timing": {"tuning": 12.5}, "environment": {"python": "3.11"}}


def report(classes=3, n=90, names=None, asked=None, **changes):
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
        asked=asked or Asked(),
    ).as_dict()
    return plain | changes


def draw(report, run, mistakes):
    return draw_page(report, run, PageTexts(mistakes=mistakes))


class Tags(HTMLParser):
    """The tags and attributes that a browser would see, and whether they are balanced."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes, self.open = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in ("meta", "input"):
            assert self.open.pop() == tag


def parsed(page):
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


def hostile(payload, **changes):
    """A report and texts that say the payload wherever a stranger has a word."""
    names = [payload, payload + "b", "c"]
    nearest = (NearestRow(3, payload, payload, 0.9),)
    words = ((payload, 0.3), ("b", -0.4))
    texts = PageTexts(
        mistakes=[
            Mishap(4, payload, names[0], names[1], 0.9, nearest, words),
            Mishap(5, payload, names[0], names[1], 0.9),
        ],
        cells=[CellText(i, payload, i % 3, i // 3, 0.5) for i in range(9)],
        training={7: payload},
    )
    plain = report(names=names, notes=[payload], reproduce=payload, model={"backbone": payload, payload: payload})
    audit = {"row": 7, "given": payload, "suggested": payload, "confidence": 0.8}
    return plain | {"label_audit": {"text": payload, "suspects": [audit]}} | changes, texts


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_labels_and_texts_cannot_act(payload):
    plain, texts = hostile(payload)
    page = draw_page(plain, {"environment": {payload: payload}}, texts)
    tags = parsed(page)
    assert page.lower().count("<script") == 2
    assert not tags.names & {"img", "iframe", "base", "h4", "object", "form", "link"}
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert not [name for name, _ in tags.attributes if name == "style"]
    assert page.count("<h1>") == 1
    assert page.encode("utf-8")


def test_the_policy_names_the_style_and_the_script_by_their_hash():
    page = draw(report(), RUN, [])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    for kind in ("style", "script"):
        content = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_asks_for_nothing_from_outside():
    page = draw(report(classes=30, n=300), RUN, [])
    targets = [value for name, value in parsed(page).attributes if name in ("src", "href", "xlink:href")]
    assert targets
    assert all(value.startswith("#") for value in targets)
    assert not re.findall(r"@import|url\(", page)


def test_links_to_sections_lead_somewhere():
    page = draw(report(), RUN, [])
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_the_verdict_comes_first_and_the_warnings_next():
    plain = report(notes=["Near twins stand in training."])
    page = draw(plain, RUN, [])
    verdict = page.index('class="verdict')
    assert verdict < page.index("Near twins stand in training.") < page.index("How good it is")


def test_what_the_score_estimates_is_said_once():
    assert draw(report(), RUN, []).count("not live traffic") == 1


def test_long_texts_and_row_lists_are_shortened():
    page = draw(report(), RUN, [Mishap(1, "word " * 1000, "label 0", "label 1", 0.9)])
    assert page.count("word word") < 80
    assert "(60 in all)" in page


def test_a_hundred_and_fifty_labels_are_drawn_with_their_confused_pairs():
    page = draw(report(classes=150, n=600), RUN, [])
    assert '<svg id="map"' in page
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


def test_sections_are_drawn_from_what_a_report_has():
    plain = report(n=300, asked=Asked(facets={"length": ["short", "long"] * 150}, costs=COSTS))
    whole = draw(plain | {"cascade": CASCADE, "robustness": ROBUSTNESS}, RUN, [])
    titles = set(re.findall(r"<h2>(.*?)</h2>", whole))
    own = {"What a probability is worth", "What a threshold does", "If it may decline to answer", "Where it differs"}
    assert own | {"What it does not stand", "What an answer costs"} <= titles
    bare = {key: value for key, value in plain.items() if key not in Asked.__dataclass_fields__}
    for key in ("reliability", "abstention", "slices", "score_table", "expected_cost"):
        bare.pop(key)
    assert not own & set(re.findall(r"<h2>(.*?)</h2>", draw(bare, RUN, [])))


COSTS = {"label 0": {"label 1": 5.0}}
CASCADE = {
    "points": [{"share": 0.0, "accuracy": 0.9}, {"share": 1.0, "accuracy": 0.8}],
    "chosen": {"share": 0.5},
    "text": "TF-IDF answers half.",
}
ROBUSTNESS = [
    {
        "kind": "typos",
        "n": 90,
        "accuracy": {"value": 0.8, "low": 0.7, "high": 0.9},
        "drop": {"value": 3.0, "low": 1.0, "high": 5.0},
        "tfidf": {"drop": {"value": 3.0, "low": None, "high": None}},
    }
]


def test_a_single_test_row_is_drawn():
    assert "How good it is" in draw(report(n=1), RUN, [])


LEGEND = {"first": "probe, last", "second": "probe, mean", "third": "short tuning"}


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
    assert all(f'<li class="{kind}">{label}</li>' in page for kind, label in LEGEND.items())
    assert "How deep" not in draw(report(), RUN, [])


# --- in a real browser

EVERYTHING = """
for (const each of document.querySelectorAll('details')) each.open = true;
for (const each of document.querySelectorAll('[data-cell]'))
  each.dispatchEvent(new MouseEvent('click', {bubbles: true}));
for (const each of document.querySelectorAll('select')) for (let i = 0; i < each.options.length; i++) {
  each.selectedIndex = i; each.dispatchEvent(new Event('input', {bubbles: true}));
}
for (const each of document.querySelectorAll('input')) for (const value of [1, 50, 99]) {
  each.value = value; each.dispatchEvent(new Event('input', {bubbles: true}));
}
for (const name of ['pointermove', 'keydown']) for (const each of document.querySelectorAll('svg.map, table.confusion'))
  each.dispatchEvent(name === 'keydown' ? new KeyboardEvent(name, {key: 'ArrowDown', bubbles: true})
    : new PointerEvent(name, {clientX: 30, clientY: 30, bubbles: true}));
"""


def opened(browser, folder, page):
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    browser.requests()
    browser.open(path)
    assert browser.dialog() is None
    return path


@pytest.mark.parametrize("payload", [each.replace("//evil.example", "http://127.0.0.1:9/x") for each in PAYLOADS])
def test_nothing_of_a_hostile_page_runs_speaks_or_calls(browser, tmp_path, payload):
    plain, texts = hostile(payload)
    path = opened(browser, tmp_path, draw_page(plain, RUN, texts))
    browser.run(EVERYTHING)
    assert browser.dialog() is None
    assert browser.console() == []
    assert browser.requests() == [path.as_uri()]
    assert browser.run("return document.querySelectorAll('script').length") == 2
    assert browser.run("return document.querySelector('#cell-texts bdi') !== null")


def test_a_press_on_a_cell_shows_its_texts_and_arrows_go_on(browser, tmp_path):
    plain = report()
    counts = plain["test"]["confusion"]["counts"]
    cells = [CellText(i, f"text {i}", 0, 1, 0.5 + i / 100) for i in range(counts[0][1])]
    opened(browser, tmp_path, draw_page(plain, RUN, PageTexts(cells=cells)))
    browser.run("document.querySelector('[data-cell=\"0-1\"]').click()")
    shown = browser.run("return [...document.querySelectorAll('#cell-texts li bdi')].map(each => each.textContent)")
    assert shown == [f"text {i}" for i in reversed(range(len(cells)))][:12]
    focused = browser.run(
        "document.querySelector('[data-cell=\"0-0\"]').focus();"
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));"
        "return document.activeElement.dataset.cell"
    )
    assert focused == "0-1"


def test_many_labels_are_read_by_pointing_at_the_map(browser, tmp_path):
    plain = report(classes=150, n=600)
    opened(browser, tmp_path, draw_page(plain, RUN, PageTexts()))
    told = browser.run(
        "const map = document.querySelector('#map');"
        "for (const key of ['ArrowDown', 'ArrowDown', 'ArrowRight'])"
        "  map.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"
        "return document.querySelector('#map-cell').textContent"
    )
    assert told == f"truth label 2, answer label 1: {plain['test']['confusion']['counts'][2][1]} rows"


def test_the_slider_says_what_a_threshold_would_do(browser, tmp_path):
    plain = report(n=300)
    table = plain["score_table"]
    probs, truth = np.array(table["probabilities"]), np.array(table["truth"])
    opened(browser, tmp_path, draw_page(plain, RUN, PageTexts()))
    shown = browser.run(
        "const [choice, slider] = ['threshold-label', 'threshold'].map(id => document.getElementById(id));"
        "choice.value = 2; slider.value = 70; slider.dispatchEvent(new Event('input'));"
        "return ['precision', 'recall', 'count'].map(id => document.getElementById('threshold-' + id).textContent)"
    )
    answered, is_label = probs[:, 1] >= 0.7, truth == 1
    assert shown[0].startswith(f"{100 * is_label[answered].mean():.1f} % (")
    assert shown[1].startswith(f"{100 * answered[is_label].mean():.1f} % (")
    assert shown[2] == str(answered.sum())


def test_controls_are_there_only_where_a_script_runs(browser, tmp_path):
    opened(browser, tmp_path, draw_page(report(), RUN, PageTexts()))
    seen = "return document.getElementById('threshold').checkVisibility()"
    assert browser.run(seen)
    browser.run("document.documentElement.classList.remove('scripted')")
    assert not browser.run(seen)


@pytest.mark.parametrize("width", [390, 1100])
def test_a_page_is_never_wider_than_its_window(browser, tmp_path, width):
    names = ["a label with quite a long name that goes on", "b" * 70, "c", "d", "e", "f", "g", "h"]
    plain = report(classes=8, n=200, names=names)
    browser.ask("POST", "/window/rect", {"width": width, "height": 900})
    opened(browser, tmp_path, draw_page(plain, RUN, PageTexts()))
    wide, inner = browser.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= inner


def test_scores_at_the_shares_that_come_stand_beside_those_of_the_test():
    plain = report(asked=Asked(prior=np.array([0.8, 0.1, 0.1])), names=["<b>usual</b>", "rare", "other"])
    page = draw(plain, RUN, [])
    shown = page[page.index('id="at-prior"') :]
    shown = shown[: shown.index("</section>")].replace("\N{NO-BREAK SPACE}", " ")
    assert "80.0 %" in shown
    assert f"{100 * plain['at_prior']['accuracy']['value']:.1f} %" in shown
    assert f"{100 * plain['at_prior']['per_label'][1]['precision']['value']:.1f} %" in shown
    assert "<b>usual" not in shown
    assert 'id="at-prior"' not in draw(report(), RUN, [])
