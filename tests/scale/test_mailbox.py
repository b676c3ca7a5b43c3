import math

from tagsmith.errors import DataError
from tagsmith.events import Event
from tagsmith.scale.mailbox import Ear, Mailbox


def note(text, **values):
    return Event("tuning", "note", values={"text": text, **values})


def texts(heard):
    return [event.values["text"] for event in heard]


def test_what_all_workers_say_is_said_once(heard):
    ear = Ear(heard.append)
    ear.hear([note("few rows", worker="Worker 2 of 2"), note("halved", worker="Worker 2 of 2"), note("few rows")])
    ear.release()
    assert texts(heard) == ["few rows", "Worker 2 of 2: halved"]


def test_what_others_say_waits_for_a_while(heard):
    ear = Ear(heard.append)
    ear.hear([note("halved", worker="Worker 2 of 2")])
    assert heard == []
    ear.release(before=math.inf)
    assert texts(heard) == ["Worker 2 of 2: halved"]


def test_letters_are_taken_once_and_the_first_error_is_the_cause():
    box = Mailbox()
    assert box.enter(is_first=True).groups == 1
    assert box.post([note("a")]) is False
    box.fail(DataError("first"))
    box.fail(DataError("second"))
    box.stop()
    assert texts(box.take().events) == ["a"]
    taken = box.take()
    assert taken.events == []
    assert str(taken.error) == "first"
    assert box.post([]) is True
    assert box.enter(is_first=True).groups == 2
