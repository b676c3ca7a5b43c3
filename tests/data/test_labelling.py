import json
import shlex

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.config import Config, merge, parse_setting
from tagsmith.data.readers import read
from tagsmith.errors import DataError
from tagsmith.naming import reproduce
from tagsmith.pipeline import check


def write(folder, content, name="a.csv"):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def reasons(table):
    return [change.reason for change in table.history]


# --- several labels a row -------------------------------------------------------------------------------------------


def test_a_separator_cuts_cells_into_labels(tmp_path):
    path = write(tmp_path, 'text,label\none,"b; a;b"\ntwo,c\nthree,;\nfour,\n')
    table = read(path, label_separator=";")
    assert table.label_sets == [["a", "b"], ["c"], []]
    assert "no label: 1 rows" in reasons(table)
    assert any("cells cut at ';'" in reason for reason in reasons(table))
    assert any("counts once: 1 rows" in reason for reason in reasons(table))


@pytest.mark.parametrize("cell", ['["a", "b"]', "['a', 'b']", "['b','a','a']", '["a", "b", ""]'])
def test_cells_that_are_lists_are_found_by_looking_and_told(tmp_path, cell):
    pl.DataFrame({"text": ["one", "two"], "label": [cell, "[]"]}).write_csv(tmp_path / "a.csv")
    table = read(tmp_path / "a.csv")
    assert table.label_sets == [["a", "b"], []]
    assert any("cells that hold lists" in reason for reason in reasons(table))


def test_cells_of_which_one_is_no_list_are_plain_labels_unless_lists_are_asked_for(tmp_path):
    path = write(tmp_path, "text\tlabel\none\t[a]\ntwo\t['b']\n", "a.tsv")
    assert read(path).labels == ["[a]", "['b']"]
    with pytest.raises(DataError, match=r"Row 1 has '\[a\]' in the label column 'label'"):
        read(path, label_separator="json")


def test_numpys_way_to_print_lists_is_not_mistaken_for_one_label(tmp_path):
    path = write(tmp_path, "text\tlabel\none\t['a' 'b']\n", "a.tsv")
    with pytest.raises(DataError, match="Expected a list such as"):
        read(path, label_separator="json")


def test_columns_of_zero_and_one_are_labels(tmp_path):
    rows = "text,joy,anger\none,1,0\ntwo,TRUE,1.0\nthree,0,false\nfour,,\nfive,,1\n"
    table = read(write(tmp_path, rows.replace("1.0", "1")), label=["joy", "anger"])
    assert table.label_sets == [["joy"], ["anger", "joy"], [], ["anger"]]
    assert "no label: 1 rows" in reasons(table)


def test_a_cell_that_is_neither_zero_nor_one_is_named(tmp_path):
    path = write(tmp_path, "text,joy,anger\none,1,0\ntwo,2,1\n")
    with pytest.raises(DataError, match="Row 2 has '2' in the label column 'joy'"):
        read(path, label=["joy", "anger"])


def test_one_hot_columns_are_hinted_at(tmp_path):
    rows = "".join(f"a rather long text with number {i},{i % 2},{i % 3 % 2}\n" for i in range(12))
    with pytest.raises(DataError, match="""--set data.label='\\["joy","anger"\\]'"""):
        read(write(tmp_path, "words,joy,anger\n" + rows))


def test_numbers_in_lists_become_words(tmp_path):
    lines = [json.dumps({"text": f"text {i}", "label": label}) for i, label in enumerate([[1, 2.0], [True], [], None])]
    assert read(write(tmp_path, "\n".join(lines), "a.jsonl")).label_sets == [["1", "2"], ["true"], []]


def test_lone_labels_among_lists_are_lists_of_one(tmp_path):
    lines = [json.dumps({"text": f"text {i}", "label": label}) for i, label in enumerate([["a"], "b", 1])]
    assert read(write(tmp_path, "\n".join(lines), "a.jsonl")).label_sets == [["a"], ["b"], ["1"]]


def test_lists_that_come_late_are_lists_all_the_same(tmp_path):
    rows = [{"text": f"text {i}", "label": "a"} for i in range(3000)] + [{"text": "last", "label": ["a", "b"]}]
    table = read(write(tmp_path, "\n".join(map(json.dumps, rows)), "a.jsonl"))
    assert table.label_sets[-1] == ["a", "b"]


def test_a_separator_for_lists_is_an_error(tmp_path):
    path = write(tmp_path, '{"text": "one", "label": ["a"]}\n', "a.jsonl")
    with pytest.raises(DataError, match="holds lists already"):
        read(path, label_separator=",")


# --- rules ----------------------------------------------------------------------------------------------------------


def test_labels_merge_by_rule_and_are_counted(tmp_path):
    path = write(tmp_path, "text,label\none,Spam\ntwo,SPAM\nthree,ham\n")
    table = read(path, merge_labels={"spam": ["Spam", "SPAM", "spma"]})
    assert table.labels == ["spam", "spam", "ham"]
    (merged,) = [change for change in table.history if change.step == "merge labels"]
    assert merged.rows == (0, 1)
    assert "became 'spam' in 2 rows" in merged.reason
    assert "no row has 'spma'" in merged.reason


def test_dropped_labels_take_their_rows_with_them(tmp_path):
    table = read(write(tmp_path, "text,label\none,a\ntwo,junk\nthree,b\n"), drop_labels=["junk"])
    assert table.labels == ["a", "b"]
    assert [change.rows for change in table.history if change.step == "drop labels"] == [(1,)]


def test_in_sets_a_dropped_label_leaves_its_row(tmp_path):
    path = write(tmp_path, 'text,label\none,"a,junk"\ntwo,junk\nthree,"b,B"\n')
    table = read(path, label_separator=",", drop_labels=["junk"], merge_labels={"b": ["B"]})
    assert table.label_sets == [["a"], [], ["b"]]


def test_similar_names_are_told_and_never_merged(tmp_path):
    table = read(write(tmp_path, "text,label\n1,Spam\n2,spam \n3,SPAM\n4,not_ok\n5,not ok\n6,fine\n"))
    (told,) = [change for change in table.history if change.step == "similar labels"]
    assert "'SPAM' (1), 'Spam' (1), 'spam' (1)" in told.reason
    assert "'not ok' (1), 'not_ok' (1)" in told.reason
    assert "fine" not in told.reason
    assert len(set(table.labels)) == 6


@given(
    st.lists(
        st.tuples(st.sampled_from(["", " ", "a text", "b"]), st.sampled_from(["", " x ", "x", "y", "z"])),
        min_size=1,
        max_size=30,
    )
)
def test_every_row_is_kept_or_dropped_with_a_reason(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    frame = pl.DataFrame([*rows, ("last", "x")], schema=["text", "label"], orient="row")
    frame.write_csv(path, quote_style="always")
    table = read(path, drop_labels=["z"])
    dropped = [row for change in table.history if change.rows_after < change.rows_before for row in change.rows]
    assert sorted([*dropped, *table.rows.tolist()]) == list(range(len(rows) + 1))
    for before, after in zip(table.history, table.history[1:], strict=False):
        assert before.rows_after == after.rows_before


def test_rules_survive_the_command_that_repeats_a_run():
    data = {
        "label": ["joy", "anger"],
        "merge_labels": {"a b": ['"x"', "y=z"], "": []},
        "drop_labels": ["é"],
        "delimiter": "\t",
    }
    config = Config.of({"data": data | {"text": "{title}\\n{body}", "label_separator": "none"}})
    words = shlex.split(reproduce("a.csv", config=config))
    again = [parse_setting(words[i + 1]) for i, word in enumerate(words) if word == "--set"]
    assert Config.of(merge(*again)) == config


def test_similar_names_become_a_note(tmp_path, heard):
    path = write(
        tmp_path, "text,label\n" + "".join(f"text number {i},{'Spam' if i % 2 else 'spam'}\n" for i in range(9))
    )
    check(path, listen=heard.append)
    assert any("taken as different" in str(event.values.get("text")) for event in heard)
