import csv
import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data import dialects
from tagsmith.data.readers import read_frame

CELLS = st.text(st.sampled_from('ab", \n;\r\t'), max_size=8).filter(lambda cell: "\r" not in cell.replace("\r\n", ""))


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=20), st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
def test_the_fast_reader_gives_what_the_csv_module_gives(tmp_path_factory, rows, quoting):
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=quoting, lineterminator="\n").writerows([("text", "label"), *rows, ('"', "end")])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(stream.getvalue().encode())
    found = read_frame(path).frame
    expected = [tuple(cell or None for cell in row) for row in [*rows, ('"', "end")]]
    assert found.rows() == expected


def test_rows_of_many_lines_survive_the_readers_threads(tmp_path):
    """Each thread must find out whether it starts within quotes."""
    chosen = random.Random(0)
    rows = [("".join(chosen.choices('a,"\n', k=chosen.randrange(200))) + "x", f"label {i % 7}") for i in range(20_000)]
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([("text", "label"), *rows])
    assert read_frame(tmp_path / "a.csv").frame.rows() == rows


@pytest.mark.parametrize(
    ("data", "paired"),
    [
        ('a,"b"\n"c","d"\n', True),
        ('"""a""",""\n', True),
        ('"a\n,b",c\r\n"d"\r\n', True),
        ('a,b"c\n', False),
        ('"a"b,c\n', False),
        ('"a,b\n', False),
        ('a ,"b" ,c\n', False),
        ('5" and 6",x\n', False),
    ],
)
def test_quotes_are_paired_or_not_whatever_the_piece(tmp_path, monkeypatch, data, paired):
    from tagsmith.data.files import mapped

    (tmp_path / "a.csv").write_bytes(data.encode())
    for piece in (1, 2, 3, 1 << 20):
        monkeypatch.setattr(dialects, "_QUOTES_AT_ONCE", piece)
        with mapped(tmp_path / "a.csv") as mapping:
            assert dialects._are_paired(mapping, ",") == paired
