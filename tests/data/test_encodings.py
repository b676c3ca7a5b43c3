import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.readers import read_frame

TEXTS = {
    "german": "Müde Füße müssen früh über die große Brücke gehen, sagt Herr Weiß.",
    "french": "Où est passé le garçon qui répétait sa leçon près de la forêt ?",
    "japanese": "この映画はとても面白かったです。また友達と一緒に見たいと思います。",
    "chinese": "这家酒店的服务非常好，房间也很干净，下次来的时候还会再住这里。",
    "russian": "Этот фильм мне очень понравился, обязательно посмотрю его ещё раз.",
    "english": "It costs £100, said the shop.",
}


@pytest.mark.parametrize(
    ("language", "encoding"),
    [
        ("german", "utf-8"), ("german", "utf-8-sig"), ("german", "latin-1"), ("german", "cp1252"),
        ("german", "utf-16-le"), ("french", "cp1252"), ("english", "cp1252"), ("japanese", "cp932"),
        ("japanese", "utf-16"), ("japanese", "utf-16-le"), ("japanese", "euc_jp"), ("chinese", "gb18030"),
        ("chinese", "utf-16-be"), ("chinese", "utf-8"), ("russian", "cp1251"),
    ],
)  # fmt: skip
def test_an_encoding_is_found_and_told(tmp_path, language, encoding):
    rows = [f"{TEXTS[language]} {i}" for i in range(30)]
    (tmp_path / "a.tsv").write_bytes("\n".join(["label\ttext", *(f"x\t{row}" for row in rows)]).encode(encoding))
    raw = read_frame(tmp_path / "a.tsv")
    assert raw.frame["text"].to_list() == rows
    assert ("decoded from" in raw.how) == (encoding not in ("utf-8", "utf-8-sig"))


def test_real_chinese_texts_in_gb18030_are_found(shared_data, tmp_path):
    texts = pl.read_parquet(shared_data / "chnsenticorp" / "test.parquet")["text"].str.replace_all(r"[\r\n\t\"]", " ")
    for start in range(0, 200, 20):
        some = texts[start : start + 20].str.strip_chars().to_list()
        (tmp_path / "a.tsv").write_bytes("\n".join(["label\ttext", *(f"x\t{t}" for t in some)]).encode("gb18030"))
        assert read_frame(tmp_path / "a.tsv").frame["text"].to_list() == some


def test_real_sms_in_cp1252_are_found(shared_data, tmp_path):
    """Pounds, dashes and a few accents in English: of all single-byte encodings the likeliest must win."""
    text = (shared_data / "sms_spam" / "SMSSpamCollection.tsv").read_text(encoding="utf-8")
    for repeats in (1, 20):
        (tmp_path / "a.tsv").write_bytes((text * repeats).encode("cp1252", errors="replace"))
        assert "decoded from cp1252" in read_frame(tmp_path / "a.tsv").how


def test_lines_of_another_encoding_are_counted(tmp_path):
    good = "".join(f"x\tgrößer {i}\n" for i in range(20))
    (tmp_path / "a.tsv").write_bytes(f"label\ttext\n{good}".encode() + "y\t“Übermut”\n".encode("cp1252"))
    raw = read_frame(tmp_path / "a.tsv")
    assert raw.frame["text"].to_list()[-2:] == ["größer 19", "“Übermut”"]
    assert "UTF-8, but for 1 lines that were taken as cp1252" in raw.how


@given(
    st.text(st.characters(codec="utf-8", exclude_characters='\r\n\t\0"'), min_size=1),
    st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]),
)
def test_what_is_written_with_a_mark_is_what_is_read(tmp_path_factory, text, encoding):
    path = tmp_path_factory.mktemp("marks") / "a.tsv"
    path.write_bytes(f"label\ttext\nx\ta {text} z\n".encode(encoding))
    assert read_frame(path).frame["text"].to_list() == [f"a {text} z"]


def test_a_character_on_the_edge_of_two_pieces_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("tagsmith.data.encodings._PIECE", 7)
    for encoding in ("utf-8", "utf-16", "cp932", "gb18030"):
        rows = [TEXTS["japanese" if encoding == "cp932" else "chinese"]] * 20
        (tmp_path / "a.tsv").write_bytes(
            "\n".join(["label\ttext", *(f"x\t{row}" for row in rows), "", ""]).encode(encoding)
        )
        assert read_frame(tmp_path / "a.tsv").frame["text"].to_list() == rows
