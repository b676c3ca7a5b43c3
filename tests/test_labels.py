import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.errors import DataError
from tagsmith.labels import Labels


def test_numbers_are_ordered_as_numbers():
    assert Labels.of(["10", "2", "1"]).names == ("1", "2", "10")
    assert Labels.of(["class 10", "class 9"]).names == ("class 9", "class 10")


@given(st.lists(st.text(max_size=8), min_size=1))
def test_the_order_of_the_rows_does_not_matter(names):
    assert Labels.of(names) == Labels.of(sorted(names)) == Labels.of(reversed(names))


@given(st.lists(st.text(max_size=8), min_size=1))
def test_decoding_undoes_encoding(names):
    labels = Labels.of(names)
    assert labels.decode(labels.encode(names)) == names


def test_ids_are_int64_and_in_the_order_of_the_names():
    ids = Labels.of(["spam", "ham"]).encode(["spam", "ham", "spam"])
    assert ids.dtype == "int64"
    assert ids.tolist() == [1, 0, 1]


def test_a_label_that_training_did_not_see_is_named_beside_the_known_ones():
    with pytest.raises(DataError, match=r"not seen in training: \['spma'\]; known: \['ham', 'spam'\]"):
        Labels.of(["spam", "ham"]).encode(["spam", "spma"])


def test_label_sets_become_one_row_of_truth_each_and_unknown_names_are_refused():
    labels = Labels.of(["joy", "anger", "fear"], multi_label=True)
    truth_NC = labels.encode_sets([["joy", "anger"], [], ["fear"]])
    assert truth_NC.tolist() == [[True, False, True], [False, False, False], [False, True, False]]
    with pytest.raises(DataError, match="jyo"):
        labels.encode_sets([["jyo"]])
