import json

import pytest

from tagsmith.config import DataConfig
from tagsmith.data.corrections import learn_corrections, read_corrections
from tagsmith.data.preparing import prepare
from tagsmith.data.table import Table
from tagsmith.errors import DataError


def prepared(rows):
    texts, labels = zip(*rows, strict=True)
    return prepare(Table.of(texts, labels), DataConfig(), seed=7)


def learned(before, **corrections):
    return learn_corrections(before, Table.of(list(corrections), list(corrections.values())), near=0.8)


def written(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_corrections_join_the_training_rows_and_no_others(toy_rows):
    before = prepared(toy_rows)
    after = learned(before, **{"an entirely new remark about lamps": "praise"})
    assert len(after.splits.train) == len(before.splits.train) + 1
    assert after.splits.train.texts[-1] == "an entirely new remark about lamps"
    for name in ("validation", "calibration", "test"):
        assert getattr(after.splits, name) is getattr(before.splits, name)
    assert after.history[-1].step == "corrections"
    assert after.true_priors == before.true_priors


def test_a_correction_takes_the_place_of_the_training_row_with_its_text(toy_rows):
    before = prepared(toy_rows)
    text = before.splits.train.texts[0]
    wrong = before.splits.train.labels[0]
    right = "complaint" if wrong == "praise" else "praise"
    after = learned(before, **{f"  {text.upper()} ": right})
    labels = {
        label
        for each, label in zip(after.splits.train.texts, after.splits.train.labels, strict=True)
        if each.lower().strip() == text
    }
    assert labels == {right}


def test_a_correction_with_a_twin_among_the_held_out_rows_is_left_out_and_counted(toy_rows):
    before = prepared(toy_rows)
    held_out = before.splits.test.texts[0]
    after = learned(before, **{held_out: "praise", held_out + " indeed": "praise"})
    assert len(after.splits.train) == len(before.splits.train)
    assert "2 more were left out" in after.history[-1].reason


def test_row_numbers_and_groups_of_corrections_are_their_own(toy_rows):
    before = prepared(toy_rows)
    after = learned(before, one_new_text="praise", another_one="complaint")
    rows = after.splits.train.rows
    assert len(set(rows.tolist())) == len(rows)
    taken = {group for name, part in before.splits.items() for group in part.groups.tolist()}
    assert not taken & set(after.splits.train.groups[-2:].tolist())


def test_a_later_run_remembers_corrections_as_training_rows(toy_rows):
    before = prepared(toy_rows)
    table = Table.of(["an entirely new remark about lamps"], ["praise"])
    after = learn_corrections(before, table, near=0.8)
    assert before.remembered.parts_of(table).tolist() == [-1]
    assert after.remembered.parts_of(table).tolist() == [0]


def test_labels_that_the_rows_lack_are_refused(toy_rows):
    with pytest.raises(DataError, match=r"\['prais'\]"):
        learned(prepared(toy_rows), some_text="prais")


def test_the_last_correction_of_a_text_holds(tmp_path):
    file = written(
        tmp_path / "c.jsonl", {"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "a", "label": "z"}
    )
    assert read_corrections(file).texts == ["b", "a"]
    assert read_corrections(file).labels == ["y", "z"]


def test_label_sets_and_pairs_are_read(tmp_path):
    file = written(
        tmp_path / "c.jsonl", {"text": "a", "text_pair": "b", "labels": ["x", "y"]}, {"text": "c", "labels": []}
    )
    table = read_corrections(file)
    assert table.texts == ["a\x1eb", "c"]
    assert table.label_sets == [["x", "y"], []]


def test_line_ends_of_unicode_end_no_line(tmp_path):
    file = written(tmp_path / "c.jsonl", {"text": "a\u2028b\x85c", "label": "x"})
    assert read_corrections(file).texts == ["a\u2028b\x85c"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"text": "a"}',
        '{"text": 3, "label": "x"}',
        '{"text": " ", "label": "x"}',
        '{"text": "a\\u001eb", "label": "x"}',
        "3",
    ],
)
def test_a_line_that_is_no_correction_is_named(tmp_path, line):
    file = tmp_path / "c.jsonl"
    file.write_text('{"text": "a", "label": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match="Line 2"):
        read_corrections(file)


def test_a_file_that_is_absent_or_empty_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_corrections(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no corrections"):
        read_corrections(written(tmp_path / "c.jsonl"))
