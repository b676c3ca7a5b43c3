"""From logits to probabilities; `evaluation.calibration` fits what stands here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """What turns logits into probabilities: `softmax((scales * logits + offset) / temperature)`.

    `offset (C,)` undoes the prior of re-balanced training rows, or belongs with `scales (C,)` to a scaling of each
    label; None where there are none. With `multi_label` each label has a sigmoid of its own instead.
    """

    temperature: float = 1.0
    offset: tuple[float, ...] | None = None
    multi_label: bool = False
    scales: tuple[float, ...] | None = None

    def probabilities(self, logits_NC: np.ndarray) -> np.ndarray:
        """Probabilities `(N, C)` float64; each row sums to 1, unless a text may have several labels."""
        shifted = logits_NC.astype(np.float64)
        if self.scales is not None:
            shifted = shifted * np.asarray(self.scales)
        if self.offset is not None:
            shifted = shifted + np.asarray(self.offset)
        shifted = shifted / self.temperature
        if self.multi_label:
            return 1 / (1 + np.exp(np.minimum(-shifted, 700.0)))
        powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def is_sure(probs_C: np.ndarray, best: int, sureties: np.ndarray) -> bool:
    """Whether the likeliest label is so much likelier than the next one as `sureties (C,)` ask of it."""
    if len(probs_C) < 2:
        return True
    second = float(np.partition(probs_C, -2)[-2])
    if sureties[best] == np.inf:
        return False
    return second <= 0 or float(np.log(probs_C[best]) - np.log(second)) >= sureties[best]
