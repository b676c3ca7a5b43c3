"""The words that mattered for the answers of a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagsmith.data.cleaning import clean_texts
from tagsmith.deployment.bundle import Bundle
from tagsmith.deployment.torch_engine import TorchEngine
from tagsmith.errors import SettingError
from tagsmith.model.attribution import Span, pieces_of, strongest
from tagsmith.model.attribution import explain as leave_out

_MOST = 10
_FAINT = 0.02


@dataclass(frozen=True)
class Explanation:
    """A text, the label that is explained (None for a text without an answer), and the spans of its words."""

    text: str
    label: str | None
    spans: tuple[Span, ...] = ()

    def strongest(self) -> list[Span]:
        """The spans that matter most, for or against, those that speak for the label first."""
        most = max((abs(span.weight) for span in self.spans), default=0.0)
        clear = [span for span in self.spans if abs(span.weight) > _FAINT * most]
        return strongest(sorted(clear, key=lambda span: -abs(span.weight))[:_MOST])

    def as_dict(self) -> dict[str, Any]:
        """The text in pieces with their weights, as `POST /explain` gives them."""
        pieces = [{"text": text, "weight": weight} for text, weight in pieces_of(self.text, self.spans)]
        return {"text": self.text, "label": self.label, "pieces": pieces}


def explain(
    bundle: Bundle, texts: Sequence[str], *, label: str | None = None, gradients: bool = False
) -> Iterator[Explanation]:
    """Why a `label`, the answer by default, is as likely as it is for each text.

    With several labels a text the first one found is explained, the likeliest where none is. SettingError for a label
    that the bundle does not know, and where `gradients` cannot be had.
    """
    if label is not None and label not in bundle.labels:
        raise SettingError(f"The bundle has no label '{label}'. Known: {', '.join(bundle.labels[:20])}.")
    answers = bundle.answer(texts)
    answered = [i for i, answer in enumerate(answers) if answer.reason is None]
    targets = {
        i: bundle.labels.index(
            label or (answers[i].labels or (bundle.labels[int(np.argmax(answers[i].probabilities))],))[0]
        )
        for i in answered
    }
    chosen, wanted = [texts[i] for i in answered], [targets[i] for i in answered]
    found = _by_gradients(bundle, chosen, wanted) if gradients else _by_leaving_out(bundle, chosen, wanted)
    explained = dict(zip(answered, found, strict=True))
    for i, text in enumerate(texts):
        yield explained.get(i, Explanation(text, None))


def _by_leaving_out(bundle: Bundle, texts: Sequence[str], targets: Sequence[int]) -> list[Explanation]:
    found = leave_out(texts, targets, bundle.predict_proba)
    return [Explanation(t, bundle.labels[i], spans) for t, i, spans in zip(texts, targets, found, strict=True)]


def _by_gradients(bundle: Bundle, texts: Sequence[str], targets: Sequence[int]) -> list[Explanation]:
    """Of the texts as they are read, which is after cleaning."""
    from tagsmith.model.gradients import integrated

    engine = bundle.engine
    if not isinstance(engine, TorchEngine):
        raise SettingError(
            f"Integrated gradients need a bundle that PyTorch computes; '{bundle.folder}' is of the engine "
            f"{engine.name}. Explain it by leaving out words, or explain the bundle that it was exported from."
        )
    if engine.mixer is not None:
        raise SettingError(
            f"Integrated gradients explain an LLM, and '{bundle.folder}' answers by an LLM and TF-IDF together. "
            "Explain it by leaving out words, which needs no gradients."
        )
    return [
        Explanation(text, bundle.labels[i], integrated(engine.classifier, text, i))
        for text, i in zip(clean_texts(texts, engine.cleaning), targets, strict=True)
    ]
