import codecs
import csv
import io
import json
import sys
import zipfile

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data import archives
from tagsmith.data.readers import read, read_frame
from tagsmith.errors import DataError


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(source, **options):
    with pytest.raises(DataError) as caught:
        read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def reasons(table):
    return [change.reason for change in table.history]


# --- what is read ---------------------------------------------------------------------------------------------------


def test_a_csv_with_commas_quotes_and_line_ends_in_cells_is_read_right(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"one, two",x\n"he said ""hi""\nand left",y\nplain,x\n')
    table = read(path)
    assert table.texts == ["one, two", 'he said "hi"\nand left', "plain"]
    assert table.labels == ["x", "y", "x"]
    assert "read as comma-separated, with a header, quotes as in RFC 4180" in reasons(table)


@given(st.lists(st.tuples(st.text(st.characters(exclude_characters="\0\r\x1e", codec="utf-8")), st.sampled_from("ab"))))
def test_what_the_csv_module_writes_is_what_is_read(tmp_path_factory, rows):
    rows = [(text, label) for text, label in rows if text.strip()] + [('"', "a"), ("b, c", "b")]
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("text", "label"), *rows])
    path = write(tmp_path_factory.mktemp("csv"), "a.csv", stream.getvalue())
    table = read(path)
    assert table.texts == [text for text, _ in rows]
    assert table.labels == [label for _, label in rows]


@pytest.mark.parametrize(("delimiter", "word"), [(",", "comma"), ("\t", "tab"), (";", "semicolon"), ("|", "bar")])
def test_the_delimiter_is_found_by_looking_whatever_the_suffix(tmp_path, delimiter, word):
    path = write(tmp_path, "a.csv", f"label{delimiter}text\nx{delimiter}one two\ny{delimiter}three four\n")
    table = read(path)
    assert table.texts == ["one two", "three four"]
    assert any(f"{word}-separated" in reason for reason in reasons(table))


def test_a_file_without_header_gets_numbered_columns(tmp_path):
    path = write(tmp_path, "a.csv", "ham\tHello there, you\nspam\tWin a prize now\nham\tSee you\n")
    assert read_frame(path).frame.columns == ["column_1", "column_2"]
    table = read(path)
    assert table.labels == ["ham", "spam", "ham"]
    assert reasons(table)[0] == "read as tab-separated, no header"


def test_a_first_row_of_numbers_is_no_header(tmp_path):
    table = read(write(tmp_path, "a.csv", "0,some text here\n1,another text here\n0,a third text\n"))
    assert len(table) == 3


def test_unusual_header_names_are_still_a_header(tmp_path):
    table = read(write(tmp_path, "a.csv", "v1,v2,,,\nham,a long message,,,\nspam,another long message,,,\n"))
    assert table.labels == ["ham", "spam"]


def test_quotes_that_do_not_close_are_text_under_auto(tmp_path):
    path = write(tmp_path, "a.csv", 'label,text\nx,"Hello" he said\ny,"open\nx,fine\n')
    table = read(path)
    assert table.texts == ['"Hello" he said', '"open', "fine"]
    assert "quotes taken as text" in reasons(table)[0]


def test_one_bad_quote_does_not_cost_the_others_their_commas(tmp_path):
    path = write(tmp_path, "a.csv", 'label,text\nx,"a, b, c"\ny,"bad" quote\n')
    table = read(path)
    assert table.texts == ["a, b, c", "bad quote"]
    assert "quotes as in RFC 4180" in reasons(table)[0]


def test_a_properly_quoted_tsv_is_unquoted(tmp_path):
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"two\nlines"\tx\n"say ""hi"""\ty\n')
    assert read(path).texts == ["two\nlines", 'say "hi"']


def test_quoting_none_keeps_every_quote(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"one",x\n"two",y\n')
    assert read(path, quoting="none").texts == ['"one"', '"two"']


def test_long_documents_pass_the_csv_modules_limit(tmp_path):
    text = 'a "word" ' * 40_000
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([("text", "label"), (text, "x"), ("short", "y")])
    before = csv.field_size_limit()
    assert read(write(tmp_path, "a.csv", stream.getvalue())).texts == [text, "short"]
    assert csv.field_size_limit() == before


def test_words_that_look_like_nothing_stay_words(tmp_path):
    table = read(write(tmp_path, "a.csv", "text,label\nNA,None\nnull,NA\nNone,null\n"))
    assert table.texts == ["NA", "null", "None"]
    assert table.labels == ["None", "NA", "null"]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".dat"])
def test_json_lines_have_typed_labels_as_words(tmp_path, suffix):
    labels = [1, 1.0, 2.5, True, False, "x"]
    lines = [json.dumps({"text": f"text {i}", "label": label}) for i, label in enumerate(labels)]
    table = read(write(tmp_path, f"a{suffix}", "\n".join(lines)))
    assert table.labels == ["1", "1", "2.5", "true", "false", "x"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [([0, 1], ["0", "1"]), ([1.0, 2.0], ["1", "2"]), ([0.5, 1.0], ["0.5", "1"]), ([True, False], ["true", "false"])],
)
def test_parquet_labels_become_words(tmp_path, labels, words):
    pl.DataFrame({"text": ["one", "two"], "label": labels}).write_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").labels == words


def test_a_zip_gives_its_first_table(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "about,this\n")
        archive.writestr("SMSSpamCollection", "ham\tHello\nspam\tWin now\nham\tBye\n")
    table = read(tmp_path / "a.zip")
    assert table.labels == ["ham", "spam", "ham"]
    assert "'SMSSpamCollection' from the zip 'a.zip'" in reasons(table)[0]


def test_a_dash_reads_standard_input(monkeypatch):
    class Input:
        buffer = io.BytesIO(b'{"text": "one", "label": "x"}\n{"text": "two", "label": "y"}\n')

    monkeypatch.setattr(sys, "stdin", Input())
    assert read("-").labels == ["x", "y"]


@pytest.mark.parametrize(
    ("encoding", "told"), [("utf-8-sig", ""), ("utf-16", "utf-16"), ("cp1252", "cp1252"), ("utf-8", "")]
)
def test_encodings_are_found_and_told(tmp_path, encoding, told):
    rows = ["label,text", *(f"x,Où est le café n° {i} près de la forêt ?" for i in range(20)), "y,Voilà, déjà été"]
    table = read(write(tmp_path, "a.csv", "\n".join(rows).replace("Voilà,", "Voilà").encode(encoding)))
    assert table.texts[0] == "Où est le café n° 0 près de la forêt ?"
    assert (f"decoded from {told}" in reasons(table)[0]) == bool(told)


def test_line_ends_of_windows_and_old_macs_are_line_ends(tmp_path):
    for end in ("\r\n", "\r"):
        assert read(write(tmp_path, "a.csv", f"text,label{end}one,x{end}two,y{end}")).texts == ["one", "two"]


def test_a_lone_pound_sign_is_taken_as_cp1252(tmp_path):
    table = read(write(tmp_path, "a.csv", "label,text\nspam,Win £100 today\nham,See you\n".encode("cp1252")))
    assert table.texts[0] == "Win £100 today"


# --- columns --------------------------------------------------------------------------------------------------------


def test_columns_are_found_by_their_usual_names(tmp_path):
    table = read(write(tmp_path, "a.csv", "id,Category,Message\n1,x,one\n2,y,two\n"))
    assert (table.texts, table.labels) == (["one", "two"], ["x", "y"])
    assert "text = 'Message' (by its name); label = 'Category' (by its name)" in reasons(table)


def test_columns_are_found_by_content_where_names_say_nothing(tmp_path):
    rows = "".join(f"{i},{'ab'[i % 2]},a rather long text number {i}\n" for i in range(20))
    table = read(write(tmp_path, "a.csv", "k,what,free\n" + rows))
    assert set(table.labels) == {"a", "b"}
    assert "text = 'free' (the longest cells); label = 'what' (few, short values)" in reasons(table)


def test_two_columns_of_prose_are_not_guessed_between(tmp_path):
    rows = "".join(f"{'ab'[i % 2]},a rather long text number {i},and also a long one {i}\n" for i in range(20))
    message = refused(write(tmp_path, "a.csv", "what,one,two\n" + rows))
    assert "'one'" in message
    assert "'two'" in message
    assert "--set data.text=NAME" in message


def test_two_usual_label_names_are_not_guessed_between(tmp_path):
    message = refused(write(tmp_path, "a.csv", "text,category,sentiment\none,x,p\ntwo,y,q\n"))
    assert "'category', 'sentiment'" in message
    assert "--set data.label=NAME" in message


def test_a_column_of_lists_makes_a_multi_label_table(tmp_path):
    pl.DataFrame({"text": ["one", "two"], "label": [["b", "a", "b "], []]}).write_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").label_sets == [["a", "b"], []]
    lines = '{"text": "one", "label": ["x10", "x9"]}\n{"text": "two", "label": []}\n{"text": "three", "label": null}\n'
    table = read(write(tmp_path, "a.jsonl", lines))
    assert table.label_sets == [["x9", "x10"], []]
    assert "no label: 1 rows" in reasons(table)


def test_a_column_of_records_is_no_label(tmp_path):
    pl.DataFrame({"text": ["one", "two"], "label": [{"a": 1}, {"a": 2}]}).write_parquet(tmp_path / "a.parquet")
    assert "holds lists or records" in refused(tmp_path / "a.parquet")


def test_a_wrong_column_names_the_nearest_and_all(tmp_path):
    message = refused(write(tmp_path, "a.csv", "text,label\none,x\ntwo,y\n"), text="txet")
    assert "Did you mean 'text'?" in message
    assert "'text', 'label'" in message


def test_one_column_cannot_be_two_things(tmp_path):
    assert "expected a different one" in refused(
        write(tmp_path, "a.csv", "text,label\none,x\n"), text="label", label="label"
    )


def test_prediction_needs_no_label(tmp_path):
    table = read(write(tmp_path, "a.csv", "id,text\n1,one\n2,\n"), labelled=False)
    assert table.texts == ["one"]
    assert table.labels == [None]


def test_one_text_per_line_is_enough_for_prediction(tmp_path):
    path = write(tmp_path, "a.txt", "text\nhello, you\nthere is no table here\nyes, there is, or is there\n")
    assert len(read(path, labelled=False)) == 3


def test_rows_of_one_group_share_a_number_and_rows_without_stand_alone(tmp_path):
    table = read(write(tmp_path, "a.csv", "text,label,who\na,x,1\nb,y,2\nc,x,1\nd,y,\ne,x,\n"), group="who")
    one, two, three, four, five = table.groups.tolist()
    assert one == three
    assert len({one, two, four, five}) == 4


def test_other_columns_stay_in_the_raw_frame(tmp_path):
    raw = read_frame(write(tmp_path, "a.csv", "id,text\n07,one\n08,two\n"))
    assert raw.frame.rows() == [("07", "one"), ("08", "two")]


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_without_text_or_label_are_dropped_counted_and_listed(tmp_path):
    table = read(write(tmp_path, "a.csv", 'text,label\none,x\n,y\n"  ",x\nfour,\nfive," y "\n'))
    assert table.rows.tolist() == [0, 4]
    assert table.labels == ["x", "y"]
    told = {change.reason: change.rows for change in table.history}
    assert told["no text: 2 rows"] == (1, 2)
    assert told["no label: 1 rows"] == (3,)
    assert told["white space around the label was removed in 1 rows"] == (4,)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, "reviews.csv", "text,label\na,b\n")
    message = refused(tmp_path / "review.csv")
    assert "No file at" in message
    assert "Did you mean 'reviews.csv'?" in message
    assert "There is no folder" in refused(tmp_path / "none" / "review.csv")


def test_a_folder_is_refused(tmp_path):
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize("content", ["", "\n\n", " "])
def test_an_empty_file_is_refused(tmp_path, content):
    assert "is empty" in refused(write(tmp_path, "a.csv", content))


@pytest.mark.parametrize("content", ["text,label\n", "text,label", "text\tlabel\r\n"])
def test_a_header_without_rows_is_refused(tmp_path, content):
    message = refused(write(tmp_path, "a.csv", content))
    assert "has a header ('text', 'label') and no rows" in message


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", bytes(range(1, 256)) * 20, b"text,label\na\0b,c\n"]
)
def test_a_binary_file_is_refused(tmp_path, content):
    assert "is not a text file" in refused(write(tmp_path, "a.csv", content))


def test_all_empty_texts_are_refused(tmp_path):
    assert "None of the 2 rows has a text in column 'text'" in refused(
        write(tmp_path, "a.csv", "text,label\n,x\n ,y\n")
    )


def test_a_table_without_a_label_column_is_refused(tmp_path):
    rows = "".join(f"{i},a text with the number {i}\n" for i in range(30))
    message = refused(write(tmp_path, "a.csv", "id,text\n" + rows))
    assert "No column looks like labels" in message
    assert "--set data.label=NAME" in message


def test_a_row_with_too_many_cells_is_named(tmp_path):
    message = refused(write(tmp_path, "a.csv", "label,text\nx,one\ny,two, three\nx,four\ny,five\n"))
    assert "line 3 has 3 cells and the first one 2" in message
    assert "double quotes" in message


def test_a_quote_that_never_closes_is_refused_where_quoting_is_standard(tmp_path):
    message = refused(write(tmp_path, "a.csv", 'label,text\nx,one\ny,"two\nx,four\n'), quoting="standard")
    assert "never closes" in message


def test_a_broken_json_line_is_named(tmp_path):
    message = refused(write(tmp_path, "a.jsonl", '{"text": "one", "label": "x"}\n{"text": "two"\n'))
    assert "line 2 is no JSON object" in message


def test_a_broken_parquet_file_is_refused(tmp_path):
    assert "could not be read as Parquet" in refused(write(tmp_path, "a.parquet", b"PAR1 and nothing more"))


def test_a_zip_without_a_table_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("picture.png", b"\x89PNG")
    message = refused(tmp_path / "a.zip")
    assert "holds no table, but 'picture.png'" in message


@pytest.mark.parametrize("name", ["../a.csv", "/etc/a.csv", "C:\\a.csv", "x\\..\\..\\a.csv"])
def test_a_zip_that_leads_out_of_itself_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "text,label\na,b\n")
    assert "leads out of it" in refused(tmp_path / "a.zip")


def test_a_zip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FROM_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", b"a" * 10**6)
    assert "would unpack to 1,000,000 bytes" in refused(tmp_path / "a.zip")


def test_a_damaged_zip_is_refused(tmp_path):
    assert "is damaged" in refused(write(tmp_path, "a.zip", b"PK\x03\x04 and nothing more"))


def test_a_byte_order_mark_before_json_is_no_trouble(tmp_path):
    content = codecs.BOM_UTF8 + b'{"text": "one", "label": "x"}\n'
    assert read(write(tmp_path, "a.jsonl", content)).texts == ["one"]


# --- real files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quoting", "ham"), [("auto", 4827), ("none", 4827), ("standard", 4825)])
def test_sms_spam_is_read_whole_but_for_standard_quoting(shared_data, quoting, ham):
    table = read(shared_data / "sms_spam" / "SMSSpamCollection.tsv", quoting=quoting)
    assert (table.labels.count("ham"), table.labels.count("spam")) == (ham, 747)


def test_parquet_of_the_shared_sets_is_read(shared_data):
    assert len(read(shared_data / "trec6" / "train.parquet")) == 5452
