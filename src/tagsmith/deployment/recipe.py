"""What turns texts into tokens, and logits into answers: all of a bundle but its arithmetic. It needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tagsmith.config import Config
from tagsmith.data.cleaning import clean_texts
from tagsmith.data.encoding import Encoder, Tokens
from tagsmith.data.pairs import PAIR
from tagsmith.deployment.hybrid import Mixer
from tagsmith.errors import SettingError
from tagsmith.labels import Labels
from tagsmith.model.calibration import Calibration
from tagsmith.model.decision import Rule, rule_of

SETTINGS = "tagsmith.json"


def read_settings(folder: Path) -> Mapping[str, Any]:
    """The recipe of a bundle, as `tagsmith.json` has it."""
    return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))


def labels_of(settings: Mapping[str, Any]) -> Labels:
    """The labels of a recipe."""
    return Labels(tuple(settings["labels"]), bool(settings.get("multi_label")))  # bundles of 0.1.0 say nothing


def encoder_of(folder: Path, settings: Mapping[str, Any]) -> Encoder:
    """The tokenizer of a bundle with its policy for long texts."""
    model = settings["model"]
    return Encoder.from_folder(
        folder, max_tokens=model["max_tokens"], long_texts=model["long_texts"], pairs=model["pairs"]
    )


def calibration_of(settings: Mapping[str, Any]) -> Calibration:
    """What turns logits into probabilities; nothing is left to do where it was folded into the head."""
    multi_label = bool(settings.get("multi_label"))
    if settings["calibration"]["folded_into_head"]:
        return Calibration(multi_label=multi_label)
    about = settings["calibration"]
    offset, scales = (None if about.get(key) is None else tuple(about[key]) for key in ("offset", "scales"))
    return Calibration(about["temperature"], offset, multi_label, scales)


def thresholds_of(settings: Mapping[str, Any]) -> Rule:
    """The probabilities `(C,)` from which on labels are answered, or the decision; None where the likeliest one is."""
    return rule_of(settings.get("thresholds"))


def sureties_of(settings: Mapping[str, Any]) -> np.ndarray | None:
    """The sureties `(C,)` from which labels are answered, infinite for one that never is; None where all always are.

    A surety is the log of the ratio of the two likeliest labels' probabilities.
    """
    kept = settings.get("abstention")
    return None if kept is None else np.array([np.inf if each is None else each for each in kept["sureties"]])


def tokens_per_batch_of(settings: Mapping[str, Any]) -> int:
    """How many tokens one core scores at once."""
    return Config.of(settings.get("config", {})).deployment.tokens_per_batch


def cleaning_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The steps by which texts are cleaned first."""
    return tuple(settings.get("cleaning", ()))  # bundles of 0.1.0 have none


def joined_pairs(texts: Sequence[str], pairs: Sequence[str] | None, *, known: bool) -> Sequence[str]:
    """Texts with their second ones behind `PAIR`, which is taken out of either; `known` says whether a bundle reads so.

    SettingError where it does not, or where there are more of the one than of the other.
    """
    if pairs is None:
        return texts
    if not known:
        raise SettingError(
            "Found pairs of texts, and this bundle was trained on single texts. Expected single texts; join the two, "
            "or train with data.text_pair."
        )
    if len(pairs) != len(texts):
        raise SettingError(f"Found {len(texts)} texts and {len(pairs)} second texts; expected one for each.")
    sides = zip(texts, pairs, strict=True)
    return [f"{first.replace(PAIR, ' ')}{PAIR}{second.replace(PAIR, ' ')}" for first, second in sides]


def encode_answerable(
    encoder: Encoder, texts: Sequence[str], cleaning: Sequence[str], mixer: Mixer | None = None
) -> Tokens:
    """The tokens of cleaned texts, with the scores of TF-IDF where a `mixer` wants them.

    A text without any letter or sign has none, whatever the tokenizer puts around it.
    """
    cleaned = clean_texts(texts, cleaning)
    tokens = encoder.encode(cleaned)
    blank = [i for i, text in enumerate(cleaned) if not text.strip()]
    tokens = tokens.emptied(np.array(blank)) if blank else tokens
    return tokens if mixer is None else mixer.encode(tokens, cleaned)


@dataclass(frozen=True)
class Recipe:
    """The recipe of a bundle with weights, for engines other than torch's."""

    labels: Labels
    encoder: Encoder
    calibration: Calibration
    thresholds: Rule
    sureties: np.ndarray | None
    cleaning: tuple[str, ...]
    tokens_per_batch: int
    mixer: Mixer | None = None

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any]) -> Recipe:
        """The recipe in a bundle's folder."""
        return cls(
            labels=labels_of(settings),
            encoder=encoder_of(folder, settings),
            calibration=calibration_of(settings),
            thresholds=thresholds_of(settings),
            sureties=sureties_of(settings),
            cleaning=cleaning_of(settings),
            tokens_per_batch=tokens_per_batch_of(settings),
            mixer=Mixer.read(folder, settings),
        )

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """The tokens of cleaned texts, none for one without any letter or sign."""
        joined = joined_pairs(texts, pairs, known=self.encoder.pairs)
        return encode_answerable(self.encoder, joined, self.cleaning, self.mixer)
