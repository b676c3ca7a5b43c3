import numpy as np

from tagsmith.evaluation.score_table import MOST_NUMBERS, score_table


def test_each_row_has_its_number_truth_answer_and_probabilities():
    probs = np.array([[0.123456, 0.876544], [0.75, 0.25]])
    found = score_table(np.array([7, 9]), np.array([1, 1]), probs, None, groups=np.array([5, 5]))
    assert found == {
        "of": 2, "row": [7, 9], "group": [0, 0], "truth": [1, 1], "answer": [1, 0],
        "probabilities": [[0.1235, 0.8765], [0.75, 0.25]],
    }  # fmt: skip


def test_sets_of_labels_are_lists_of_ids():
    truth = np.array([[True, False, True], [False, False, False]])
    found = score_table(
        np.arange(2), truth, np.array([[0.9, 0.6, 0.1], [0.1, 0.1, 0.1]]), np.full(3, 0.5), groups=np.arange(2)
    )
    assert (found["truth"], found["answer"]) == ([[0, 2], []], [[0, 1], []])


def test_many_rows_or_labels_are_thinned_evenly():
    many = score_table(
        np.arange(20_000), np.zeros(20_000, dtype=int), np.full((20_000, 2), 0.5), None, groups=np.arange(20_000)
    )
    assert (many["of"], len(many["row"]), many["row"][0], many["row"][-1]) == (20_000, 5000, 0, 19_999)
    wide = score_table(
        np.arange(3000), np.zeros(3000, dtype=int), np.full((3000, 150), 1 / 150), None, groups=np.arange(3000)
    )
    assert sum(map(len, wide["probabilities"])) <= MOST_NUMBERS
