"""The engine of PyTorch: in fp32 the reference of every other one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagsmith.data.encoding import Tokens
from tagsmith.deployment.bundle import Bundle, read_report
from tagsmith.deployment.engine import Answer, answers
from tagsmith.deployment.hybrid import Mixer
from tagsmith.deployment.recipe import (
    cleaning_of,
    encode_answerable,
    joined_pairs,
    read_settings,
    tokens_per_batch_of,
)
from tagsmith.deployment.weights import load_classifier
from tagsmith.labels import Labels
from tagsmith.model.classifier import Classifier, Scorer
from tagsmith.model.decision import Rule
from tagsmith.model.device import choose_device
from tagsmith.model.packing import keep_few_kernels


class TorchEngine:
    """A classifier that answers. Texts are cleaned by the steps of `cleaning` first."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        tokens_per_batch: int = 512,
        cleaning: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        mixer: Mixer | None = None,
    ) -> None:
        self.name = "torch-fp32" if dtype == torch.float32 else "torch-bf16"
        self.labels: Labels = classifier.labels
        self.cleaning = tuple(cleaning)
        self.tokens_per_batch = tokens_per_batch
        self.mixer = mixer
        self._classifier = classifier
        self._scorer = Scorer(classifier, tokens_per_batch=tokens_per_batch, dtype=dtype)

    @property
    def scorer(self) -> Scorer:
        """What computes the answers."""
        return self._scorer

    @property
    def classifier(self) -> Classifier:
        """The classifier that answers."""
        return self._classifier

    @property
    def thresholds(self) -> Rule:
        """What `Engine.thresholds` says."""
        return self._classifier.thresholds

    @property
    def sureties(self) -> np.ndarray | None:
        """From which surety labels `(C,)` are answered at all; None where they always are."""
        return self._classifier.sureties

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.labels.multi_label

    @property
    def max_tokens(self) -> int:
        """How many tokens are read of a text."""
        return self._classifier.encoder.max_tokens

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """The tokens of cleaned texts, none for one without any letter or sign."""
        encoder = self._classifier.encoder
        joined = joined_pairs(texts, pairs, known=encoder.pairs)
        return encode_answerable(encoder, joined, self.cleaning, self.mixer)

    def tokens_alone(self, texts: Sequence[str]) -> Tokens:
        """What the classifier itself reads of texts, without anything of TF-IDF."""
        return encode_answerable(self._classifier.encoder, texts, self.cleaning)

    def logits_of(self, tokens: Tokens) -> np.ndarray:
        """Logits `(N, C)`; NaN for a text without tokens."""
        return self._scorer.logits(tokens) if self.mixer is None else self.mixer.logits(tokens, self._scorer.logits)

    def probabilities_of(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities `(N, C)` float64."""
        return self._classifier.calibration.probabilities(logits)

    def lanes(self) -> list[Callable[[], None]]:
        """What a thread does before its first batch, for each of the threads that may compute at a time.

        There is one for each core, so that a text that comes while another is computed need not wait for it. The thread
        that asks computes on one core from now on, as they do.
        """
        cores = torch.get_num_threads()
        torch.set_num_threads(1)
        return [lambda: torch.set_num_threads(1)] * cores

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Answer]:
        """An answer for each text, in order."""
        return answers(self, texts, pairs)


def _open(
    dtype: torch.dtype,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    threads: int | None = None,
    device: str = "cpu",
) -> TorchEngine:
    if threads is not None:
        torch.set_num_threads(threads)
    keep_few_kernels()
    return TorchEngine(
        load_classifier(folder, settings).to(choose_device(device)),
        tokens_per_batch=tokens_per_batch_of(settings),
        cleaning=cleaning_of(settings),
        dtype=dtype,
        mixer=Mixer.read(folder, settings),
    )


open_fp32 = partial(_open, torch.float32)
open_bf16 = partial(_open, torch.bfloat16)


def reload(folder: Path, *, device: str = "cpu") -> Bundle[TorchEngine]:
    """The bundle in a folder that this process has just written or verified."""
    settings = read_settings(folder)
    return Bundle(folder, open_fp32(folder, settings, device=device), settings, read_report(folder))
