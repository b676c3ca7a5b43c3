"""The model card in Hugging Face's form: what the model is, how well it answers, and what not to expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tagsmith.model.hybrid import WHOLE


def card(report: Mapping[str, Any]) -> str:
    """README.md of a bundle: front matter with metrics, then the verdict in words."""
    model, test, data = report["model"], report["test"], report["data"]
    labels = ", ".join(json.dumps(name, ensure_ascii=False) for name in data["labels"][:20])
    serves = (
        "`transformers.pipeline('text-classification', model=DIR)` answers the same; give it `truncation=True`."
        if model["hugging_face"]
        else "Hugging Face's classifiers cannot express this model; load it with Tagsmith."
    )
    sets = test.get("kind") == "multi_label"
    main, title = ("micro_f1", "Micro F1") if sets else ("accuracy", "Accuracy")
    lines = [
        "---",
        _front_matter(report),
        "---",
        "",
        "# A text classifier made with Tagsmith",
        "",
        report["verdict"]["text"],
        "",
        f"Labels: {labels}{' ...' if len(data['labels']) > 20 else ''}",
        *([_SETS] if sets else []),
        "",
        f"Backbone: {model['backbone']}, {model['layers']} blocks.",
        f"Pooling: {model['pooling']}. Tuned: {model['method']}.",
        *([f"What answers is {WHOLE[model['hybrid']['kind']]}."] if model.get("hybrid") else []),
        "",
        "| | " + " | ".join(title for title, _ in _shown(test)) + " |",
        "|---|" + "---|" * len(_shown(test)),
        *(_row(name, scores, test) for name, scores in _systems(report)),
        "",
        f"{title} on {test['n']} test rows: {_percent(test[main])}.",
        f"TF-IDF on the same rows: {_percent(report['baselines']['tfidf'][main])}.",
        "",
        "The score estimates new rows from the same source; live traffic drifts.",
        "",
        serves,
        *_cleaning(report["settings"].get("data", {}).get("clean", ())),
        "",
        "Texts stand in `report.html` only; `baseline/vocabulary.json` holds words of two or more training texts.",
        "",
    ]
    return "\n".join(lines)


_METRICS = (
    ("accuracy", "accuracy", "Accuracy"),
    ("f1", "micro_f1", "Micro F1"),
    ("f1", "macro_f1", "Macro F1"),
    ("matthews_correlation", "mcc", "Matthews correlation"),
    ("roc_auc", "roc_auc", "ROC AUC"),
    ("log_loss", "log_loss", "Log loss"),
    ("ece", "ece", "Expected calibration error"),
)
"""Type by which the hub knows a metric, key of report.json, title."""


def _front_matter(report: Mapping[str, Any]) -> str:
    """YAML as Hugging Face reads it, with each metric as a result of the test rows."""
    from huggingface_hub import EvalResult, ModelCardData

    test = report["test"]
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type="tagsmith",
            dataset_name="test rows",
            dataset_split="test",
            metric_type=kind,
            metric_name=title,
            metric_value=round(test[key]["value"], 4),
        )
        for kind, key, title in _METRICS
        if (test.get(key) or {}).get("value") is not None
    ]
    told = ModelCardData(
        library_name="tagsmith",
        pipeline_tag="text-classification",
        tags=["text-classification", "tagsmith"],
        metrics=["accuracy", "f1"],
        model_name="tagsmith",
        eval_results=results,
    )
    return told.to_yaml().strip()


def _shown(test: Mapping[str, Any]) -> list[tuple[str, str]]:
    main = "micro_f1" if test.get("kind") == "multi_label" else "accuracy"
    return [(title, key) for _, key, title in _METRICS if key in (main, "macro_f1", "log_loss")]


def _systems(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    titles = {"tfidf": "TF-IDF", "probe": "frozen probe", "majority": "majority guess"}
    known = [(titles[name], report["baselines"][name]) for name in titles if name in report["baselines"]]
    return [("this model", report["test"]), *known]


def _row(name: str, scores: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    cells = [
        f"{scores[key]['value']:.3f}" if key == "log_loss" else _percent(scores[key]).replace("95 % interval ", "")
        for _, key in _shown(test)
    ]
    return f"| {name} | {' | '.join(cells)} |"


_SETS = "A text may have several of them, or none: those from the thresholds in `tagsmith.json` on."


def _cleaning(steps: Sequence[str]) -> list[str]:
    """What a user of another library must do, where texts are cleaned before they are scored."""
    if not steps:
        return []
    first = (
        f"Texts are cleaned first ({', '.join(steps)}). Tagsmith does so by itself; `transformers.pipeline` does not:"
    )
    return ["", f"{first} give it `tagsmith.data.cleaning.clean_texts(texts, {list(steps)})`, or its answers differ."]


def _percent(measure: Mapping[str, float]) -> str:
    value, low, high = (None if measure[key] is None else 100 * measure[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % (95 % interval {low:.1f} to {high:.1f})" if low is not None else f"{value:.1f} %"
