"""Keys of report.json that say how logits become answers, what answers cost, and how they bear damage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Keys(BaseModel):
    """A set of keys, and no others."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Measure(Keys):
    """A measured value with its 95 % interval; None where there are too few rows for one."""

    value: float | None
    """The value: a share from 0 to 1, nats, or points where that is said."""
    low: float | None
    """The lower end of the interval."""
    high: float | None
    """The upper end of the interval."""


# ---- From logits to answers


class OutOfFold(Keys):
    """What scaling does to rows that it was not fitted on."""

    before: float
    """The log loss without it, in nats."""
    after: float
    """The log loss with it."""
    folds: int
    """Folds of whole groups."""


class Goal(Keys):
    """A precision or recall that was asked for."""

    goal: str
    """As it was asked for."""
    proven: list[str]
    """Labels that keep it."""
    unproven: list[str]
    """Labels of which it could not be proven."""
    rows_needed: int
    """Answers without an error that a proof needs at least."""
    guarantee: str
    """What holds, in a sentence."""


class Thresholds(Keys):
    """How thresholds were fitted, where a text may have several labels."""

    rows: int
    """Rows that they were fitted on."""
    shared: list[str]
    """Labels with too few rows for one of their own."""


class Prior(Keys):
    """The shares of labels that probabilities were moved to."""

    source: Literal["given", "em"]
    """Who says so: the settings, or an estimate from texts without labels."""
    shares: dict[str, float] | None = None
    """The shares by label; None where an estimate was declined."""
    accepted: bool | None = None
    """Whether both estimates agree."""
    told: str | None = None
    """Why they were taken or not."""
    texts: int | None = None
    """Texts without labels that were read."""
    by_em: dict[str, Measure] | None = None
    """Shares by expectation and maximisation."""
    by_confusion: dict[str, Measure] | None = None
    """Shares by the confusion of held-out rows."""


class Decision(Keys):
    """Which label of a text is answered, by calibrated probabilities that stay what they are."""

    kind: Literal["likeliest", "prior", "costs"]
    """The likeliest; the likeliest once the labels' shares are held against them; the one expected to cost least."""
    text: str
    """The same in a sentence."""
    tau: float | None = None
    """The power of the shares."""
    measure: Literal["macro_f1", "balanced_accuracy"] | None = None
    """What the power was fitted for."""
    rows: int | None = None
    """Held-out rows that it was fitted on."""
    out_of_fold: OutOfFold | None = None
    """The measure without and with it, on rows that it was not fitted on."""


class Calibration(Keys):
    """`softmax((scales * logits + offset) / temperature)`, with a sigmoid where a text may have several labels."""

    temperature: float
    """What logits are divided by."""
    offset: list[float] | None = None
    """What is added to the logit of each label."""
    scales: list[float] | None = None
    """What the logit of each label is multiplied by."""
    folded_into_head: bool | None = None
    """Whether the saved weights hold it already."""
    method: Literal["none", "temperature", "vector"] | None = None
    """How it was fitted; `none` where scaling did not lower the log loss out of fold."""
    rows: int | None = None
    """Rows that it was fitted on."""
    part: Literal["calibration", "validation"] | None = None
    """Whose rows these are."""
    note: str | None = None
    """How far it is to be trusted."""
    out_of_fold: OutOfFold | None = None
    """What it does to rows that it was not fitted on."""
    thresholds: Thresholds | None = None
    """How thresholds were fitted."""
    goal: Goal | None = None
    """The precision or recall that thresholds keep."""
    prior: Prior | None = None
    """The shares of labels that were asked for."""
    decision: Decision | None = None
    """Which label is answered, where a rule was asked for or follows from the measure; absent for the likeliest."""


class CertifiedOn(Keys):
    """The calibration rows behind a bound, one of each group."""

    rows: int
    """How many there are."""
    answered: int
    """How many were answered."""
    wrong: int
    """How many of these wrongly."""
    coverage: float
    """The share that was answered."""
    bound: float
    """What the error of such answers does not exceed."""


class AbstainedOnTest(Keys):
    """What abstaining does on the test rows."""

    answered: int
    """Rows that were answered."""
    coverage: Measure
    """Their share."""
    error: Measure
    """The share of them that is wrong."""


class Abstention(Keys):
    """What is gained where unsure texts get no answer, and what is proven of it."""

    risk_coverage: list[list[float]] = []
    """Pairs of the share that is answered and its error, the surest first."""
    area: float | None = None
    """The mean error over all shares."""
    requested: dict[str, float] | None = None
    """What was asked for: `max_error` or `coverage`."""
    ratio: float | None = None
    """How many times as likely as the next label an answer must be."""
    guarantee: str | None = None
    """What holds, in a sentence."""
    delta: float | None = None
    """The chance that it does not."""
    calibration: CertifiedOn | None = None
    """The rows that prove it."""
    goal: Goal | None = None
    """The precision that answers keep for each label."""
    test: AbstainedOnTest | None = None
    """What it does on the test rows."""


# ---- Costs


class CascadePoint(Keys):
    """A cascade with one threshold, on the test rows."""

    threshold: float | None
    """The surety from which on TF-IDF answers; None where that is always or never."""
    share: float
    """The share that TF-IDF answers."""
    llm_share: float
    """What is left for the LLM."""
    accuracy: float
    """The share of right answers of both."""


class CascadeRows(Keys):
    """Rows that chose a threshold."""

    part: str
    """Their name."""
    rows: int
    """How many."""


class CascadeChosen(Keys):
    """The cascade whose threshold held-out rows chose."""

    threshold: float | None
    """The surety from which on TF-IDF answers; None where that is always or never."""
    share: float
    """The share that TF-IDF answers."""
    llm_share: float
    """What is left for the LLM."""
    accuracy: Measure
    """The share of right answers of both."""
    difference: Measure
    """Points above the LLM alone."""
    on: CascadeRows
    """The rows that chose."""


class Cascade(Keys):
    """TF-IDF where it is sure, the LLM for the rest."""

    points: list[CascadePoint]
    """All thresholds."""
    chosen: CascadeChosen
    """The one that held-out rows chose."""
    text: str
    """The same as a sentence."""


class CostPrior(Keys):
    """The shares of labels that costs were weighed by."""

    shares: list[float]
    """In the order of the labels."""
    left_out: list[int]
    """Ids of labels without test rows."""


class ExpectedCost(BaseModel):
    """The cost of mistakes; beside the keys below, each system's cost of so many texts under its name."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    # pyrefly: ignore[bad-override-mutable-attribute]: how pydantic is told the type of further keys
    __pydantic_extra__: dict[str, Measure]

    per: int
    """Texts that a cost is of."""
    prior: CostPrior
    """The shares of labels."""
    matrix: list[list[float]]
    """Costs by truth (rows) and answer (columns)."""


class LabelAtPrior(Keys):
    """A label at other shares."""

    label: str
    """Its name."""
    precision: Measure
    """The share of its answers that would be right."""


class AtPrior(Keys):
    """Scores where labels have other shares than in the test rows."""

    shares: dict[str, float]
    """Those shares."""
    accuracy: Measure
    """The share of right answers there."""
    per_label: list[LabelAtPrior]
    """Each label."""


class Borne(Keys):
    """Right answers after a damage, and what they lost by it."""

    accuracy: Measure
    """The share of right answers."""
    drop: Measure
    """Points below the same rows undamaged."""


class Damage(Borne):
    """A kind of damage, and how the model and TF-IDF bear it."""

    kind: str
    """`typos`, `upper case`, `lower case` or `look-alikes`."""
    n: int
    """Rows that were damaged."""
    tfidf: Borne | None = None
    """How TF-IDF bears it."""
