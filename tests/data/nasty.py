"""Files that people really have, and files that mean harm: each a function that writes one into a folder.

`CORPUS` names each with what reading it must give: a number of rows, or words of the one paragraph that refuses it.
"""

import datetime
import gzip
import io
import json
import os
import random
import resource
import sqlite3
import struct
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import openpyxl
import polars as pl
import zstandard

ROWS = "text,label\n" + "".join(f"text number {i},{'ab'[i % 2]}\n" for i in range(6))
LINES = "".join(json.dumps({"text": f"text number {i}", "label": "ab"[i % 2]}) + "\n" for i in range(6))


@dataclass(frozen=True)
class Nasty:
    """How a file comes to be, and what reading it gives; `heavy` ones are read in a process of their own."""

    make: object
    gives: int | str
    heavy: bool = False
    options: tuple = ()


CORPUS = {}


def nasty(gives, *, heavy=False, **options):
    """Enter the function below into the corpus."""

    def enter(make):
        CORPUS[make.__name__] = Nasty(make, gives, heavy, tuple(options.items()))
        return make

    return enter


def content(name, data, gives, *, suffix=".csv", heavy=False, **options):
    """Enter a file with these bytes into the corpus."""

    def make(folder):
        path = folder / f"{name}{suffix}"
        path.write_bytes(data() if callable(data) else data if isinstance(data, bytes) else data.encode())
        return path

    CORPUS[name] = Nasty(make, gives, heavy, tuple(options.items()))


# --- text: rows and cells -------------------------------------------------------------------------------------------

content("empty", b"", "is empty")
content("only_blanks", b"  \n\t\n  \r\n", "is empty")
content("only_a_byte_order_mark", b"\xef\xbb\xbf", "is empty")
content("only_a_byte_order_mark_of_utf_16", b"\xff\xfe", "is empty")
content("header_only", "text,label\n", "no rows")
content("one_lone_word", "hello", "has a header")
content("one_lone_zero_byte", b"\0", "not a text file")
content("short_rows", "text,label\none,a\ntwo\nthree,b\nfour,a\n", 3)
content("long_rows", "text,label\none,a\ntwo,b,c,d\nthree,b\n", "4 cells and the first one 2")
content("long_rows_with_quotes", 'text,label\n"one",a\n"two",b,c,d\n"three",b\n', "4 cells and the first row 2")
content("unclosed_quote", 'text,label\n"one,a\ntwo,b\nthree,b\nfour,a\n', 4)
content("unclosed_quote_standard", 'text,label\n"one,a\ntwo,b\n', "never closes", quoting="standard")
content("quotes_within_cells", 'text,label\nsay "hi" now,a\n5" pipe,b\n', 2)
content("only_quotes", '"' * 5001, "No column looks like labels")
content("line_ends_in_cells", 'text,label\n"a\n\nb\r\nc",x\n"d",y\n', 2)
content("carriage_returns_only", ROWS.replace("\n", "\r"), 6)
content("mixed_line_ends", "text,label\r\none,a\ntwo,b\r\nthree,a\n", 3)
content("blank_lines_between", "text,label\n\none,a\n\n\ntwo,b\n\n", 2)
content("no_last_line_end", ROWS.rstrip("\n"), 6)
content("zero_bytes", b"text,label\none\0two,a\nthree,b\n", "zero byte")
content("control_characters", "text,label\na\x01\x02\x07\x1b[31m,a\nb\x7f,b\n", 2)
content("separators_of_our_own", "text,label\na\x1e\x1fb\N{SYMBOL FOR END OF TRANSMISSION},a\nc,b\n", 2)
content("duplicate_column_names", "text,text,label\none,uno,a\ntwo,dos,b\n", 2)
content("duplicate_column_names_quoted", 'text,label,label\n"one",a,x\n"two",b,y\n', 2)
content("nameless_columns", "text,label,,\none,a,,\ntwo,b,,\n", 2)
content("all_cells_empty", "text,label\n,\n,\n,\n", "None of the 3 rows")
content("words_that_mean_nothing", "text,label\nNA,null\nnull,None\nNone,NaN\n", 3)
content("formulas_in_a_csv", "text,label\n=cmd|'/c calc'!A1,a\n@SUM(1),b\n", 2)
content(
    "digits_as_names", "1st_text,2nd_label\nsome longer text here,a\nanother longer text,b\nand a third text,a\n", 3
)
content("ten_megabytes_in_a_cell", lambda: f"text,label\n{'word ' * 2_000_000},a\nshort,b\n".encode(), 2)
content("ten_megabytes_in_a_quoted_cell", lambda: f'text,label\n"{"a, " * 3_400_000}",a\n"b",b\n'.encode(), 2)
content("a_million_columns", lambda: ",".join(f"c{i}" for i in range(10**6)).encode() + b"\n", "columns", heavy=True)
content("a_million_columns_of_numbers", lambda: (b",".join([b"1"] * 10**6) + b"\n") * 3, "columns", heavy=True)
content("a_million_blank_lines", lambda: b"text,label\none,a\n" + b"\n" * 10**6 + b"two,b\n", 2)
content(
    "a_hundred_thousand_labels",
    lambda: ("text,label\n" + "".join(f"text {i},label {i}\n" for i in range(10**5))).encode(),
    10**5,
)
content("labels_of_many_kinds", "text,label\na,1\nb,1.0\nc,true\nd,True\ne,x\n", 5)

# --- text: encodings ------------------------------------------------------------------------------------------------

JAPANESE = "".join(
    f"{'良悪'[i % 2]},この映画はとても面白かったです。また見たいと思います。第{i}回\n" for i in range(40)
)
CHINESE = "".join(f"{'好坏'[i % 2]},这家酒店的服务非常好，房间也很干净，下次还会再来。第{i}次\n" for i in range(40))
GERMAN = "".join(f"{'ab'[i % 2]},Müde Füße müssen früh über Brücken gehen Nummer {i}\n" for i in range(40))
content("utf_8_with_mark", ("label,text\n" + GERMAN).encode("utf-8-sig"), 40)
content("utf_16_with_mark", ("label,text\n" + JAPANESE).encode("utf-16"), 40)
content("utf_16_without_mark", ("label,text\n" + JAPANESE).encode("utf-16-le"), 40)
content("utf_16_big_endian_without_mark", ("label,text\n" + GERMAN).encode("utf-16-be"), 40)
content("utf_16_cut_in_a_character", ("label,text\n" + GERMAN).encode("utf-16")[:-3], "not a text file")
content("utf_32_with_mark", ("label,text\n" + GERMAN).encode("utf-32"), 40)
content("shift_jis", ("label,text\n" + JAPANESE).encode("cp932"), 40)
content("gb18030", ("label,text\n" + CHINESE).encode("gb18030"), 40)
content("latin_1", ("label,text\n" + GERMAN).encode("latin-1"), 40)
content(
    "mixed_encodings", ("label,text\n" + GERMAN).encode() + ("a,größer in cp1252\nb,Übermut\n").encode("cp1252"), 42
)
content("utf_8_cut_in_a_character", ("label,text\n" + GERMAN).encode() + "a,ü".encode()[:-1], 41)
content("overlong_utf_8", b"text,label\n\xc0\xafabc,a\n\xed\xa0\x80,b\n", 2)
content("asked_encoding_is_wrong", "text,label\nü,a\n".encode("latin-1"), "not valid utf-8", encoding="utf-8")
content("noise", lambda: random.Random(1).randbytes(100_000), "not a text file")
content("noise_without_zeros", lambda: bytes(random.Random(2).choices(range(1, 256), k=50_000)), "not a text file")
content("a_picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0", "not a text file")
content("a_pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<</Type/Catalog>>\nendobj\n" + b"\0" * 50, "not a text file")
content("a_program", b"\x7fELF\x02\x01\x01" + b"\0" * 200, "not a text file")

# --- JSON -----------------------------------------------------------------------------------------------------------

content(
    "lone_surrogates",
    '{"text": "\\ud800 half", "label": "a"}\n{"text": "two \\ude00", "label": "b"}\n',
    2,
    suffix=".jsonl",
)
content(
    "a_pair_of_surrogates",
    '{"text": "\\ud83d\\ude00", "label": "a"}\n{"text": "two", "label": "b"}\n',
    2,
    suffix=".jsonl",
)
content("not_a_number", '{"text": "one", "label": NaN}\n{"text": "two", "label": "b"}\n', 1, suffix=".jsonl")
content("infinity", '{"text": "one", "label": Infinity}\n{"text": "two", "label": "b"}\n', 2, suffix=".jsonl")
content("nested_objects", '{"text": {"a": [1]}, "label": "x"}\n{"text": {"a": 2}, "label": "y"}\n', 2, suffix=".jsonl")
content(
    "types_that_change",
    '{"text": 1, "label": "x"}\n{"text": [2], "label": true}\n{"text": "c", "label": 1}\n',
    "holds lists",
    suffix=".jsonl",
)
content(
    "keys_that_change",
    '{"text": "a", "label": "x"}\n{"label": "y", "other": 1, "text": "b"}\n{"text": "c"}\n',
    2,
    suffix=".jsonl",
)
content(
    "a_key_named_twice", '{"text": "a", "label": "x", "label": "y"}\n{"text": "b", "label": "y"}\n', 2, suffix=".jsonl"
)
content("blank_lines_in_json", LINES.replace("\n", "\n\n"), 6, suffix=".jsonl")
content("a_broken_line", LINES + '{"text": "broken\n' + LINES, "line 7 is no JSON object", suffix=".jsonl")
content("two_objects_on_a_line", LINES.replace("\n", ""), "line 1 is no JSON object", suffix=".jsonl")
content("lines_of_lists", "[1, 2]\n[3, 4]\n", "element 1 is no object", suffix=".jsonl")
content("lines_of_words", '"a"\n"b"\n', "line 1 is no JSON object", suffix=".jsonl")
content("an_array", "[" + ",\n".join(LINES.splitlines()) + "]", 6, suffix=".json")
content("an_array_with_no_end", "[" + ",".join(LINES.splitlines()), "no JSON object", suffix=".json")
content("an_empty_array", "[]", "no rows", suffix=".json")
content("an_empty_object", "{}", "no rows", suffix=".json")
content("an_object_of_columns", '{"text": ["a", "b"], "label": ["x", "y"]}', 2, suffix=".json")
content("an_object_of_uneven_columns", '{"text": ["a", "b"], "label": ["x"]}', "different lengths", suffix=".json")
content(
    "an_object_with_data",
    '{"version": 1,\n "data": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]}',
    2,
    suffix=".json",
)
content(
    "deep_arrays",
    lambda: b'{"text": ' + b"[" * 10**6 + b"]" * 10**6 + b', "label": "a"}\n',
    "nested too deeply",
    suffix=".jsonl",
    heavy=True,
)
content("deep_objects", lambda: b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "nested too deeply", suffix=".json", heavy=True)
content(
    "deep_below_a_thousand_lines",
    lambda: LINES.encode() * 300 + b'{"text":' + b"[" * 10**5 + b"\n",
    "line 1801",
    suffix=".jsonl",
    heavy=True,
)
content("deep_array_of_arrays", lambda: b"[" * 10**6, "nested too deeply", suffix=".json", heavy=True)
content(
    "a_number_of_a_million_digits",
    lambda: b'{"text": ' + b"9" * 10**6 + b', "label": "a"}\n',
    "line 1",
    suffix=".jsonl",
)
content("a_zero_character", '{"text": "a\\u0000b", "label": "x"}\n{"text": "c", "label": "y"}\n', 2, suffix=".jsonl")


# --- archives -------------------------------------------------------------------------------------------------------


def zipped(folder, entries, name="a.zip"):
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    return folder / name


@nasty("leads out of it")
def zip_that_leads_out(folder):
    return zipped(folder, {"../../evil.csv": ROWS})


@nasty("leads out of it")
def zip_of_an_absolute_path(folder):
    return zipped(folder, {"/etc/evil.csv": ROWS})


@nasty("would unpack to", heavy=True)
def zip_bomb(folder):
    return zipped(folder, {"a.csv": b"a" * (100 << 20)})


@nasty("damaged", heavy=True)
def zip_bomb_that_lies(folder):
    """The directory says 100 bytes; what comes out is more."""
    path = zipped(folder, {"a.csv": b"a" * (10 << 20)})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = data.find(mark) + offset
        data[place : place + 4] = struct.pack("<I", 100)
    path.write_bytes(data)
    return path


@nasty("would unpack to", heavy=True)
def gzip_bomb(folder):
    (folder / "a.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"a" * (150 << 20)))
    return folder / "a.csv.gz"


@nasty("would unpack to", heavy=True)
def zstandard_bomb(folder):
    (folder / "a.csv.zst").write_bytes(zstandard.ZstdCompressor(level=3).compress(b"a" * (200 << 20)))
    return folder / "a.csv.zst"


@nasty("damaged", heavy=True)
def zstandard_that_wants_all_memory(folder):
    """A frame that asks for a window of 2 GiB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    stream = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(stream, closefd=False) as writer:
        writer.write(ROWS.encode())
    data = bytearray(stream.getvalue())
    data[5] = (31 - 10) << 3
    (folder / "a.csv.zst").write_bytes(data)
    return folder / "a.csv.zst"


@nasty("no table")
def zip_in_a_zip(folder):
    return zipped(folder, {"inner.zip": zipped(folder, {"a.csv": ROWS}, "inner.zip").read_bytes()})


@nasty("is an archive itself")
def zip_disguised_in_a_zip(folder):
    return zipped(folder, {"a.csv": zipped(folder, {"a.csv": ROWS}, "inner.zip").read_bytes()})


@nasty("is an archive itself")
def gzip_in_gzip(folder):
    (folder / "a.csv.gz").write_bytes(gzip.compress(gzip.compress(ROWS.encode())))
    return folder / "a.csv.gz"


@nasty("is encrypted")
def encrypted_zip(folder):
    path = zipped(folder, {"a.csv": ROWS})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.find(mark) + offset] |= 1
    path.write_bytes(data)
    return path


@nasty("no table, but nothing")
def zip_of_nothing(folder):
    return zipped(folder, {})


@nasty("is empty")
def zip_of_an_empty_table(folder):
    return zipped(folder, {"a.csv": b""})


@nasty(6)
def zip_of_many_things(folder):
    entries = {"README.md": "read me", "__MACOSX/._a.csv": "junk", "deep/er/a.csv": ROWS, "z.csv": "text,label\n"}
    return zipped(folder, entries)


@nasty("damaged")
def zip_cut_off(folder):
    path = zipped(folder, {"a.csv": ROWS * 100})
    path.write_bytes(path.read_bytes()[:200])
    return path


@nasty("damaged")
def zip_with_a_wrong_checksum(folder):
    path = zipped(folder, {"a.csv": ROWS * 100})
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    return path


@nasty("damaged")
def gzip_cut_off(folder):
    (folder / "a.csv.gz").write_bytes(gzip.compress(ROWS.encode() * 100)[:-20])
    return folder / "a.csv.gz"


@nasty("is empty")
def gzip_of_nothing(folder):
    (folder / "a.csv.gz").write_bytes(gzip.compress(b""))
    return folder / "a.csv.gz"


@nasty(6)
def gzip_without_its_suffix(folder):
    (folder / "a.csv").write_bytes(gzip.compress(ROWS.encode()))
    return folder / "a.csv"


@nasty(12)
def zstandard_of_two_frames(folder):
    packed = zstandard.ZstdCompressor().compress
    (folder / "a.csv.zst").write_bytes(packed(ROWS.encode()) + packed(ROWS.partition("\n")[2].encode()))
    return folder / "a.csv.zst"


# --- Parquet and Arrow ----------------------------------------------------------------------------------------------


def parquet(folder, columns):
    pl.DataFrame(columns).write_parquet(folder / "a.parquet")
    return folder / "a.parquet"


@nasty("could not be read as Parquet")
def parquet_cut_off(folder):
    path = parquet(folder, {"text": ["a", "b"], "label": ["x", "y"]})
    path.write_bytes(path.read_bytes()[:-30])
    return path


@nasty("could not be read as Parquet")
def parquet_with_a_damaged_footer(folder):
    path = parquet(folder, {"text": ["a", "b"] * 50, "label": ["x", "y"] * 50})
    data = bytearray(path.read_bytes())
    data[-60:-8] = b"\xff" * 52
    path.write_bytes(data)
    return path


@nasty("like labels")
def parquet_of_numbers(folder):
    return parquet(folder, {"one": [1.5, 2.5, 3.5] * 5, "two": [1, 2, 3] * 5, "three": [0, 1, 0] * 5})


@nasty("holds lists or records")
def parquet_of_records_as_text(folder):
    return parquet(folder, {"text": [{"a": 1}, {"a": 2}], "label": ["x", "y"]})


@nasty("holds lists or records")
def parquet_of_lists_of_lists_as_label(folder):
    return parquet(folder, {"text": ["a", "b"], "label": [[["x"]], [["y"]]]})


@nasty(2)
def parquet_of_bytes(folder):
    return parquet(folder, {"text": [b"one", b"two"], "label": ["x", "y"]})


@nasty("lists or records")
def parquet_of_bytes_that_are_no_text(folder):
    return parquet(folder, {"text": [b"\xff\xfe", b"\x80"], "label": ["x", "y"]})


@nasty("no rows")
def parquet_without_rows(folder):
    return parquet(folder, {"text": pl.Series([], dtype=pl.String), "label": pl.Series([], dtype=pl.String)})


@nasty("None of the 3 rows")
def parquet_of_nulls(folder):
    return parquet(folder, {"text": [None] * 3, "label": ["x", "y", "x"]})


@nasty(3)
def parquet_of_times_and_categories(folder):
    times = pl.Series(["2024-01-01", "2024-01-02", "2024-01-03"]).str.to_datetime("%Y-%m-%d")
    labels = pl.Series(["x", "y", "x"], dtype=pl.Categorical)
    return parquet(folder, {"text": ["a", "b", "c"], "when": times, "label": labels})


@nasty("could not be read as Arrow")
def arrow_cut_off(folder):
    pl.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}).write_ipc(folder / "a.feather")
    (folder / "a.feather").write_bytes((folder / "a.feather").read_bytes()[:40])
    return folder / "a.feather"


@nasty("could not be read as Arrow")
def arrow_that_asks_for_all_memory(folder):
    """Each compressed column begins with its size; a wrong one makes the reader abort."""
    path = folder / "a.feather"
    pl.DataFrame({"text": ["abc " * 500, "b"] * 50, "label": ["x", "y"] * 50}).write_ipc(path, compression="zstd")
    data = path.read_bytes()
    frame = data.find(zstandard.FRAME_HEADER)
    while frame >= 0:
        data = data[: frame - 8] + struct.pack("<q", 1 << 60) + data[frame:]
        frame = data.find(zstandard.FRAME_HEADER, frame + 4)
    path.write_bytes(data)
    return path


@nasty(2)
def arrow_stream(folder):
    pl.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}).write_ipc_stream(folder / "a.arrow")
    return folder / "a.arrow"


# --- Excel ----------------------------------------------------------------------------------------------------------


def workbook(folder, *sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"sheet {number}")
        for row in rows:
            sheet.append(row)
    book.save(folder / "a.xlsx")
    return folder / "a.xlsx"


@nasty(2)
def excel_with_formulas_and_dates(folder):
    rows = [["text", "label", "when", "sum"], ["one", 1, datetime.date(2024, 1, 2), "=1+1"], ["two", 2.0, None, None]]
    return workbook(folder, rows)


@nasty(2)
def excel_with_an_empty_first_sheet(folder):
    return workbook(folder, [], [["text", "label"], ["one", "a"], ["two", "b"]])


@nasty("no filled sheet")
def excel_without_cells(folder):
    return workbook(folder, [], [])


@nasty("no rows")
def excel_header_only(folder):
    return workbook(folder, [["text", "label"]])


@nasty("has the columns")
def excel_with_duplicate_names(folder):
    return workbook(folder, [["text", "text", "label"], ["one", "uno", "a"], ["two", "dos", "b"]])


@nasty("could not be read as Excel")
def excel_cut_off(folder):
    path = workbook(folder, [["text", "label"], ["one", "a"]])
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["xl/worksheets/sheet1.xml"] = parts["xl/worksheets/sheet1.xml"][:100]
    return zipped(folder, parts, "a.xlsx")


@nasty("would unpack to", heavy=True)
def excel_bomb(folder):
    path = workbook(folder, [["text", "label"], ["one", "a"]])
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["xl/sharedStrings.xml"] = b" " * (100 << 20)
    return zipped(folder, parts, "a.xlsx")


content(
    "an_old_office_file", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "could not be read as Excel", suffix=".xls"
)


# --- no files at all ------------------------------------------------------------------------------------------------


@nasty("is a folder without sub-folders")
def folder_of_nothing(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


@nasty("hold no files")
def folder_of_empty_folders(folder):
    for name in "ab":
        (folder / "classes" / name).mkdir(parents=True)
    return folder / "classes"


@nasty("not a text file")
def folder_of_pictures(folder):
    for name in "ab":
        (folder / "classes" / name).mkdir(parents=True)
        (folder / "classes" / name / "1.png").write_bytes(b"\x89PNG\0\0\0")
    return folder / "classes"


@nasty("with the tables")
def folder_of_tables(folder):
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text(ROWS)
    return folder


@nasty("where there is nothing")
def broken_link(folder):
    (folder / "a.csv").symlink_to(folder / "gone.csv")
    return folder / "a.csv"


@nasty("could not be read")
def link_to_itself(folder):
    (folder / "a.csv").symlink_to(folder / "a.csv")
    return folder / "a.csv"


@nasty("a pipe, a socket or a device")
def pipe(folder):
    os.mkfifo(folder / "a.csv")
    return folder / "a.csv"


@nasty("a pipe, a socket or a device")
def device(folder):
    return "/dev/zero"


@nasty("No file matches")
def pattern_without_files(folder):
    return folder / "*.csv"


@nasty("Expected the same in each")
def files_that_disagree(folder):
    (folder / "a.csv").write_text(ROWS)
    (folder / "b.csv").write_text(ROWS.replace("label", "class"))
    return folder / "*.csv"


@nasty("could not be read")
def name_that_is_too_long(folder):
    return folder / ("a" * 5000)


@nasty("could not be read")
def name_with_a_zero_byte(folder):
    return str(folder / "a\0b.csv")


@nasty("cannot be read")
def address_of_no_database(folder):
    return "mysql://user:secret@host/rows"


@nasty("could not be read")
def garbage_for_a_database(folder):
    (folder / "a.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    return f"sqlite:///{folder}/a.db"


@nasty("could not be read")
def text_for_a_database(folder):
    (folder / "a.db").write_text(ROWS * 100)
    return f"sqlite:///{folder}/a.db"


@nasty("has 2 tables")
def database_of_two_tables(folder):
    with sqlite3.connect(folder / "a.db") as connection:
        connection.execute("CREATE TABLE one (text, label)")
        connection.execute('CREATE TABLE "two; DROP" (text, label)')
    connection.close()
    return f"sqlite:///{folder}/a.db"


def main(folder, names):
    """Read the named files one after the other with 4 GiB of addresses, and print what came of it as JSON."""
    found = {}
    for name in names:
        (Path(folder) / name).mkdir()
        source = CORPUS[name].make(Path(folder) / name)
        started = time.monotonic()
        try:
            result = len(read(source, **dict(CORPUS[name].options)))
        except TagsmithError as error:
            result = str(error)
        found[name] = result, time.monotonic() - started
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    from tagsmith.data.readers import read
    from tagsmith.errors import TagsmithError

    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    main(sys.argv[1], sys.argv[2:])
