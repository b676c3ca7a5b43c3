import datetime
import gzip
import json
import zipfile

import openpyxl
import polars as pl
import pytest
import zstandard

from tagsmith.data.readers import read, read_frame
from tagsmith.errors import DataError, SettingError

FRAME = pl.DataFrame({"text": ["one, two", 'say "hi"', "größer\nals"], "label": ["a", "b", "a"]})


def reasons(table):
    return [change.reason for change in table.history]


# --- every format in every archive ----------------------------------------------------------------------------------

WRITERS = {
    "a.csv": lambda path: FRAME.write_csv(path),
    "a.tsv": lambda path: FRAME.write_csv(path, separator="\t"),
    "a.txt": lambda path: FRAME.write_csv(path, separator="|"),
    "a.jsonl": lambda path: FRAME.write_ndjson(path),
    "a.json": lambda path: FRAME.write_json(path),
    "b.json": lambda path: path.write_text(json.dumps(FRAME.to_dict(as_series=False), indent=1)),
    "a.parquet": lambda path: FRAME.write_parquet(path),
    "a.feather": lambda path: FRAME.write_ipc(path),
    "a.arrow": lambda path: FRAME.write_ipc_stream(path),
    "a.xlsx": lambda path: workbook(path, [FRAME.columns, *FRAME.rows()]),
}


def workbook(path, rows, *, before=()):
    book = openpyxl.Workbook()
    book.active.title = "data"
    for row in rows:
        book.active.append(row)
    for title in reversed(before):
        book.create_sheet(title, 0)
    book.save(path)


def packed(path, kind):
    if kind == "zip":
        with zipfile.ZipFile(f"{path}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, f"folder/{path.name}")
    if kind == "gz":
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    if kind == "zst":
        path.with_name(f"{path.name}.zst").write_bytes(zstandard.compress(path.read_bytes()))
    return path.with_name(f"{path.name}.{kind}") if kind else path


@pytest.mark.parametrize("kind", ["", "zip", "gz", "zst"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_read_plain_and_packed(tmp_path, name, kind):
    WRITERS[name](tmp_path / name)
    raw = read_frame(packed(tmp_path / name, kind))
    assert raw.frame.equals(FRAME)
    assert kind in raw.how


def test_the_other_tables_of_a_zip_are_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train.csv", "text,label\na,x\n")
        archive.writestr("test.csv", "text,label\nb,y\n")
    assert "'train.csv' from the zip 'a.zip' (not 'test.csv')" in reasons(read(tmp_path / "a.zip"))[0]


# --- Excel ----------------------------------------------------------------------------------------------------------


def test_excel_gives_dates_as_iso_text_and_numbers_as_they_look(tmp_path):
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5)
    rows = [
        ["text", "label", "when"],
        ["one", 1, datetime.date(2024, 1, 2)],
        ["two", 2.5, moment],
        ["three", True, None],
    ]
    workbook(tmp_path / "a.xlsx", rows, before=["nothing here"])
    raw = read_frame(tmp_path / "a.xlsx")
    assert raw.frame["label"].to_list() == ["1", "2.5", "true"]
    assert raw.frame["when"].to_list() == ["2024-01-02", "2024-01-02 03:04:05", None]
    assert "sheet 'data'; 1 empty sheets before it; not 'nothing here'" in raw.how


def test_a_formula_gives_the_value_that_was_saved_with_it(tmp_path):
    workbook(tmp_path / "a.xlsx", [["text", "label"], ["one", "=1+1"], ["two", "x"]])
    with zipfile.ZipFile(tmp_path / "a.xlsx") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = parts["xl/worksheets/sheet1.xml"]
    assert b"<f>1+1</f><v></v>" in sheet or b"<f>1+1</f><v />" in sheet or b"<f>1+1</f><v/>" in sheet
    for empty in (b"<v></v>", b"<v />", b"<v/>"):
        sheet = sheet.replace(b"<f>1+1</f>" + empty, b"<f>1+1</f><v>2</v>")
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        for name, data in (parts | {"xl/worksheets/sheet1.xml": sheet}).items():
            archive.writestr(name, data)
    assert read(tmp_path / "b.xlsx").labels == ["2", "x"]


# --- many files -----------------------------------------------------------------------------------------------------


def test_a_pattern_reads_all_files_in_order_and_counts_their_rows(tmp_path):
    (tmp_path / "b.csv").write_text("label,text\nx,from b\n")
    (tmp_path / "a.csv").write_text("text,label\nfrom a,x\nfrom a too,y\n")
    table = read(tmp_path / "*.csv")
    assert table.texts == ["from a", "from a too", "from b"]
    assert "2 files, rows of each: 'a.csv' 2, 'b.csv' 1" in reasons(table)[0]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "a[1].csv").write_text("text,label\nright,x\n")
    (tmp_path / "a1.csv").write_text("text,label\nwrong,x\n")
    assert read(tmp_path / "a[1].csv").texts == ["right"]


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_per_label_gives_one_row_a_file(tmp_path):
    for path, data in {
        "neg/1.txt": b"bad",
        "neg/deep/2.txt": "größer".encode("cp1252"),
        "pos/3": "gut ü".encode("utf-16"),
        "pos/4.txt": b"",
        "pos/.DS_Store": b"\0",
    }.items():
        (tmp_path / "films" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "films" / path).write_bytes(data)
    table = read(tmp_path / "films")
    assert table.texts == ["bad", "größer", "gut ü"]
    assert table.labels == ["neg", "neg", "pos"]
    assert "1 files decoded from cp1252" in reasons(table)[0]
    assert "1 hidden files left out" in reasons(table)[0]
    assert "no text: 1 rows" in reasons(table)


def test_a_folder_of_splits_says_how_to_give_them(tmp_path):
    for path in ("train/neg/1.txt", "test/pos/1.txt"):
        (tmp_path / "films" / path).parent.mkdir(parents=True)
        (tmp_path / "films" / path).write_text("text")
    with pytest.raises(DataError, match="which look like splits"):
        read(tmp_path / "films")


def saved(folder, names):
    """A folder as `datasets.save_to_disk` leaves it: Arrow streams, and what it notes about them."""
    folder.mkdir(parents=True)
    for number in range(2):
        pl.DataFrame({"text": [f"text {number}"], "label": [number]}).write_ipc_stream(folder / f"{number}.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"{n}.arrow"} for n in range(2)]}))
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def test_a_folder_saved_by_datasets_is_read_with_the_names_of_its_classes(tmp_path):
    saved(tmp_path / "films", ["neg", "pos"])
    table = read(tmp_path / "films")
    assert table.texts == ["text 0", "text 1"]
    assert table.labels == ["neg", "pos"]
    assert "names of the classes" in reasons(table)[0]


def test_of_several_saved_splits_one_must_be_named(tmp_path):
    for name in ("train", "test"):
        saved(tmp_path / "films" / name, ["neg", "pos"])
    (tmp_path / "films" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="holds the splits 'train', 'test'"):
        read(tmp_path / "films")
    (tmp_path / "films" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert len(read(tmp_path / "films")) == 2


def test_a_saved_folder_cannot_lead_out_of_itself(tmp_path):
    saved(tmp_path / "films", ["neg", "pos"])
    (tmp_path / "films" / "state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    with pytest.raises(DataError, match="no data files of its own folder"):
        read(tmp_path / "films")


# --- as the user says -----------------------------------------------------------------------------------------------


def test_delimiter_header_and_encoding_can_be_given(tmp_path):
    (tmp_path / "a.csv").write_bytes("größer,x~a\nkleiner,y~b\n".encode("cp850"))
    table = read(tmp_path / "a.csv", delimiter="~", header="no", encoding="cp850")
    assert table.texts == ["größer,x", "kleiner,y"]
    assert (
        "decoded from cp850 (asked for); read as separated by '~' (asked for), no header (asked for)"
        in reasons(table)[0]
    )
    assert len(read(tmp_path / "a.csv", delimiter="~", header="yes", encoding="cp850", label="a", text="größer,x")) == 1


@pytest.mark.parametrize(
    "wrong", [{"delimiter": ",,"}, {"delimiter": '"'}, {"encoding": "utf-9"}, {"encoding": "zlib"}]
)
def test_a_layout_that_cannot_be_is_a_setting_error(tmp_path, wrong):
    (tmp_path / "a.csv").write_text("text,label\none,x\n")
    with pytest.raises(SettingError, match="Expected"):
        read(tmp_path / "a.csv", **wrong)


def test_names_that_start_with_digits_are_a_header(tmp_path):
    (tmp_path / "a.csv").write_text(
        "2nd_column,3rd_column\na longer text here,x\nyet another text,y\nthe third one,x\n"
    )
    assert read_frame(tmp_path / "a.csv").frame.columns == ["2nd_column", "3rd_column"]


def test_rows_that_start_with_digits_are_no_header(tmp_path):
    (tmp_path / "a.csv").write_text("3 apples and,x\n4 pears or,y\n5 plums,x\n")
    assert len(read(tmp_path / "a.csv")) == 3
