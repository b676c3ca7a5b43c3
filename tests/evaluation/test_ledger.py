from tagsmith.evaluation.ledger import look, rows_hash


def looked(folder, texts=("one", "two"), *, what="train", date="2026-01-01T00:00:00+00:00"):
    return look(texts, what=what, date=date, folder=folder)


def test_the_first_look_is_the_first_and_later_ones_say_which(tmp_path):
    first, second, third = looked(tmp_path), looked(tmp_path, what="evaluate"), looked(tmp_path)
    assert (first.count, first.note) == (1, "First look at these test rows.")
    assert second.note == "Look 2 at these test rows; interval not corrected for selection."
    assert third.count == 3
    assert [each["what"] for each in third.earlier] == ["train", "evaluate"]


def test_rows_are_known_again_in_another_order_and_not_by_other_rows(tmp_path):
    assert rows_hash(["one", "two"]) == rows_hash(["two", "one"]) != rows_hash(["one", "two", "two"])
    looked(tmp_path)
    assert looked(tmp_path, ("two", "one")).count == 2
    assert looked(tmp_path, ("one", "three")).count == 1


def test_a_line_that_a_crash_left_counts_as_a_look(tmp_path):
    key = looked(tmp_path).rows_sha256
    file = tmp_path / "looks" / f"{key}.jsonl"
    file.write_text(file.read_text() + '{"date": "20\n')
    found = looked(tmp_path)
    assert found.count == 3
    assert found.earlier[-1]["date"] == "unknown"


def test_a_folder_that_cannot_be_written_is_told_and_stops_nothing(tmp_path):
    (tmp_path / "looks").write_text("a file where the folder should be")
    found = looked(tmp_path)
    assert found.count is None
    assert "are not counted" in found.note
    assert "TAGSMITH_STATE" in found.note


def test_any_text_has_a_hash():
    assert len(rows_hash(["\ud800 lone surrogate", "", "שלום 🙂"])) == 64
