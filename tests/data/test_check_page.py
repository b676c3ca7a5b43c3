from html.parser import HTMLParser

import pytest

from tagsmith.config import DataConfig
from tagsmith.data.check_page import draw_check
from tagsmith.data.checking import check
from tagsmith.data.duplicates import group_duplicates
from tagsmith.data.table import Table
from tagsmith.data.token_lengths import TokenLengths

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "</bdi></td></table></main><h1>broken</h1>",
    "<!--",
    "${title} $$ $findings",
    "\u202eevil\u0000\u0007",
    "مرحبا 🎉",
    "x" * 5000,
]
TOKENS = TokenLengths(100, 20.0, 300.0, 900, max_tokens=256, cut=0.08, per_word=3.1, unknown=0.06)
VOID = {"meta", "br"}


class Tags(HTMLParser):
    """The tags and attributes that a browser would see, and whether they are balanced."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes, self.open = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(texts, labels=None, *, source="reviews.csv", **options):
    found = check(group_duplicates(Table.of(texts, labels), near=0.8), DataConfig(), **options).as_dict()
    return draw_check(found | {"source": source, "against": source, "notes": [source]})


def seen(html):
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    return tags


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda text: text[:12])
def test_words_of_strangers_stay_words(payload):
    texts, labels = [payload, payload, f"another {payload}"] * 10, [payload, "b", payload] * 10
    tags = seen(page(texts, labels, source=payload, against=Table.of(texts, labels), tokens=TOKENS))
    assert not {"script", "img", "iframe", "h4", "base", "link"} & tags.names
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert not [value for name, value in tags.attributes if name in ("href", "src")]


def test_the_page_needs_nothing_else():
    html = page(["one", "two"], ["a", "b"])
    assert "default-src 'none'" in html
    assert "http://" not in html
    assert "https://" not in html


def test_a_picture_is_told_in_a_table_too():
    html = page(["one", "two", "three"], ["first label", "second label", "first label"])
    assert 'role="img" aria-label=' in html
    assert html.count("first label") >= 2
    assert "66.7 %" in html


@pytest.mark.parametrize(
    ("texts", "labels"),
    [([], []), (["a"], None), (["a", "b"], [["x"], []]), (["a"] * 50, [f"l{i}" for i in range(50)])],
    ids=["empty", "unlabelled", "sets", "many labels"],
)
def test_whatever_was_checked_has_a_page(texts, labels):
    assert "<h2>Findings" in page(texts, labels)
    seen(page(texts, labels))


def test_no_more_of_a_text_is_shown_than_its_start():
    text = " ".join(f"word{i}" for i in range(200))
    html = page([text, text], ["a", "b"])
    assert "word5" in html
    assert "word150" not in html
