import unicodedata

import pytest

from tagsmith.config import DataConfig
from tagsmith.data.check_text import WIDTH, cut, lines_of
from tagsmith.data.checking import check
from tagsmith.data.duplicates import group_duplicates
from tagsmith.data.table import Table
from tagsmith.data.token_lengths import TokenLengths

TOKENS = TokenLengths(100, 20.0, 300.0, 900, max_tokens=256, cut=0.08, per_word=3.1, unknown=0.06)


def found(texts, labels=None, **options):
    return check(group_duplicates(Table.of(texts, labels), near=0.8), DataConfig(), **options).as_dict()


def columns(line):
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in line)


NASTY = ["\x1b[31mred\x1b[0m\x07", "中文" * 100, "\u202eevil", "e\u0301" * 200, "a\nb\tc" * 50, "x" * 500, "😀" * 90]


@pytest.mark.parametrize("options", [{}, {"tokens": TOKENS, "against": Table.of(NASTY, ["new " * 9] * 7)}], ids=len)
def test_lines_have_at_most_80_columns_and_no_orders_for_a_terminal(options):
    labels = [f"a label with a very long name indeed {text}" for text in NASTY]
    lines = list(
        lines_of(found([*NASTY, *NASTY], [*labels, *reversed(labels)], **options) | {"source": "s\x1b[2J" * 9})
    )
    assert max(columns(line) for line in lines[1:]) <= WIDTH
    said = "\n".join(lines)
    assert not [
        sign for sign in said if sign != "\n" and unicodedata.category(sign) in ("Cc", "Cf") and sign != "\u200d"
    ]


def test_labels_are_drawn_in_proportion():
    lines = list(lines_of(found(["a", "b", "c", "d", "e"], ["x", "x", "x", "x", "y"]), bar="#"))
    x, y = (next(line for line in lines if line.strip().startswith(name)) for name in ("x ", "y "))
    assert x.count("#") == 4 * y.count("#") == 28
    assert "80.0 %" in x


def test_only_the_commonest_labels_are_drawn_and_the_rest_counted():
    lines = list(lines_of(found([f"text {i}" for i in range(90)], [f"l{i % 30}" for i in range(90)])))
    assert any("and 10 more, the last" in line for line in lines)


def test_a_command_is_not_broken_over_lines():
    lines = list(lines_of(found(["<p>one</p>", "two"] * 20, ["a", "b"] * 20)))
    assert any("--set data.clean=html" in line for line in lines)


def test_it_ends_with_the_findings():
    lines = list(lines_of(found(["one", "two"], ["a", "a"])))
    start = lines.index("Findings, the worst first")
    assert lines[start + 1].startswith("  1. ERROR: All rows have the one label 'a'.")
    assert lines[-1].startswith("     ")


def test_unlabelled_texts_are_shown_without_labels():
    lines = list(lines_of(found(["one", "two"])))
    assert not any(line.startswith("Labels") for line in lines)


@pytest.mark.parametrize(("text", "most", "expected"), [("abc", 3, "abc"), ("abcd", 3, "a…"), ("中文中文", 4, "…")])
def test_a_name_is_cut_by_its_width(text, most, expected):
    assert cut(text, most) == expected
