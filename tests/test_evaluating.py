import json

import pytest

from tagsmith.errors import SettingError
from tagsmith.pipeline import evaluate


@pytest.fixture
def new_rows(make_rows, tmp_path, save_csv):
    return save_csv(tmp_path / "new.csv", make_rows(150, seed=8))


def test_new_rows_get_the_same_page(llama_bundle, new_rows, tmp_path):
    report = evaluate(llama_bundle, new_rows, out=tmp_path / "out", page=tmp_path / "page.html")
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert written == report.as_dict()
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Its surest mistakes" in page
    assert "Are these rows like those tested on" in page


def test_what_is_there_is_not_replaced_unasked(llama_bundle, new_rows, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(SettingError, match=r"page.html' exists"):
        evaluate(llama_bundle, new_rows, page=tmp_path / "page.html")
    evaluate(llama_bundle, new_rows, page=tmp_path / "page.html", force=True)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") != "mine"


def test_rows_of_the_same_source_show_no_shift_and_others_do(llama_bundle, new_rows, make_rows, tmp_path, save_csv):
    shift = evaluate(llama_bundle, new_rows).shift
    assert not shift["detected"]
    assert shift["smallest"] < 0.6
    longer = save_csv(
        tmp_path / "long.csv", [(f"{text} {text} {text}", label) for text, label in make_rows(150, seed=8)]
    )
    moved = evaluate(llama_bundle, longer).shift
    assert moved["detected"]
    assert "length" in {each["name"] for each in moved["features"] if each["detected"]}
    assert "length" in moved["text"]


def test_a_mix_of_labels_that_changed_is_a_shift(llama_bundle, make_rows, tmp_path, save_csv):
    praise = [row for row in make_rows(400, seed=9) if row[1] == "praise"][:100]
    shift = evaluate(llama_bundle, save_csv(tmp_path / "praise.csv", praise)).shift
    assert "label given" in {each["name"] for each in shift["features"] if each["detected"]}


def test_mistakes_on_new_rows_have_their_words_and_no_texts_in_the_report(llama_bundle, new_rows, make_rows):
    report = evaluate(llama_bundle, new_rows)
    texts = [text for text, _ in make_rows(150, seed=8)]
    assert not [text for text in texts if text in json.dumps(report.as_dict(), ensure_ascii=False)]
    assert all(mistake["nearest"] == [] for mistake in report.mistakes)
