import json

from tagsmith.events import Event, JsonLines, silent


def test_nobody_has_to_listen():
    assert silent(Event("data", "note")) is None


def test_each_event_is_one_line_of_json(tmp_path):
    path = tmp_path / "events.jsonl"
    with JsonLines(path) as listen:
        listen(Event("tuning", "step", step=1, total=9, values={"loss": 0.5, "text": "größer\n"}))
        listen(Event("tuning", "done"))
    first, second = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert first == {"stage": "tuning", "name": "step", "step": 1, "total": 9, "loss": 0.5, "text": "größer\n"}
    assert second["name"] == "done"


def test_lines_are_whole_before_the_file_is_closed(tmp_path):
    path = tmp_path / "events.jsonl"
    with JsonLines(path) as listen:
        listen(Event("data", "note"))
        assert path.read_text(encoding="utf-8").endswith("}\n")


def test_a_line_that_a_killed_run_left_torn_stays_alone(tmp_path):
    path = tmp_path / "new" / "events.jsonl"
    path.parent.mkdir()
    path.write_bytes(b'{"stage": "tun')
    with JsonLines(path) as listen:
        listen(Event("data", "note"))
    torn, whole = path.read_text(encoding="utf-8").splitlines()
    assert (torn, json.loads(whole)["name"]) == ('{"stage": "tun', "note")


def test_a_number_that_json_does_not_know_is_null(tmp_path):
    with JsonLines(tmp_path / "new" / "events.jsonl") as listen:
        listen(Event("tuning", "step", values={"loss": float("nan"), "rate": float("inf")}))
    line = json.loads((tmp_path / "new" / "events.jsonl").read_text(encoding="utf-8"))
    assert (line["loss"], line["rate"]) == (None, None)


def test_a_second_run_adds_to_the_file(tmp_path):
    for _ in range(2):
        with JsonLines(tmp_path / "events.jsonl") as listen:
            listen(Event("data", "note"))
    assert len((tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()) == 2
