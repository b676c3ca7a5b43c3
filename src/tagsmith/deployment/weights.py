"""Weights, tokenizer and recipe of a classifier in a folder: written, and read again.

Hugging Face's pipeline loads it where it can express the model, and refuses where it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tagsmith.config import ModelConfig
from tagsmith.data.encoding import Encoder
from tagsmith.deployment.recipe import (
    SETTINGS,
    calibration_of,
    encoder_of,
    labels_of,
    sureties_of,
    thresholds_of,
)
from tagsmith.model.backbone import load_backbone
from tagsmith.model.classifier import Classifier, assemble
from tagsmith.model.decision import Decision, plain_of

TRUNK = "trunk"
HEAD = "head.safetensors"


def load_classifier(folder: Path, settings: Mapping[str, Any]) -> Classifier:
    """The classifier in a folder that `write_classifier` filled, ready to answer."""
    from safetensors.torch import load_file

    model, labels = settings["model"], labels_of(settings)
    backbone = load_backbone(folder if settings["hugging_face"] else folder / TRUNK)
    # Bundles of 0.1.0 say nothing of a mask: it was always there.
    config = ModelConfig(pooling=model["pooling"], head=model["head"], causal_mask=model.get("causal_mask", True))
    classifier = assemble(backbone, encoder_of(folder, settings), config, labels=labels, seed=0)
    if settings["hugging_face"]:
        weights = _head_of_hugging_face(load_file(folder / "model.safetensors"))
    else:
        weights = load_file(folder / HEAD)
    classifier.head.load_state_dict({name: weight.float() for name, weight in weights.items()})
    classifier.calibration = calibration_of(settings)
    classifier.thresholds, classifier.sureties = thresholds_of(settings), sureties_of(settings)
    return classifier.eval().requires_grad_(False)


def write_classifier(folder: Path, classifier: Classifier, *, recipe: Mapping[str, Any]) -> None:
    """Fill `folder` with weights, tokenizer, recipe and probes.

    Where Hugging Face can express the model, its temperature is folded into the head and the root is a checkpoint of
    Hugging Face's own; elsewhere the trunk lies under `trunk/`, so that its pipeline refuses rather than guesses.
    """
    expressible = hugging_face_expresses(classifier) and not recipe.get("hybrid")
    if expressible:
        _write_hugging_face(folder, classifier)
    else:
        _write_apart(folder, classifier)
    classifier.encoder.save(folder)
    settings = {
        "format": 1,
        "labels": list(classifier.labels.names),
        "multi_label": classifier.labels.multi_label,
        "thresholds": plain_of(classifier.thresholds),
        "hugging_face": expressible,
        "model": {
            "layers": classifier.backbone.depth,
            "pooling": classifier.pooling,
            "causal_mask": classifier.backbone.causal_mask,
            "head": "linear" if _is_linear(classifier.head) else "mlp",
            "max_tokens": classifier.encoder.max_tokens,
            "long_texts": classifier.encoder.long_texts,
            "pairs": classifier.encoder.pairs,
        },
        "calibration": {
            "temperature": classifier.calibration.temperature,
            "offset": None if classifier.calibration.offset is None else list(classifier.calibration.offset),
            "scales": None if classifier.calibration.scales is None else list(classifier.calibration.scales),
            "folded_into_head": expressible,
        },
        **recipe,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")


def hugging_face_expresses(classifier: Classifier) -> bool:
    """Whether transformers' own sequence classifier computes the same.

    That of a causal model pools the last token that is not the pad token, and has a linear head without bias; it knows
    no offset, and answers the likeliest label, whatever was decided. That of BERT pools the first token and has a bias,
    as several labels a text ask for.
    """
    several = classifier.labels.multi_label
    return (
        (_is_read_as_bert(classifier) if several else _is_read_as_causal(classifier))
        and _is_linear(classifier.head)
        and not isinstance(classifier.thresholds, Decision)
        and classifier.encoder.long_texts in ("head", "tail")
        and _pad_is_only_padding(classifier.encoder)
        and _sequence_class(classifier.backbone.config) is not None
    )


def _is_read_as_causal(classifier: Classifier) -> bool:
    return classifier.pooling == "last" and classifier.backbone.causal and classifier.calibration.offset is None


def _is_read_as_bert(classifier: Classifier) -> bool:
    return classifier.pooling == "first" and classifier.backbone.config.model_type == "bert"


def _pad_is_only_padding(encoder: Encoder) -> bool:
    """Whether there is a pad token that no text ends in: Qwen3-Embedding's tokenizer puts it after each text."""
    if encoder.pad_token in (None, getattr(encoder.tokenizer.model, "unk_token", None)):
        return False
    return encoder.pad_id not in encoder.encode(["a"]).ids[-1:].tolist()


def _is_linear(head: nn.Module) -> bool:
    return not hasattr(head, "hidden")


def _sequence_class(config: Any) -> Any:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)


def _write_hugging_face(folder: Path, classifier: Classifier) -> None:
    kind = _sequence_class(classifier.backbone.config)
    weights = {f"{kind.base_model_prefix}.{name}": weight for name, weight in _trunk_weights(classifier)}
    weights |= _head_for_hugging_face(classifier, kind.base_model_prefix)
    names = dict(enumerate(classifier.labels.names))
    extra = {
        "architectures": [kind.__name__],
        "id2label": {str(i): name for i, name in names.items()},
        "label2id": {name: i for i, name in names.items()},
        "problem_type": f"{'multi' if classifier.labels.multi_label else 'single'}_label_classification",
        "pad_token_id": classifier.encoder.pad_id,
    }
    _write_checkpoint(folder, classifier, weights, extra)


_FAINT = 2.0**-14
"""BERT's classifier has a tanh between trunk and head. On states so faint it is the identity: what it bends is their
third power, 1e-9 of a state of 1 and 1e-7 of one of 10; and a power of two is undone without rounding."""


def _head_for_hugging_face(classifier: Classifier, prefix: str) -> dict[str, Tensor]:
    """The head under the names of transformers' sequence classifier, with the calibration folded into it."""
    head, calibration = classifier.head.state_dict(), classifier.calibration
    score_CD = head["score.weight"].double() / calibration.temperature
    if not classifier.labels.multi_label:
        return {"score.weight": score_CD.float()}
    offset_C = torch.zeros(len(score_CD)) if calibration.offset is None else torch.tensor(calibration.offset)
    width = score_CD.shape[1]
    return {
        f"{prefix}.pooler.dense.weight": torch.eye(width) * _FAINT,
        f"{prefix}.pooler.dense.bias": torch.zeros(width),
        "classifier.weight": (score_CD / _FAINT).float(),
        "classifier.bias": ((head["score.bias"].double() + offset_C.double()) / calibration.temperature).float(),
    }


def _head_of_hugging_face(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `_head_for_hugging_face` wrote, as a head of ours has it."""
    if "score.weight" in weights:
        return {"score.weight": weights["score.weight"]}
    return {"score.weight": weights["classifier.weight"] * _FAINT, "score.bias": weights["classifier.bias"]}


def _write_apart(folder: Path, classifier: Classifier) -> None:
    from safetensors.torch import save_file

    trunk = folder / TRUNK
    trunk.mkdir()
    _write_checkpoint(trunk, classifier, dict(_trunk_weights(classifier)), {"architectures": None})
    head = {name: weight.contiguous() for name, weight in classifier.head.state_dict().items()}
    save_file(head, folder / HEAD, metadata={"format": "pt"})


def _trunk_weights(classifier: Classifier) -> list[tuple[str, Tensor]]:
    return list(classifier.backbone.trunk.state_dict().items())


def _write_checkpoint(
    folder: Path, classifier: Classifier, weights: Mapping[str, Tensor], extra: Mapping[str, Any]
) -> None:
    from safetensors.torch import save_file

    config = classifier.backbone.config.to_dict()
    config = {key: value for key, value in config.items() if not key.startswith("_") and key != "quantization_config"}
    # transformers loads in the dtype that the configuration names, and bf16 would answer otherwise than fp32.
    config |= {"dtype": "float32", **extra}
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(
        {name: _compact(weight) for name, weight in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def _compact(weight: Tensor) -> Tensor:
    """The same numbers in bf16 where that loses nothing, as in blocks that were fetched in bf16 and never tuned."""
    half = weight.detach().to(torch.bfloat16)
    return (half if torch.equal(half.to(weight.dtype), weight) else weight.detach()).contiguous()
