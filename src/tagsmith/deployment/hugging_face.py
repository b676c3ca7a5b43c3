"""A bundle as a folder of Hugging Face's own, where its classifiers can express the model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.deployment.recipe import labels_of
from tagsmith.errors import SettingError

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md")


def require_expressible(settings: Mapping[str, Any]) -> None:
    """SettingError, with what is in the way, where Hugging Face's sequence classifiers do not compute the same."""
    if settings["hugging_face"]:
        return
    model, several = settings["model"], bool(settings.get("multi_label"))
    if settings.get("hybrid"):
        raise SettingError(
            "Hugging Face's classifiers cannot express this bundle: it answers by an LLM and TF-IDF together. Expected "
            "an LLM alone; train it so (tuning.hybrid=none), or export to onnx or openvino, which express every bundle."
        )
    reasons = [
        f"it pools by '{model['pooling']}', where Hugging Face's decoders take the last token and its BERT the first",
        *(["it does not answer the likeliest label"] if isinstance(settings.get("thresholds"), Mapping) else []),
        *(["its head is an MLP"] if model["head"] != "linear" else []),
        *([f"long texts are read as '{model['long_texts']}'"] if model["long_texts"] not in ("head", "tail") else []),
        *(["the prior of its re-balanced training rows is undone"] if settings["calibration"]["offset"] else []),
        *(["its tokens see what comes after them"] if not model.get("causal_mask", True) else []),
        *(["a text may have several labels, for which it has no bias"] if several else []),
    ]
    if model["pooling"] == "last" and len(reasons) > 1:
        reasons = reasons[1:]
    raise SettingError(
        f"Hugging Face's classifiers cannot express this bundle: {'; '.join(reasons)}. Expected last-token pooling of "
        "a decoder with a linear head and a pad token of its own; train so (model.pooling=last, model.head=linear), or "
        "export to onnx or openvino, which express every bundle."
    )


def fill_hugging_face(folder: Path, aside: Path) -> None:
    """Copy into `aside` what `transformers.pipeline` loads, and the card."""
    for name in FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, aside / name)


def pipeline_probabilities(folder: Path, settings: Mapping[str, Any], texts: Sequence[str]) -> np.ndarray:
    """What Hugging Face's own pipeline says `(N, C)`, labels in our order."""
    import torch
    from transformers import pipeline

    from tagsmith.model.backbone import quiet_transformers

    names = labels_of(settings).names
    with torch.inference_mode(), quiet_transformers():
        answer: Any = pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
        found = answer(list(texts), truncation=True)
    scores = ({each["label"]: each["score"] for each in one} for one in found)
    return np.array([[each[name] for name in names] for each in scores])
