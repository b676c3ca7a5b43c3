from collections import Counter

import polars as pl

from tagsmith.data.readers import read
from tagsmith.data.table import Table
from tagsmith.evaluation.facets import facets_of


def test_rows_are_cut_into_quarters_of_length():
    found = facets_of(Table.of(["x" * n for n in range(1, 101)]))["length"]
    assert Counter(found) == {
        "up to 25 characters": 25, "26 to 50 characters": 25, "51 to 75 characters": 25, "over 75 characters": 25,
    }  # fmt: skip


def test_texts_of_one_length_are_one_slice():
    assert set(facets_of(Table.of(["same"] * 40))["length"]) == {"up to 4 characters"}


def test_languages_slice_where_there_are_several():
    english, german = "the cat and the dog are in the house with you", "der Hund und die Katze sind nicht in dem Haus"
    found = facets_of(Table.of([english, german, "zzz"]))["language"]
    assert found == ["English", "German", None]
    assert "language" not in facets_of(Table.of([english] * 3))


def test_columns_that_were_asked_for_slice_and_times_too(tmp_path):
    path = tmp_path / "rows.csv"
    frame = pl.DataFrame(
        {
            "text": [f"message {i}" for i in range(8)],
            "label": ["a", "b"] * 4,
            "shop": ["north", "south"] * 4,
            "sent": [f"2024-01-0{i + 1}" for i in range(8)],
        }
    )
    frame.write_csv(path)
    found = facets_of(read(path, text="text", label="label", time="sent", slices=["shop"]))
    assert found["shop"] == ["north", "south"] * 4
    assert list(dict.fromkeys(found["time"])) == [
        "2024-01-01 to 2024-01-02", "2024-01-03 to 2024-01-04", "2024-01-05 to 2024-01-06", "2024-01-07 to 2024-01-08",
    ]  # fmt: skip


def test_times_that_cannot_be_read_slice_nothing(tmp_path):
    path = tmp_path / "rows.csv"
    pl.DataFrame({"text": ["one", "two"], "label": ["a", "b"], "sent": ["soon", "later"]}).write_csv(path)
    assert facets_of(read(path, text="text", label="label", time="sent"))["time"] == [None, None]
