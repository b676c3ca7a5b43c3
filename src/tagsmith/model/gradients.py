"""The words that mattered by integrated gradients (Sundararajan et al. 2017, equation 1), by the library captum.

Where `attribution` leaves words out, this follows the gradient from a text of nothing but padding to the text itself.
It needs the classifier in PyTorch, and one pass forwards and back for each of 50 steps.

Axes: S steps, L positions, D width, C labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tagsmith.errors import SettingError
from tagsmith.model.attribution import Span, words_of
from tagsmith.model.classifier import Classifier

if TYPE_CHECKING:
    from tokenizers import Encoding

STEPS = 50
_STEPS_AT_ONCE = 10


def integrated(classifier: Classifier, text: str, target: int, *, steps: int = STEPS) -> tuple[Span, ...]:
    """The words of a clean text that is read, with their shares of the label's log-odds above those of padding.

    SettingError where captum is missing, and for a text that is not read in one piece.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise SettingError(
            'Integrated gradients need the library captum. Install it with pip install "tagsmith[why]", or explain by '
            "leaving out words, which needs nothing else."
        ) from None
    encoding = _read_whole(classifier, text)
    ids_1L = torch.tensor([encoding.ids])
    special_1L = torch.tensor([encoding.special_tokens_mask], dtype=torch.bool)
    padding_1L = torch.where(special_1L, ids_1L, classifier.encoder.pad_id or 0)
    embed = classifier.backbone.embed

    def odds(states_SLD: Tensor) -> Tensor:
        lengths_S = torch.full((len(states_SLD),), states_SLD.shape[1])
        return _log_odds(classifier, classifier.finish(states_SLD, lengths_S, start=0), target)

    weights_L = (
        IntegratedGradients(odds)
        .attribute(
            embed(ids_1L).detach(),
            baselines=embed(padding_1L).detach(),
            n_steps=steps,
            internal_batch_size=_STEPS_AT_ONCE,
        )
        .sum(-1)[0]
        .double()
        .numpy()
    )
    return _by_word(text, encoding.offsets, weights_L)


def _read_whole(classifier: Classifier, text: str) -> Encoding:
    """The tokens of a text; SettingError where it is none, or read in several pieces."""
    encoder = classifier.encoder
    tokens = encoder.encode([text])
    if not text.strip() or not len(tokens.ids):
        raise SettingError("An empty text has no words that matter. Expected one with a letter or a sign.")
    encoding = encoder.tokenizer.encode(text)
    if tokens.ids.tolist() != encoding.ids:
        raise SettingError(
            f"This text is a pair, or longer than {encoder.max_tokens} tokens and read as '{encoder.long_texts}'. "
            "Integrated gradients explain texts that are read in one piece; explain this one by leaving out words."
        )
    return encoding


def _log_odds(classifier: Classifier, logits_SC: Tensor, target: int) -> Tensor:
    """Calibrated log-odds `(S,)` of a label against all others."""
    calibration = classifier.calibration
    offset_C = torch.zeros(logits_SC.shape[1]) if calibration.offset is None else torch.tensor(calibration.offset)
    scores_SC = (logits_SC + offset_C.to(logits_SC)) / calibration.temperature
    if calibration.multi_label:
        return scores_SC[:, target]
    others_SC = torch.cat([scores_SC[:, :target], scores_SC[:, target + 1 :]], dim=1)
    return scores_SC[:, target] - others_SC.logsumexp(dim=1)


def _by_word(text: str, offsets: list[tuple[int, int]], weights_L: np.ndarray) -> tuple[Span, ...]:
    """The weights of tokens as those of the words that they are part of; special tokens belong to none."""
    words = words_of(text)
    starts = np.array([start for start, _ in words])
    sums = np.zeros(len(words))
    for (start, end), weight in zip(offsets, weights_L.tolist(), strict=True):
        place = int(np.searchsorted(starts, end - 1, side="right")) - 1
        if end > start and place >= 0:
            sums[place] += weight
    return tuple(Span(start, end, weight) for (start, end), weight in zip(words, sums.tolist(), strict=True))
