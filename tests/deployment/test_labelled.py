import pytest

from tagsmith.deployment.engine import Answer
from tagsmith.deployment.labelled import FAILED, answers_or_aside, aside_of


def answered(texts):
    if any("poison" in text for text in texts):
        raise MemoryError("cannot allocate")
    return [Answer(text.upper(), 0.9, (0.9, 0.1), truncated=False) for text in texts]


def test_the_texts_at_which_an_engine_fails_are_set_aside_and_no_others():
    texts = [f"text {i}" for i in range(9)] + ["poison"] + [f"text {i}" for i in range(5)] + ["more poison"]
    answers = answers_or_aside(answered, texts)
    assert [answer.label for answer in answers] == [None if "poison" in text else text.upper() for text in texts]
    assert {answer.reason for answer in answers if answer.label is None} == {FAILED}
    assert aside_of(answers) == 2


def test_an_engine_that_fails_at_any_text_blames_none():
    def broken(texts):
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        answers_or_aside(broken, ["one", "two"])


def test_a_part_without_trouble_is_computed_once():
    asked = []
    answers_or_aside(lambda texts: asked.append(texts) or answered(texts), ["one", "two"])
    assert asked == [["one", "two"]]
