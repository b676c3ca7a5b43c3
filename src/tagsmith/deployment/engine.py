"""A loaded bundle that answers: texts in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tagsmith.data.cleaning import clean_texts
from tagsmith.labels import Labels
from tagsmith.model.classifier import Classifier, Scorer


@dataclass(frozen=True)
class Answer:
    """What is said of one text.

    `label` and `probability` are None for a text that gets no answer, and `reason` says why (`empty`);
    `truncated` says that the text was longer than the classifier reads. `labels` are all that were found: one, or
    where a text may have several those from their thresholds on, in output order; `label` and `probability` are None
    then, whatever was found.
    """

    label: str | None
    probability: float | None
    probabilities: tuple[float, ...]
    truncated: bool
    reason: str | None = None
    labels: tuple[str, ...] = ()


class TorchEngine:
    """PyTorch in fp32, the reference of every other engine. Texts are cleaned by the steps of `cleaning` first."""

    name = "torch-fp32"

    def __init__(self, classifier: Classifier, *, tokens_per_batch: int = 512, cleaning: Sequence[str] = ()) -> None:
        self.labels: Labels = classifier.labels
        self.cleaning = tuple(cleaning)
        self._classifier = classifier
        self._scorer = Scorer(classifier, tokens_per_batch=tokens_per_batch)

    @property
    def scorer(self) -> Scorer:
        """What computes the answers."""
        return self._scorer

    @property
    def thresholds(self) -> np.ndarray | None:
        """The probabilities `(C,)` from which on labels are answered; None where the likeliest one is."""
        return self._classifier.thresholds

    @property
    def classifier(self) -> Classifier:
        """The classifier that answers."""
        return self._classifier

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Logits `(N, C)` float32."""
        return self._scorer.logits(self._classifier.encoder.encode(clean_texts(texts, self.cleaning)))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities `(N, C)` float64; NaN for an empty text."""
        return self._scorer.probabilities(clean_texts(texts, self.cleaning))[0]

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """An answer for each text, in order."""
        probs_NC, truncated_N = self._scorer.probabilities(clean_texts(texts, self.cleaning))
        return [self._answer(probs_C, cut=bool(cut)) for probs_C, cut in zip(probs_NC, truncated_N, strict=True)]

    def _answer(self, probs_C: np.ndarray, *, cut: bool) -> Answer:
        if np.isnan(probs_C).any():
            return Answer(None, None, (), cut, reason="empty")
        probabilities, names = tuple(float(p) for p in probs_C), self.labels.names
        if self.thresholds is not None:
            found = tuple(names[i] for i in np.flatnonzero(probs_C >= self.thresholds))
            return Answer(None, None, probabilities, cut, labels=found)
        best = int(probs_C.argmax())
        return Answer(names[best], probabilities[best], probabilities, cut, labels=(names[best],))
