import polars as pl
import pytest

from tagsmith.data.columns import find_columns, texts_of
from tagsmith.data.pairs import PAIR
from tagsmith.data.readers import read
from tagsmith.errors import DataError

FRAME = pl.DataFrame(
    {"title": ["One", None, None, "Four"], "body": ["first", "second", None, None], "label": ["a", "b", "a", "b"]}
)


def texts(**asked):
    return texts_of(FRAME, find_columns(FRAME, **asked)).to_list()


def test_a_template_joins_columns_and_an_empty_cell_is_an_empty_string():
    assert texts(text="{title}. {body}") == ["One. first", ". second", None, "Four. "]


def test_a_template_may_hold_line_ends_tabs_and_braces():
    assert texts(text=r"{title}\n{{x}}\t{body}")[0] == "One\n{x}\tfirst"


def test_a_row_whose_cells_are_all_empty_has_no_text(tmp_path):
    FRAME.write_csv(tmp_path / "a.csv")
    table = read(tmp_path / "a.csv", text="{title} {body}")
    assert table.texts == ["One first", " second", "Four "]
    assert [change.rows for change in table.history if change.step == "drop"] == [(2,)]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{titel} {body}", "Did you mean 'title'"),
        ("{title", "cannot be read"),
        ("{}", "names no column"),
        ("{{x}}", "no column"),
    ],
)
def test_a_wrong_template_says_what_is_wrong(template, said):
    with pytest.raises(DataError, match=said):
        find_columns(FRAME, text=template)


def test_a_column_with_braces_in_its_name_is_a_column():
    frame = FRAME.rename({"body": "{body}"})
    assert find_columns(frame, text="{body}").text == "{body}"


def test_a_pair_is_one_string_with_a_separator():
    assert texts(text="title", text_pair="body") == [f"One{PAIR}first", f"{PAIR}second", None, f"Four{PAIR}"]


def test_a_separator_of_pairs_in_a_users_text_becomes_a_blank(tmp_path):
    (tmp_path / "a.csv").write_text(f"text,other,label\na{PAIR}b,c{PAIR},x\n")
    assert read(tmp_path / "a.csv").texts == ["a b"]
    assert read(tmp_path / "a.csv", text_pair="other").texts == [f"a b{PAIR}c "]


def test_a_column_cannot_be_both_texts_of_a_pair():
    with pytest.raises(DataError, match="a different one for each role"):
        find_columns(FRAME, text="{title} {body}", text_pair="body")


def test_time_and_part_are_carried_along_as_they_stand(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,when,use\none,a,2024-01-02,train\ntwo,b,,test\n")
    frame = read(tmp_path / "a.csv", time="when", part="use").frame
    assert frame["time"].to_list() == ["2024-01-02", None]
    assert frame["part"].to_list() == ["train", "test"]
    assert frame.schema["time"] == pl.String
