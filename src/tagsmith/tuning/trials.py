"""How candidates are judged: all on the same rows, none of which it learnt from.

Candidates learn from a sample of the training rows and are judged on a thousand others or more: the validation and
calibration rows, and training rows where those are fewer. In a small table all rows but the test's are cut into folds
that keep groups whole, and each row is judged by what learnt from the other folds; fewer than a thousand rows are cut
in up to three ways, as there is time for (STATISTICS.md 17).

Axes: N rows of the sample, H of them judged, T times that a row of them is judged, all together, C labels, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tagsmith.config import Config
from tagsmith.data.encoding import Tokens
from tagsmith.events import Listener, silent
from tagsmith.labels import Labels
from tagsmith.model.activations import States
from tagsmith.model.classifier import Classifier, Scorer, finish_states, pool_states
from tagsmith.model.hybrid import Hybrid, Mixing
from tagsmith.model.lexical import LETTERS_FOR_N_GRAMS
from tagsmith.model.lexical_fitting import fit_lexical, fit_lexical_sets
from tagsmith.tuning.learner import Part
from tagsmith.tuning.loop import tune
from tagsmith.tuning.losses import right_rows, row_losses
from tagsmith.tuning.methods import cut_copy, first_tuned_block
from tagsmith.tuning.mixing import cross_mixed, fit_mixing
from tagsmith.tuning.probes import fit_probe
from tagsmith.tuning.recipes import Recipe

ENOUGH, FOLDS, MOST_REPEATS = 1000, 3, 3
HELD_OUT = ("validation", "calibration")
STRENGTH = 10.0

ANSWERED, WORDS_ALONE = 1 / 3, 0.25
"""Of what TF-IDF takes to fit a text: answering one, and fitting it by words without n-grams of letters (reviews of
1,300 letters: 3.5 ms, 1.2 ms and 0.8 ms)."""


@dataclass(frozen=True)
class Sample:
    """The rows that candidates are judged by: which of each part, in the order of `parts`, and the folds.

    `folds` has for each round the rows to learn from and the rows to judge, as places in the sample: more than three
    rounds where rows were cut into folds several times.
    """

    rows: Mapping[str, np.ndarray]
    folds: tuple[tuple[np.ndarray, np.ndarray], ...]

    @property
    def judged(self) -> np.ndarray:
        """The judged rows `(T,)`, in the order of all rounds: each as often as it is judged."""
        return np.concatenate([held for _, held in self.folds])

    @property
    def count(self) -> int:
        """How many rows are judged, each counted once."""
        return len(np.unique(self.judged))

    @property
    def repeats(self) -> int:
        """How often each of them is judged."""
        return len(self.judged) // self.count

    def repeated(self, times: int, parts: Mapping[str, Part], *, seed: int) -> Sample:
        """The same rows cut into folds so many times, where folds judge them and they are fewer than a thousand."""
        if len(self.folds) == 1 or self.count >= ENOUGH:
            return self
        cuts = (_cut(self.rows, parts, seed=seed, repeat=i) for i in range(times))
        return Sample(self.rows, tuple(fold for cut in cuts for fold in cut))

    @property
    def fitted(self) -> int:
        """From how many rows a candidate learns, over all rounds."""
        return sum(len(fit) for fit, _ in self.folds)

    @property
    def each(self) -> int:
        """From how many rows a candidate learns in a round."""
        return self.fitted // len(self.folds)

    def of_share(self, share: float, *, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The folds with fewer rows to learn from, drawn by chance; the same ones for all who ask."""
        random = np.random.default_rng([seed, 9])
        return [
            (np.sort(random.permutation(fit)[: max(1, round(share * len(fit)))]) if share < 1 else fit, held)
            for fit, held in self.folds
        ]

    def of(self, parts: Mapping[str, Part]) -> Part:
        """The rows of the sample, from the parts of one backbone."""
        chosen = [(parts[name], rows) for name, rows in self.rows.items()]
        groups = [part.groups[rows] for part, rows in chosen if part.groups is not None]
        return Part(
            Tokens.joined([part.tokens.of_texts(rows) for part, rows in chosen]),
            np.concatenate([part.truth[rows] for part, rows in chosen]),
            np.concatenate(groups) if groups else None,
        )

    def texts(self, texts: Mapping[str, Sequence[str]]) -> list[str]:
        """The same rows as texts."""
        return [texts[name][row] for name, rows in self.rows.items() for row in rows]


def draw_sample(parts: Mapping[str, Part], *, rows: int, seed: int, enough: int = ENOUGH) -> Sample:
    """At most so many training rows to learn from, and at least `enough` others to judge, where there are as many.

    Held-out rows judge first, training rows that are not learnt from fill up; groups stay on one side. Where that would
    leave few to learn from, all rows are judged in folds.
    """
    random = np.random.default_rng([seed, 5])
    train, held = parts["train"], {name: len(parts[name].truth) for name in HELD_OUT if name in parts}
    lacking = max(0, enough - sum(held.values()))
    order = _by_group(train, random)
    judging = {name: _some(count, enough, random) for name, count in held.items()}
    if len(order) - lacking >= ENOUGH:
        extra, groups = np.sort(order[:lacking]), _groups(train)
        apart = order[~np.isin(groups[order], groups[extra])]  # the last of the judged groups may have more rows
        fit = np.sort(apart[:rows])
        chosen = {"train": np.concatenate([fit, extra]), **judging}
        count = sum(len(own) for own in chosen.values())
        return Sample(chosen, ((np.arange(len(fit)), np.arange(len(fit), count)),))
    chosen = {"train": np.sort(order[:rows]), **judging}
    return Sample(chosen, _cut(chosen, parts, seed=seed))


def _cut(
    chosen: Mapping[str, np.ndarray], parts: Mapping[str, Part], *, seed: int, repeat: int = 0
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    groups = np.concatenate([_groups(parts[name])[own] for name, own in chosen.items()])
    truth = np.concatenate([parts[name].truth[own] for name, own in chosen.items()])
    return folds_of(groups, seed=seed, truth=truth, repeat=repeat)


def _by_group(part: Part, random: np.random.Generator) -> np.ndarray:
    """All rows of a part, in random order, those of a group side by side."""
    known, group_N = np.unique(_groups(part), return_inverse=True)
    return np.argsort(random.permutation(len(known))[group_N], kind="stable")


def _groups(part: Part) -> np.ndarray:
    return np.arange(len(part.truth)) if part.groups is None else part.groups


def _some(count: int, most: int, random: np.random.Generator) -> np.ndarray:
    return np.sort(random.choice(count, size=most, replace=False)) if count > most else np.arange(count)


def folds_of(
    groups: np.ndarray, *, seed: int, truth: np.ndarray | None = None, repeat: int = 0
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Three rounds in which each row is judged once; rows of a group are never on both sides.

    Groups are dealt out label by label where `truth` is given: a round that lacks rows of a label would judge what it
    could not learn. Each `repeat` cuts them in another way.
    """
    known, first_G, group_N = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng([seed, 6, repeat] if repeat else [seed, 6]).permutation(len(known))
    if truth is not None:
        label_G = (truth.argmax(axis=1) if truth.ndim == 2 else truth)[first_G]
        order = order[np.argsort(label_G[order], kind="stable")]
    fold_G = np.empty(len(known), dtype=np.int64)
    fold_G[order] = np.arange(len(known)) % FOLDS
    fold_N = fold_G[group_N]
    return tuple((np.flatnonzero(fold_N != i), np.flatnonzero(fold_N == i)) for i in range(FOLDS))


@dataclass(frozen=True)
class Judged:
    """What the judged rows say of a candidate.

    Of each row its mean loss and the share of times that it is answered right `(H,)`, and the logits of each time
    `(T, C)`.
    """

    loss_H: np.ndarray
    right_H: np.ndarray
    logits_TC: np.ndarray

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.loss_H.mean())

    def is_no_worse(self, other: Judged) -> bool:
        """Whether it loses at most half a standard error of the paired losses, and 0.3 points (STATISTICS.md 17)."""
        lost_H = self.loss_H - other.loss_H
        error = lost_H.std(ddof=1) / np.sqrt(len(lost_H)) if len(lost_H) > 1 else 0.0
        return bool(lost_H.mean() <= 0.5 * error and 100 * (other.right_H.mean() - self.right_H.mean()) <= 0.3)

    def is_better(self, other: Judged, *, errors: float = 1.0) -> bool:
        """Whether its paired losses are lower by more than so many of their standard errors."""
        won_H = other.loss_H - self.loss_H
        return bool(len(won_H) > 1 and won_H.mean() > errors * won_H.std(ddof=1) / np.sqrt(len(won_H)))

    def as_dict(self) -> dict[str, Any]:
        """`n`, and loss and accuracy with 95 % intervals from the spread of rows."""

        def interval(values_H: np.ndarray) -> dict[str, float]:
            mean = float(values_H.mean())
            error = 1.96 * float(values_H.std(ddof=1)) / np.sqrt(len(values_H)) if len(values_H) > 1 else 0.0
            return {"value": mean, "low": max(0.0, mean - error), "high": mean + error}

        accuracy = interval(self.right_H.astype(np.float64))
        accuracy["high"] = min(1.0, accuracy["high"])
        return {"n": len(self.loss_H), "loss": interval(self.loss_H), "accuracy": accuracy}


def judged(logits_TC: np.ndarray, truth: np.ndarray, rows_T: np.ndarray) -> Judged:
    """The losses of logits against the truth of all rows, `rows_T` of which are judged, some of them several times.

    They are read at a temperature that the other half of the rows asks for: what is trained on all rows is calibrated
    at the end, and a candidate that is right and too sure must not lose for it.
    """
    known, row_T = np.unique(rows_T, return_inverse=True)
    half_T = (np.random.default_rng(0).permutation(len(known)) % 2)[row_T]  # by chance: labels may take turns
    raw, answers = torch.from_numpy(logits_TC).double(), torch.from_numpy(truth[rows_T])
    logits = raw.clone()
    for own in (half_T == 0, half_T == 1):
        logits[own] /= _temperature(raw[~own], answers[~own])

    def by_row(values: torch.Tensor) -> np.ndarray:
        return np.bincount(row_T, weights=values.double().numpy(), minlength=len(known)) / np.bincount(row_T)

    return Judged(by_row(row_losses(logits, answers)), by_row(right_rows(logits, answers)), logits.numpy())


def _temperature(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """The temperature of the least mean loss."""
    from scipy.optimize import minimize_scalar

    if not len(truth):
        return 1.0
    found = minimize_scalar(
        lambda power: float(row_losses(logits / np.exp(power), truth).mean()), bounds=(-5.0, 5.0), method="bounded"
    )
    return float(np.exp(found.x))


def try_hybrid(
    kind: Hybrid, llm: Judged, lexical: Judged, part: Part, sample: Sample, *, seed: int
) -> tuple[Judged, Mixing]:
    """LLM and TF-IDF together, each judged row by a mixing that others have fitted, and the mixing of all of them."""
    groups = _groups(part)[sample.judged]
    both = (llm.logits_TC, lexical.logits_TC, part.truth[sample.judged])
    verdict = judged(cross_mixed(kind, *both, groups, seed=seed), part.truth, sample.judged)
    return verdict, fit_mixing(kind, *both)


def try_probe(classifier: Classifier, part: Part, states: States, sample: Sample, *, layers: int, how: str) -> Judged:
    """A linear probe on what leaves block `layers`, pooled as `how` says."""
    cut = cut_copy(classifier, layers, start=layers)
    cut.pooling = how
    pooled_ND = torch.from_numpy(pool_states(cut, states, start=layers))
    truth, found = torch.from_numpy(part.truth), []
    for fit, held in sample.folds:
        probe = fit_probe(pooled_ND[fit], truth[fit], classes=len(classifier.labels), strength=STRENGTH, bias=True)
        found.append(probe.logits(pooled_ND[held]).numpy())
    return judged(np.concatenate(found), part.truth, sample.judged)


def try_recipe(
    recipe: Recipe,
    classifier: Classifier,
    part: Part,
    states: Mapping[int, States],
    sample: Sample,
    config: Config,
    *,
    epochs: int,
    share: float = 1.0,
    listen: Listener = silent,
) -> Judged:
    """A short tuning: so many epochs from where the recipe starts, all of them made, whatever the rows say meanwhile.

    With a `share` it learns from fewer rows, the same ones in each recipe, and is judged on all as ever.
    """
    short: dict[str, Any] = {
        "epochs": epochs,
        "evaluations_per_epoch": 1,
        "patience": 99,
        "average": "none",
        "cache_gib": 0,
        "seeds": 1,
        "soup": 1,
    }
    if recipe.applied(config).tuning.method == "contrastive":
        del short["epochs"]
    own = recipe.with_tuning(**short).applied(config)
    layers, found = int(own.model.layers), []
    start = first_tuned_block(own.tuning, layers)
    for fit, held in sample.of_share(share, seed=config.seed):
        candidate = cut_copy(classifier, layers, start=start)
        candidate.pooling = own.model.pooling
        parts = {"train": _rows(part, fit), "validation": _rows(part, held[:8])}
        kept = (
            {}
            if not start
            else {name: states[start].of_texts(rows) for name, rows in zip(parts, (fit, held[:8]), strict=True)}
        )
        tune(candidate, parts, own, metric=later_is_better(), states=kept, listen=listen)
        if start:
            found.append(finish_states(candidate, states[start].of_texts(held), start=start))
        else:
            found.append(Scorer(candidate).logits(part.tokens.of_texts(held)))
    return judged(np.concatenate(found), part.truth, sample.judged)


def later_is_better() -> Any:
    """A metric that keeps the last weights: the rows that judge a candidate must not choose its best step."""
    evaluations = iter(range(1_000_000))
    return lambda truth, probs: float(next(evaluations))


def _rows(part: Part, rows: np.ndarray) -> Part:
    return Part(part.tokens.of_texts(rows), part.truth[rows], None if part.groups is None else part.groups[rows])


def try_lexical(texts: Sequence[str], part: Part, sample: Sample, *, labels: Labels, seed: int) -> Judged:
    """TF-IDF and a linear model on the same rows."""
    found = []
    groups = _groups(part)
    for fit, held in sample.folds:
        known = [texts[i] for i in fit]
        if labels.multi_label:
            lexical = fit_lexical_sets(known, part.truth[fit], groups[fit], seed=seed)
        else:
            lexical = fit_lexical(known, part.truth[fit], groups[fit], classes=len(labels), seed=seed)
        probs_HC = np.clip(lexical.probabilities([texts[i] for i in held]), 1e-12, 1 - 1e-12)
        found.append(np.log(probs_HC) - np.log1p(-probs_HC) if labels.multi_label else np.log(probs_HC))
    return judged(np.concatenate(found), part.truth, sample.judged)


def lexical_seconds(took: float, sample: Sample, texts: Sequence[str]) -> float:
    """About how long TF-IDF takes to fit all `texts`, where a sample of them took so many seconds.

    In the sample it answers as well; of many letters it counts words alone, which the sample's few do not show.
    """
    words_alone = sum(map(len, texts)) > LETTERS_FOR_N_GRAMS
    read = sample.fitted + ANSWERED * len(sample.judged)
    return took / read * len(texts) * (WORDS_ALONE if words_alone else 1.0)
