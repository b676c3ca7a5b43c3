"""From probabilities to answers: the likeliest label, another one by a rule, or all labels from their thresholds on.

`evaluation.decisions` fits what stands here. Axes: N texts, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["prior", "costs"]


@dataclass(frozen=True, eq=False)
class Decision:
    """Which one label is answered where that is not simply the likeliest; probabilities stay what they are.

    `prior` divides the probability of a label by a power of its share: `gains (C,)`, multiplied with the probabilities
    (logit adjustment, Menon et al. 2021, equation 5). `costs` answers what is expected to cost least: `gains (C, C)`
    are costs with their sign turned, by truth and answer (Elkan 2001, equation 1).
    """

    kind: Kind
    gains: np.ndarray

    @classmethod
    def by_prior(cls, shares_C: np.ndarray, tau: float) -> Decision:
        """Scores of log-probabilities minus `tau` times the log of the labels' shares."""
        return cls("prior", np.maximum(shares_C, LEAST) ** -tau)

    @classmethod
    def by_costs(cls, costs_CC: np.ndarray) -> Decision:
        """The answer of the least expected cost; `costs_CC` are by truth and answer."""
        return cls("costs", -costs_CC)

    def scores(self, probs: np.ndarray) -> np.ndarray:
        """What the answer has most of, of probabilities `(C,)` or `(N, C)`."""
        return probs * self.gains if self.gains.ndim == 1 else probs @ self.gains

    def margins(self, probs_NC: np.ndarray) -> np.ndarray:
        """By how much probabilities must change for another answer `(N,)`, as the lead of the likeliest label is."""
        if len(self.gains) < 2:
            return np.ones(len(probs_NC))
        scores_NC = self.scores(probs_NC)
        first_N = scores_NC.argmax(axis=1)
        leads_NC = np.take_along_axis(scores_NC, first_N[:, None], axis=1) - scores_NC
        leads_NC[np.arange(len(first_N)), first_N] = np.inf
        return (2 * leads_NC / np.maximum(self._reach()[first_N], LEAST)).min(axis=1)

    def _reach(self) -> np.ndarray:
        """How much the lead of one label over another changes `(C, C)`, when each probability changes by one."""
        if self.gains.ndim == 1:
            return self.gains[:, None] + self.gains
        return np.array([np.abs(self.gains[:, [i]] - self.gains).sum(axis=0) for i in range(len(self.gains))])


LEAST = 1e-12

Rule = Decision | np.ndarray | None
"""How probabilities are answered: None by the likeliest label, an array `(C,)` by each label that reaches its threshold
(a text may have several then), a Decision by the one label that it chooses."""


def decided(probs_NC: np.ndarray, rule: Rule) -> np.ndarray:
    """The answers: label ids `(N,)`, or by thresholds which labels each text has, `(N, C)` bool."""
    if isinstance(rule, np.ndarray):
        return probs_NC >= rule
    return (probs_NC if rule is None else rule.scores(probs_NC)).argmax(axis=1)


def plain_of(rule: Rule) -> Any:
    """A rule as JSON has it: None, a list of thresholds, or what a Decision says."""
    if isinstance(rule, Decision):
        return {"kind": rule.kind, "gains": rule.gains.tolist()}
    return None if rule is None else rule.tolist()


def rule_of(plain: Any) -> Rule:
    """What `plain_of` wrote."""
    if isinstance(plain, Mapping):
        return Decision(plain["kind"], np.array(plain["gains"]))
    return None if plain is None else np.array(plain)
