"""The candidates of a search: what was judged, hybrids of it with TF-IDF, which one wins, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tagsmith.config import Config
from tagsmith.events import Event
from tagsmith.model.hybrid import Hybrid
from tagsmith.tuning.learner import Part
from tagsmith.tuning.mixing import FEWEST_ROWS, KINDS, share_of
from tagsmith.tuning.recipes import Recipe
from tagsmith.tuning.trials import FOLDS, Judged, Sample, try_hybrid

MOST_OF_IT, LEAST_OF_IT = 0.7, 0.25
"""The share of its epochs that a winner should have time for, and the one without which it is not worth a beginning."""

_SHORT, _SLOWEST = 10.0, 2.0
"""Seconds of a trial that tells nothing of its pace, and the slowest that is believed: other work passes."""

FAR_BETTER = 0.85
"""A loss this much lower says more than that there is time for the fewest epochs only, or that a head alone has it."""

_SPEAK_AGAINST = 2 * (FOLDS * (1 / FOLDS + 1 / (FOLDS - 1))) ** 0.5
"""Two standard errors of rows that folds judge: what their candidates learnt from overlaps, and the plain error, which
takes them for independent, should be 1.6 times as large (the corrected resampled t; Nadeau and Bengio 2003)."""


@dataclass(frozen=True)
class Candidate:
    """One that was judged, or was to be: `recipe` is None for TF-IDF, `verdict` for what the clock dropped.

    `share` is that of the texts which the LLM is asked about, `learnt` that of the sample's rows that it learnt from;
    `is_dropped` where the clock ended before a rung that it had reached. `seconds` are those of its training, by the
    forecast and by its `pace`: how many times as long as forecast its trial took.
    """

    name: str
    kind: str
    recipe: Recipe | None
    verdict: Judged | None
    seconds: float
    weights: int
    hybrid: Hybrid = "none"
    share: float = 1.0
    learnt: float = 1.0
    is_dropped: bool = False
    pace: float = 1.0

    def at_pace(self, took: float, forecast: float) -> Candidate:
        """The same, its training reckoned by what its trial took; a short one is a beginning, and tells little."""
        pace = float(np.clip(took / max(forecast, 1e-3), 1.0, _SLOWEST)) if took > _SHORT else self.pace
        return replace(self, pace=pace, seconds=self.seconds / self.pace * pace)

    @property
    def cost(self) -> float:
        """What a text costs, in weights; TF-IDF beside them costs a little."""
        return self.weights * self.share * (1.0 if self.hybrid == "none" else 1.01)

    def as_dict(self) -> dict[str, Any]:
        """Plain data without times, which differ from run to run."""
        return {
            "name": self.name,
            "kind": self.kind,
            "hybrid": self.hybrid,
            "backbone": None if self.recipe is None else self.recipe.backbone,
            "settings": None if self.recipe is None else self.recipe.settings,
            "validation": None if self.verdict is None else self.verdict.as_dict(),
            "weights": self.weights,
            "learnt_share": self.learnt,
            "llm_share": self.share if self.recipe else 0.0,
        }


def loss_of(candidate: Candidate) -> float:
    """The mean loss on the judged rows; infinite where there was no time to judge it."""
    return np.inf if candidate.verdict is None else candidate.verdict.loss


def said(candidate: Candidate) -> Event:
    """What listeners are told of it."""
    values: dict[str, Any] = {"name": candidate.name, "is_judged": candidate.verdict is not None}
    if candidate.verdict is not None:
        values |= {"loss": candidate.verdict.loss, "accuracy": float(candidate.verdict.right_H.mean())}
    return Event("tuning", "candidate", values=values)


def asked_hybrid(config: Config) -> Hybrid | None:
    """The kind of hybrid that the user wants, `none` included; None where that is for the search to find."""
    return config.tuning.hybrid if "hybrid" in config.tuning.model_fields_set else None


def best_of(candidates: Sequence[Candidate]) -> int:
    """The LLM that read the judged rows best, whatever it costs."""
    able = [i for i, each in enumerate(candidates) if each.recipe]
    highest = max(candidates[i].learnt for i in able if candidates[i].verdict is not None)
    return min((i for i in able if candidates[i].learnt == highest), key=lambda i: loss_of(candidates[i]))


def hybrids_of(
    base: Candidate, lexical: Judged, part: Part, sample: Sample, config: Config, *, beside: float, few: bool
) -> list[Candidate]:
    """A judged LLM together with TF-IDF in each way; fitting TF-IDF on all rows takes `beside` seconds.

    Where only a `few` validation rows will be there, the share of TF-IDF is that of the judged rows, and there is
    nothing but an average.
    """
    asked, found = asked_hybrid(config), []
    kinds: Sequence[Hybrid] = KINDS if asked is None else [asked]
    assert base.recipe is not None
    assert base.verdict is not None
    for kind in kinds:
        if kind == "none" or (few and kind != "average"):
            continue
        verdict, mixing = try_hybrid(kind, base.verdict, lexical, part, sample, seed=config.seed)
        share = share_of(mixing, base.verdict.logits_TC, lexical.logits_TC, part.truth[sample.judged])
        own = {"hybrid_share": round(share, 3)} if few and config.tuning.hybrid_share is None else {}
        recipe = base.recipe.with_tuning(hybrid=kind, **own)
        asked_of = 1 - float(mixing.is_sure(lexical.logits_TC).mean())
        found.append(
            replace(
                base,
                name=recipe.name(config),
                recipe=recipe,
                verdict=verdict,
                seconds=base.seconds + beside,
                hybrid=kind,
                share=asked_of,
            )
        )
    return found


def chosen_of(
    candidates: Sequence[Candidate], *, is_whole: bool, left: float, few: bool = False, hybrid: Hybrid | None = None
) -> int:
    """The cheapest of those that are no worse than the best of them; never TF-IDF alone, which all bundles have beside.

    Those that could be trained on all rows for most of their epochs in the seconds that are `left` come first: what
    wins a short tuning and is then cut short loses to what had its time, unless it is better, and far better where
    there is time for few of its epochs.

    Where the sample is not all of the training rows (`is_whole`), a head alone wins only where no tuning was judged, or
    it is far better: more rows help a tuning more, and one that begins at its probe never ends worse than that.

    `hybrid` is the kind that the user wants, where there is one. With a `few` rows of each label, what draws texts
    together by label wins by itself unless another is better by more than two standard errors of rows in folds: so few
    rows tell little, the best of several is often lucky, and it is known to do well with them.
    """
    judged = [(i, each, each.verdict) for i, each in enumerate(candidates) if each.recipe and each.verdict is not None]
    judged = [one for one in judged if one[1].hybrid == hybrid] or judged
    judged = _in_time(judged, left) or judged
    highest = max((one[1].learnt for one in judged if one[1].kind != "head"), default=1.0)
    judged = [one for one in judged if one[1].kind == "head" or one[1].learnt == highest]
    tunings = [one for one in judged if one[1].kind != "head"]
    if tunings and not is_whole:
        least = FAR_BETTER * _least(tunings)
        judged = [one for one in judged if one in tunings or one[2].loss < least]
    together = [one for one in judged if one[1].kind == "contrastive"]
    if few and together:
        first = min(together, key=lambda one: (one[1].hybrid != "none", one[2].loss))
        if not any(verdict.is_better(first[2], errors=_SPEAK_AGAINST) for _, _, verdict in judged):
            judged = [first]
    best = min((verdict for _, _, verdict in judged), key=lambda verdict: verdict.loss)
    equal = [
        (each.cost, verdict.loss, i) for i, each, verdict in judged if verdict is best or verdict.is_no_worse(best)
    ]
    return min(equal)[2]


_Tried = tuple[int, Candidate, Judged]


def _in_time(judged: Sequence[_Tried], left: float) -> list[_Tried]:
    """Those with time for most of their epochs, and tunings that are better than such ones, the less time the more."""
    ready = [one for one in judged if MOST_OF_IT * one[1].seconds <= left]
    short = [one for one in judged if one not in ready and LEAST_OF_IT * one[1].seconds <= left]
    least = _least([one for one in ready if one[1].kind != "head"])

    def is_worth_it(each: Candidate, verdict: Judged) -> bool:
        asked = np.interp(left / each.seconds, (LEAST_OF_IT, MOST_OF_IT), (FAR_BETTER, 1.0))
        return each.kind != "head" and verdict.loss < asked * least

    return [*ready, *(one for one in short if is_worth_it(*one[1:]))]


def _least(judged: Sequence[_Tried]) -> float:
    return min((verdict.loss for _, _, verdict in judged), default=np.inf)


def how_sure(winner: Candidate) -> list[str]:
    """How far the choice is to be trusted, where few rows have judged."""
    assert winner.verdict is not None
    rows = len(winner.verdict.right_H)
    if rows >= FEWEST_ROWS:
        return []
    told = winner.verdict.as_dict()["accuracy"]
    text = f"Only {rows} rows judged the candidates: the winner's accuracy lies between {told['low']:.0%} and "
    return [f"{text}{told['high']:.0%}, and differences of a few points between candidates are luck."]


def why_of(candidates: Sequence[Candidate], chosen: int) -> str:
    """Why the chosen one won, in a sentence or two."""
    winner, lexical = candidates[chosen], candidates[0]
    assert winner.verdict is not None
    assert lexical.verdict is not None
    judged = [each for each in candidates[1:] if each.verdict is not None]
    best = min(judged, key=loss_of)
    assert best.verdict is not None
    if winner.kind == "contrastive" and not winner.verdict.is_no_worse(best.verdict):
        why = "it is known to do well with a few rows of each label, and they do not say otherwise"
    elif best is winner:
        why = "it read the judged rows best"
    elif best.kind == "head" != winner.kind:
        why = "a tuning gains more from all rows than a head alone does, and begins where that ends"
    elif winner.verdict.is_no_worse(best.verdict):
        why = f"it is the cheapest that is no worse than '{best.name}'"
    else:
        why = f"'{best.name}' read the judged rows better, and there is no time to train it"
    text = f"Of {len(judged)} candidates '{winner.name}' was chosen: {why} (log loss {winner.verdict.loss:.4f}"
    return f"{text}, TF-IDF {lexical.verdict.loss:.4f} on as many rows)."
