import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tagsmith.config import DataConfig
from tagsmith.data.checking import alike, check
from tagsmith.data.duplicates import group_duplicates
from tagsmith.data.pairs import PAIR
from tagsmith.data.table import Table
from tagsmith.data.token_lengths import TokenLengths

ROOT = Path(__file__).parents[2]


def look(texts, labels=None, *, against=None, tokens=None, **settings):
    return check(
        group_duplicates(Table.of(texts, labels), near=0.8), DataConfig(**settings), against=against, tokens=tokens
    )


def rows(count, seed=0):
    """Texts that are nothing alike, half of them of each label."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefghijklmnop"), 6)) for _ in range(300)]
    return [" ".join(random.choice(words, 8)) for _ in range(count)], ["yes", "no"] * (count // 2)


def codes(found):
    return {finding.code: finding.severity for finding in found.findings}


def test_a_plain_table_has_no_findings():
    found = look(*rows(2000))
    assert codes(found) == {}
    assert found.facts["rows"] == found.facts["looked_at"] == 2000
    assert found.facts["labels"]["counts"] == [{"label": "no", "rows": 1000}, {"label": "yes", "rows": 1000}]


def test_everything_is_plain_data_with_stable_keys():
    found = look(*rows(40), against=Table.of(*rows(20, seed=1)))
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert list(plain) == [
        *(
            "rows",
            "looked_at",
            "history",
            "labels",
            "lengths",
            "tokens",
            "duplicates",
            "conflicts",
            "leak",
            "giveaways",
        ),
        *("scripts", "languages", "cleaning", "test", "findings"),
    ]
    assert set(plain["labels"]) == {
        *("kind", "number", "counts", "smallest", "below_2", "below_50", "without", "alike", "why_none"),
    }
    assert set(plain["findings"][0]) == {"severity", "code", "text", "advice"}


def test_what_goes_into_a_report_holds_no_text_of_a_row():
    texts, labels = rows(200)
    texts += ["a secret text that stands twice"] * 2
    found = look(texts, [*labels, "yes", "no"])
    assert "secret" in json.dumps(found.as_dict())
    assert "secret" not in json.dumps(found.compact())
    assert found.compact()["conflicts"] == {"rows": 2, "texts": 1}


def test_the_worst_comes_first():
    texts, labels = rows(100)
    severities = [
        finding.severity for finding in look([*texts, *texts[:9]], [*labels, *["maybe"] * 8, "once"]).findings
    ]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert severities[0] == "error"


def test_texts_without_labels_are_looked_at():
    found = check(group_duplicates(Table.of(rows(100)[0]), near=0.8), DataConfig(), no_labels="No column.")
    assert found.facts["labels"]["kind"] == "none"
    assert found.facts["giveaways"] is None
    assert codes(found) == {"no_labels": "error"}
    assert "No column." in found.findings[0].text


def test_a_single_label_is_a_finding_and_no_error():
    assert codes(look(rows(400)[0], ["a"] * 400))["one_label"] == "error"


def test_labels_of_one_row_are_an_error_only_where_training_would_refuse():
    texts, labels = rows(400)
    labels[0] = "once"
    assert codes(look(texts, labels))["rare_labels"] == "error"
    assert "rare_labels" not in codes(look(texts, labels, rare_labels="drop"))


def test_sets_of_labels_are_counted_by_label():
    texts, _ = rows(400)
    found = look(texts, [["a", "b"], ["b"], [], ["c"]] * 100)
    labels = found.facts["labels"]
    assert (labels["kind"], labels["without"], labels["number"]) == ("multi", 100, 3)
    assert labels["counts"][0] == {"label": "b", "rows": 200}


def test_conflicts_are_listed_with_their_rows():
    texts, labels = rows(40)
    found = look([*texts, "The  same text", "the same TEXT", "the same text"], [*labels, "yes", "no", "no"])
    assert found.facts["conflicts"]["examples"] == [
        {"text": "The same text", "rows": [40, 41, 42], "labels": {"no": 2, "yes": 1}}
    ]
    assert codes(found)["conflicts"] == "warning"


def test_rows_that_stand_in_the_other_file_are_listed_with_its_unknown_labels():
    texts, labels = rows(600)
    other = Table.of([texts[3].upper(), texts[5] + "!", *rows(298, seed=9)[0]], ["yes", "new", *["no"] * 298])
    found = look(texts, labels, against=other)
    leak = found.facts["leak"]
    assert (leak["exact"], leak["near"], leak["rows"]) == (1, 2, 300)
    assert [(example["row"], example["exact"]) for example in leak["examples"]] == [(0, True), (1, False)]
    assert leak["unknown_labels"] == ["new"]
    assert codes(found) | {"leak": "warning", "unknown_labels": "error"} == codes(found)
    assert found.facts["test"]["rows"] == 300


def test_the_books_split_leaks(shared_data):
    from tagsmith.data.readers import read

    folder = shared_data / "sms_spam" / "book_split"
    grouped = group_duplicates(read(folder / "train.csv"), near=0.8)
    found = check(grouped, DataConfig(), against=read(folder / "test.csv"))
    assert (found.facts["leak"]["exact"], found.facts["leak"]["near"]) == (40, 58)
    assert codes(found)["leak"] == "warning"
    assert found.facts["test"]["minimum_difference"] == pytest.approx(2.0)


def test_tokens_that_a_backbone_does_not_know_or_cannot_read_are_warned_of():
    tokens = TokenLengths(100, 20.0, 300.0, 900, max_tokens=256, cut=0.08, per_word=3.1, unknown=0.06)
    found = codes(look(*rows(2000), tokens=tokens))
    assert found == {"unknown_tokens": "warning", "long_texts": "warning"}


def test_what_cleaning_would_change_is_counted_and_how_to_switch_it_on_is_said():
    texts, labels = rows(400)
    found = look([f"<p>{text}</p>" for text in texts[:20]] + texts[20:], labels)
    assert found.facts["cleaning"]["html"] == 20
    (finding,) = [finding for finding in found.findings if finding.code == "cleaning"]
    assert finding.severity == "warning"
    assert "--set data.clean=html" in finding.advice


def test_steps_that_are_on_already_stay_on_in_the_advice():
    texts, labels = rows(400)
    found = look([f"{text}\u200b" for text in texts], labels, clean="spaces,html")
    (finding,) = [finding for finding in found.findings if finding.code == "cleaning"]
    assert "--set data.clean=html,invisible,spaces" in finding.advice


def test_a_label_in_front_of_each_text_is_a_warning():
    texts, labels = rows(400)
    found = look([f"[{label}] {text}" for text, label in zip(texts, labels, strict=True)], labels)
    assert codes(found)["label_in_front"] == "warning"


def test_few_rows_and_unequal_labels_are_told():
    texts, _ = rows(200)
    found = codes(look(texts, ["a"] * 180 + ["b"] * 20))
    assert found | {"small_test": "warning", "small_labels": "note", "imbalance": "note"} == found


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Spam", "spam", "SPAM ", "ham"], [["SPAM ", "Spam", "spam"]]),
        (["card_arrival", "card_arival", "lost card"], [["card_arival", "card_arrival"]]),
        (["top up", "top-up", "topped up"], [["top up", "top-up"]]),
        (["positive", "negative", "neutral"], []),
        (["class 1", "class 2", "class 12", "class 21"], []),
        (["2019", "2018", "10", "1"], []),
        (["++", "--", "?"], []),
        (["refund", "refnud"], [["refnud", "refund"]]),
        (["visa", "vise"], []),
    ],
)
def test_names_that_a_slip_of_the_pen_could_have_made_two_of(names, expected):
    assert alike(names) == expected


def test_the_intents_of_a_bank_are_not_alike(shared_data):
    import polars as pl

    names = pl.read_parquet(shared_data / "banking77" / "train.parquet")["label"].unique().to_list()
    assert alike(names) == []


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        ([], []),
        (["a"], ["x"]),
        (["", " ", "\t"], ["x", "y", "x"]),
        ([f"one{PAIR}two"] * 3, ["x", "y", "x"]),
        (["x" * 100_000, "y"], ["x", "y"]),
        (["text"] * 3, [[], [], []]),
        (["\x00\u202e\ud7ff", "<b>"], ["<script>", "\x1b[31m"]),
    ],
    ids=["none", "one", "blank", "pairs", "long", "no labels in sets", "controls"],
)
def test_whatever_a_table_holds_gives_a_check(texts, labels):
    found = look(texts, labels)
    assert found.facts["rows"] == len(texts)
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_hundred_thousand_labels_are_counted_and_a_thousand_listed():
    texts = [f"text {i} of many" for i in range(100_000)]
    grouped = group_duplicates(Table.of(["a text"], ["x"]), near=0.8)
    table = Table.of(texts, [f"label {i}" for i in range(100_000)])
    found = check(replace(grouped, table=table), DataConfig())
    assert found.facts["labels"]["number"] == 100_000
    assert len(found.facts["labels"]["counts"]) == 1000
    assert found.facts["looked_at"] == 50_000


def test_the_reference_names_every_key_and_every_finding():
    page = (ROOT / "docs" / "reference" / "check.md").read_text(encoding="utf-8")
    keys, codes = (set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)) for part in page.split("## Findings"))
    about = {"tagsmith", "source", "against", "backbone", "notes"}
    assert keys == about | set(look(*rows(40)).as_dict())
    source = (ROOT / "src" / "tagsmith" / "data" / "findings.py").read_text(encoding="utf-8")
    written = re.findall(r'(?:"(?:error|warning|note)"|else "note"),\s+"(\w+)",', source)
    assert codes == {*written} - {"warning", "note"}
