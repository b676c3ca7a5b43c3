"""The model card in Hugging Face's form: what the model is, how well it answers, and what not to expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


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
        "library_name: tagsmith",
        "pipeline_tag: text-classification",
        "metrics: [accuracy, f1]",
        "model-index:",
        "- name: tagsmith",
        "  results:",
        "  - task: {type: text-classification}",
        "    dataset: {name: test rows, type: tagsmith}",
        "    metrics:",
        *([f"    - {{type: f1, name: micro F1, value: {test['micro_f1']['value']:.4f}}}"] if sets else []),
        f"    - {{type: accuracy, value: {test['accuracy']['value']:.4f}}}",
        f"    - {{type: f1, name: macro F1, value: {test['macro_f1']['value']:.4f}}}",
        "---",
        "",
        "# A text classifier made with Tagsmith",
        "",
        f"Labels: {labels}{' ...' if len(data['labels']) > 20 else ''}",
        *([_SETS] if sets else []),
        "",
        f"Backbone: {model['backbone']}, {model['layers']} blocks.",
        f"Pooling: {model['pooling']}. Tuned: {model['method']}.",
        "",
        f"{title} on {test['n']} test rows: {_percent(test[main])}.",
        f"TF-IDF on the same rows: {_percent(report['baselines']['tfidf'][main])}.",
        "",
        report["verdict"]["text"],
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
