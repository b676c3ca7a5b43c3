"""One request, however it was worded, and what is answered to it: the routes only translate.

Axes: N texts, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tagsmith.deployment.limits import Limits
from tagsmith.deployment.problems import Problem
from tagsmith.model.calibration import is_sure
from tagsmith.model.decision import Decision, Rule, decided, rule_of

Function = Literal["sigmoid", "softmax", "none"]


@dataclass(frozen=True)
class Question:
    """Texts (and their second texts, where they are pairs) that want labels.

    `deadline` is a time of `time.monotonic`; `truncate` says that a text may be cut to what the classifier reads. With
    `counts` the texts are part of the traffic that is told of; those that only explain an answer are not.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    truncate: bool = True
    deadline: float = float("inf")
    counts: bool = True


@dataclass(frozen=True)
class About:
    """What a bundle that is being served says of itself."""

    name: str
    engine: str
    labels: tuple[str, ...]
    multi_label: bool
    thresholds: Rule
    max_tokens: int | None
    long_texts: str
    pairs: bool
    digest: str
    unknown_id: int | None = None
    sureties: tuple[float, ...] | None = None
    proof: Mapping[str, Any] | None = None

    @property
    def version(self) -> str:
        """The version: the start of the SHA-256 over all files."""
        return self.digest[:12]

    @classmethod
    def of(cls, name: str, description: Mapping[str, Any]) -> About:
        """From what the engine process says."""
        sureties = description.get("sureties")
        return cls(
            name=name,
            engine=description["engine"],
            labels=tuple(description["labels"]),
            multi_label=description["multi_label"],
            thresholds=rule_of(description["thresholds"]),
            max_tokens=description["max_tokens"],
            long_texts=description["long_texts"],
            pairs=description["pairs"],
            digest=description["digest"],
            unknown_id=description["unknown_id"],
            proof=description.get("proof"),
            sureties=None if sureties is None else tuple(np.inf if each is None else each for each in sureties),
        )


@dataclass(frozen=True)
class Result:
    """What was found of one text; `probs_C` are calibrated, `logits_C` what they were made of."""

    probs_C: np.ndarray
    logits_C: np.ndarray
    tokens: int
    truncated: bool
    labels: tuple[str, ...]
    abstained: bool = False

    @property
    def label(self) -> str | None:
        """The one label; None where there is none, or where a text may have several."""
        return self.labels[0] if len(self.labels) == 1 else None


@dataclass
class Spent:
    """Seconds that one request spent on its way."""

    tokenize_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0


@dataclass(frozen=True)
class Answers:
    """The results of a question in order, whose they are, and how long they took."""

    about: About
    results: tuple[Result, ...]
    spent: Spent = field(default_factory=Spent)

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(result.tokens for result in self.results)


def refuse_texts(question: Question, about: About, limits: Limits) -> None:
    """Problem for a question that need not be asked: too many texts, or one that is empty, broken or too long."""
    if not question.texts:
        raise Problem(422, "There is no text. Expected at least one.")
    if len(question.texts) > limits.texts:
        raise Problem(
            413,
            f"{len(question.texts)} texts in one request; expected at most {limits.texts}. Send several requests, or "
            "all of them to /batch.",
            reason="too_long",
        )
    if question.pairs is not None and not about.pairs:
        raise Problem(422, "This classifier reads single texts; found a pair. Send its texts one by one.")
    if question.pairs is None and about.pairs:
        raise Problem(422, "This classifier reads pairs of texts; found a single text. Send both texts.")
    seconds = question.pairs or [""] * len(question.texts)
    for place, (text, second) in enumerate(zip(question.texts, seconds, strict=True)):
        _refuse_text(place, text, second, limits)


def _refuse_text(place: int, text: str, second: str, limits: Limits) -> None:
    which = f"Text {place}"
    if len(text) + len(second) > limits.letters:
        raise Problem(
            422,
            f"{which} has {len(text) + len(second)} letters; expected at most {limits.letters}.",
            reason="too_long",
        )
    try:
        (text + second).encode()
    except UnicodeEncodeError:
        raise Problem(422, f"{which} holds half of a surrogate pair, which is no character.") from None
    if not text.strip() and not second.strip():
        raise empty(place)


def empty(place: int) -> Problem:
    """422: a text without any letter or sign has no answer."""
    return Problem(422, f"Text {place} is empty: there is nothing to classify.", reason="empty")


def too_long(place: int, about: About) -> Problem:
    """422: a text was not to be cut, and would have been."""
    return Problem(
        422,
        f"Text {place} has more than the {about.max_tokens} tokens that this classifier reads, and was not to be "
        "truncated.",
        reason="too_long",
    )


def result_of(
    about: About,
    probs_C: np.ndarray,
    logits_C: np.ndarray,
    *,
    tokens: int,
    truncated: bool,
    decimals: int | None = None,
) -> Result:
    """The labels that probabilities come to, none where the likeliest is not sure enough; `decimals` round after it."""
    labels, abstained = _labels_of(about, probs_C)
    if decimals is not None:
        probs_C, logits_C = probs_C.round(decimals), logits_C.round(decimals)
    return Result(probs_C, logits_C, tokens, truncated, labels, abstained)


def _labels_of(about: About, probs_C: np.ndarray) -> tuple[tuple[str, ...], bool]:
    """The labels, and whether it was abstained from them."""
    if isinstance(about.thresholds, np.ndarray):
        return tuple(about.labels[i] for i in np.flatnonzero(probs_C >= about.thresholds)), False
    best = int(decided(probs_C[None], about.thresholds)[0])
    if about.sureties is not None and not is_sure(probs_C, best, np.array(about.sureties)):
        return (), True
    return (about.labels[best],), False


def scores(result: Result, about: About, function: Function | None = None) -> np.ndarray:
    """A score for each label `(C,)`: the calibrated probabilities, or another function of the logits."""
    own = "sigmoid" if about.multi_label else "softmax"
    if function in (None, own):
        return result.probs_C
    logits_C = result.logits_C.astype(np.float64)
    if function == "none":
        return logits_C
    if function == "sigmoid":
        return 1 / (1 + np.exp(-np.clip(logits_C, -700, 700)))
    powers_C = np.exp(logits_C - logits_C.max())
    return powers_C / powers_C.sum()


def ranked(result: Result, about: About, *, top_k: int | None = None, function: Function | None = None) -> list[dict]:
    """Labels with their scores, the best first; equal ones in output order.

    Where another label than the likeliest is decided for, that one is first.
    """
    scores_C = scores(result, about, function)
    order = np.argsort(-scores_C, kind="stable")
    if isinstance(about.thresholds, Decision) and result.label is not None:
        answered = about.labels.index(result.label)
        order = np.concatenate([[answered], order[order != answered]])
    order = order[:top_k]
    return [{"label": about.labels[i], "score": float(scores_C[i])} for i in order]
