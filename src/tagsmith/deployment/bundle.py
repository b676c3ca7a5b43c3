"""The saved folder: a classifier that answers, its report and its recipe.

Hugging Face's pipeline loads it where it can express the model, and refuses where it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tagsmith.config import Config, ModelConfig
from tagsmith.data.cleaning import clean_texts
from tagsmith.data.encoding import Encoder
from tagsmith.deployment.engine import Answer, TorchEngine
from tagsmith.deployment.manifest import verify
from tagsmith.labels import Labels
from tagsmith.model.backbone import load_backbone
from tagsmith.model.classifier import Calibration, Classifier, assemble
from tagsmith.model.device import choose_device
from tagsmith.model.lexical import Lexical
from tagsmith.model.packing import keep_few_kernels

if TYPE_CHECKING:
    from tagsmith.evaluation.page import Mishap

SETTINGS = "tagsmith.json"
TRUNK = "trunk"
HEAD = "head.safetensors"
BASELINE = "baseline"
_ARRAYS = ("letters", "terms", "idf", "weights", "bias")
PROBES = (
    "Your parcel is waiting, confirm the address to receive it today.",
    "Could you send me the notes from this morning's meeting?",
    "The room was clean and the staff were kind, but breakfast was cold.",
    "How do I change the limit on my card?",
)
"""Synthetic texts whose logits are kept in the bundle, so that any copy of it can be checked in a second."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. `settings` is the recipe of `tagsmith.json`, `report` what `report.json` says."""

    folder: Path
    engine: TorchEngine
    settings: Mapping[str, Any]
    report: Mapping[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the probabilities."""
        return self.engine.labels.names

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.engine.labels.multi_label

    @property
    def thresholds(self) -> dict[str, np.ndarray] | None:
        """The probabilities `(C,)` from which on labels are answered, by `model` and by each baseline.

        None where the likeliest label is answered.
        """
        own = self.engine.thresholds
        return None if own is None else {"model": own} | dict(read_baselines(self.folder).thresholds)

    def predict(self, texts: Sequence[str]) -> list[str | tuple[str, ...] | None]:
        """The label of each text, or all of its labels where it may have several; None for an empty text."""
        if self.multi_label:
            return [answer.labels if answer.reason is None else None for answer in self.answer(texts)]
        return [answer.label for answer in self.answer(texts)]

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities `(N, C)` in the order of `labels`; NaN for an empty text."""
        return self.engine.probabilities(texts)

    def baseline_probabilities(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What the baselines fitted beside the model say: probabilities `(N, C)` of `majority` and `tfidf`."""
        return read_baselines(self.folder).probabilities(clean_texts(texts, self.engine.cleaning))

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """Label, probabilities and remarks for each text."""
        return self.engine.answer(texts)


def load(folder: str | Path, *, device: str = "cpu") -> Bundle:
    """A bundle that is ready to answer, on a `device` named as in `tuning.device`.

    BundleError when it is absent, altered or of another format; SettingError when there is no such device.
    """
    path = Path(folder)
    verify(path)
    keep_few_kernels()
    return reload(path, device=device)


def reload(folder: Path, *, device: str = "cpu") -> Bundle:
    """The bundle in a folder that this process has just written or verified."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    config = Config.of(settings.get("config", {}))
    report = folder / "report.json"
    return Bundle(
        folder=folder,
        engine=TorchEngine(
            load_classifier(folder, settings).to(choose_device(device)),
            tokens_per_batch=config.deployment.tokens_per_batch,
            cleaning=settings.get("cleaning", ()),  # bundles of 0.1.0 have none
        ),
        settings=settings,
        report=json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {},
    )


def load_classifier(folder: Path, settings: Mapping[str, Any]) -> Classifier:
    """The classifier in a folder that `write_classifier` filled, ready to answer."""
    from safetensors.torch import load_file

    model = settings["model"]
    labels = Labels(tuple(settings["labels"]), bool(settings.get("multi_label")))  # bundles of 0.1.0 say nothing
    root = folder if settings["hugging_face"] else folder / TRUNK
    backbone = load_backbone(root)
    encoder = Encoder.from_folder(
        folder, max_tokens=model["max_tokens"], long_texts=model["long_texts"], pairs=model["pairs"]
    )
    # Bundles of 0.1.0 say nothing of a mask: it was always there.
    config = ModelConfig(pooling=model["pooling"], head=model["head"], causal_mask=model.get("causal_mask", True))
    classifier = assemble(backbone, encoder, config, labels=labels, seed=0)
    if settings["hugging_face"]:
        weights = _head_of_hugging_face(load_file(folder / "model.safetensors"))
    else:
        weights = load_file(folder / HEAD)
    classifier.head.load_state_dict({name: weight.float() for name, weight in weights.items()})
    if not settings["hugging_face"]:
        offset = settings["calibration"]["offset"]
        classifier.calibration = Calibration(
            settings["calibration"]["temperature"], None if offset is None else tuple(offset), labels.multi_label
        )
    if labels.multi_label:
        classifier.thresholds = np.array(settings["thresholds"])
    return classifier.eval().requires_grad_(False)


def write_classifier(folder: Path, classifier: Classifier, *, recipe: Mapping[str, Any]) -> None:
    """Fill `folder` with weights, tokenizer, recipe and probes.

    Where Hugging Face can express the model, its temperature is folded into the head and the root is a checkpoint of
    Hugging Face's own; elsewhere the trunk lies under `trunk/`, so that its pipeline refuses rather than guesses.
    """
    expressible = hugging_face_expresses(classifier)
    if expressible:
        _write_hugging_face(folder, classifier)
    else:
        _write_apart(folder, classifier)
    classifier.encoder.save(folder)
    settings = {
        "format": 1,
        "labels": list(classifier.labels.names),
        "multi_label": classifier.labels.multi_label,
        "thresholds": None if classifier.thresholds is None else classifier.thresholds.tolist(),
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
            "folded_into_head": expressible,
        },
        **recipe,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")


def write_probes(folder: Path, engine: TorchEngine) -> None:
    """Keep synthetic texts with their logits, to check copies and exports by."""
    logits_NC = engine.logits(PROBES)
    lines = [
        json.dumps({"text": text, "logits": [float(x) for x in row]})
        for text, row in zip(PROBES, logits_NC, strict=True)
    ]
    (folder / "probe.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def hugging_face_expresses(classifier: Classifier) -> bool:
    """Whether transformers' own sequence classifier computes the same.

    That of a causal model pools the last token that is not the pad token, and has a linear head without bias; it knows
    no offset. That of BERT pools the first token and has a bias, as several labels a text ask for.
    """
    several = classifier.labels.multi_label
    return (
        (_is_read_as_bert(classifier) if several else _is_read_as_causal(classifier))
        and _is_linear(classifier.head)
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


def write_baselines(
    folder: Path,
    lexical: Lexical,
    priors: Sequence[float],
    *,
    thresholds: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Save the TF-IDF model and the labels' shares in training: vocabulary as JSON, numbers as safetensors.

    `thresholds (C,)` are those of `majority` and `tfidf`, where a text may have several labels.
    """
    from safetensors.numpy import save_file

    baseline = folder / BASELINE
    baseline.mkdir()
    arrays = {name: np.ascontiguousarray(getattr(lexical, name)) for name in _ARRAYS}
    save_file(arrays, baseline / "weights.safetensors")
    vocabulary = {
        "words": sorted(lexical.words, key=lexical.words.__getitem__),
        "numbers": sorted(lexical.words.values()),
        "scale": lexical.scale,
        "n_grams": lexical.n_grams,
        "regularisation": lexical.regularisation,
        "priors": [float(prior) for prior in priors],
        "multi_label": lexical.multi_label,
        "thresholds": {name: values.tolist() for name, values in (thresholds or {}).items()},
    }
    (baseline / "vocabulary.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")


def read_baselines(folder: Path) -> Baselines:
    """The baselines that `write_baselines` saved."""
    from safetensors.numpy import load_file

    baseline = folder / BASELINE
    vocabulary = json.loads((baseline / "vocabulary.json").read_text(encoding="utf-8"))
    lexical = Lexical(
        **load_file(baseline / "weights.safetensors"),
        words=dict(zip(vocabulary["words"], vocabulary["numbers"], strict=True)),
        scale=vocabulary["scale"],
        n_grams=vocabulary["n_grams"],
        regularisation=vocabulary["regularisation"],
        multi_label=bool(vocabulary.get("multi_label")),  # baselines of 0.1.0 say nothing
    )
    thresholds = {name: np.array(values) for name, values in vocabulary.get("thresholds", {}).items()}
    return Baselines(lexical, tuple(vocabulary["priors"]), thresholds)


@dataclass(frozen=True)
class Baselines:
    """The cheap alternatives: the labels' shares in training, and TF-IDF with a linear model.

    `thresholds (C,)` by name, empty where the likeliest label is answered.
    """

    lexical: Lexical
    priors: tuple[float, ...]
    thresholds: Mapping[str, np.ndarray]

    def probabilities(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Probabilities `(N, C)` of each."""
        return {"majority": np.tile(self.priors, (len(texts), 1)), "tfidf": self.lexical.probabilities(texts)}


def write_report(
    folder: Path, report: Mapping[str, Any], *, run: Mapping[str, Any], mistakes: Sequence[Mishap]
) -> None:
    """Write the report as JSON and as a page, the facts of the run, and the model card."""
    from tagsmith.deployment.card import card
    from tagsmith.evaluation.page import draw

    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(draw(report, run, mistakes), encoding="utf-8")
    (folder / "README.md").write_text(card(report), encoding="utf-8")
