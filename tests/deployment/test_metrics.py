import numpy as np

from tagsmith.deployment.classifying import About, Result
from tagsmith.deployment.metrics import MOST_LABELS, Metrics


def about_of(labels):
    return About("toy", "onnxruntime-int8", labels, False, None, 48, "head", False, "ab" * 32)


def result_of(label, **remarks):
    return Result(np.array([0.9, 0.1]), np.zeros(2), 3, remarks.pop("truncated", False), (label,), **remarks)


def test_labels_beyond_the_first_hundred_are_counted_together():
    labels = tuple(f"label {i}" for i in range(MOST_LABELS + 50))
    metrics = Metrics()
    metrics.count_results(about_of(labels), [result_of(label) for label in labels])
    lines = [line for line in metrics.text().decode().splitlines() if line.startswith("tagsmith_predictions_total{")]
    assert len(lines) == MOST_LABELS + 1
    assert 'tagsmith_predictions_total{label="other"} 50.0' in lines


def test_a_hostile_label_does_not_break_the_format():
    metrics = Metrics()
    hostile = 'a"} 1\ntagsmith_ready 7\n# \\'
    metrics.count_results(about_of((hostile,)), [result_of(hostile)])
    assert "\ntagsmith_ready 7" not in metrics.text().decode()


def test_truncated_and_abstained_texts_are_counted():
    metrics = Metrics()
    metrics.count_results(about_of(("a",)), [result_of("a", truncated=True), result_of("a", abstained=True)])
    text = metrics.text().decode()
    assert "tagsmith_truncated_texts_total 1.0" in text
    assert "tagsmith_abstained_texts_total 1.0" in text


def test_the_model_that_answers_is_named_with_its_engine():
    metrics = Metrics()
    metrics.show_model(about_of(("a",)))
    line = next(line for line in metrics.text().decode().splitlines() if line.startswith("tagsmith_model_info{"))
    assert 'backend="onnxruntime"' in line
    assert 'dtype="int8"' in line
    assert f'version="{"ab" * 6}"' in line


def test_two_servers_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.nonfinite.inc()
    assert "tagsmith_nonfinite_total 0.0" in other.text().decode()
