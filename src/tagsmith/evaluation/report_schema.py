"""Every key of report.json with its type and its meaning: the source of its published schema and of its page.

Readers may rely on what is here: keys are added, never renamed. A real report is checked against it by a test.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tagsmith.evaluation.answers_schema import (
    Abstention,
    AtPrior,
    Calibration,
    Cascade,
    Damage,
    ExpectedCost,
    Keys,
    Measure,
)


class Verdict(Keys):
    """Whether the model beats TF-IDF on the same rows, beyond chance."""

    value: Literal["better", "worse", "practically equal", "undecided"]
    """The verdict."""
    text: str
    """The verdict as a sentence."""
    p_value: float
    """The chance of such a difference between equal models; by groups of near twins."""
    minimum_difference: float | None
    """Points below which no difference on these rows can be significant; None where none can, and for F1."""
    detectable_difference: float | None
    """Points of a difference that would be seen with 80 % power; None where the discordance is not known."""
    difference: Measure
    """The model less TF-IDF, in points."""
    measure: str
    """What is compared: `accuracy`, `micro_f1` or `macro_f1`."""


class Comparison(Verdict):
    """A verdict between two systems, corrected for their number."""

    model: str
    """The system that is compared."""
    baseline: str
    """The one that it is compared with."""


class LabelScores(Keys):
    """How well one label is found."""

    label: str
    """Its name."""
    support: int
    """Test rows that carry it; below 10 there are no intervals."""
    precision: Measure
    """The share of its answers that are right."""
    recall: Measure
    """The share of its rows that are found."""
    f1: Measure
    """The harmonic mean of both."""
    threshold: float | None = None
    """The probability from which on it is answered, where a text may have several labels."""


class Confusion(Keys):
    """Counts of answers by truth."""

    labels: list[str]
    """Names, in the order of the counts."""
    counts: list[list[int]] | list[list[list[int]]]
    """Rows are the truth, columns the answers; with several labels a text one 2 by 2 table for each label."""
    kind: Literal["per_label"] | None = None
    """`per_label` where a text may have several labels."""


class Scores(Keys):
    """What was measured of one system on one set of rows."""

    kind: Literal["multi_label"] | None = None
    """`multi_label` where a text may have several labels."""
    n: int
    """Rows."""
    groups: int
    """Groups of near twins among them: the independent observations."""
    accuracy: Measure
    """The share of right answers; with several labels a text, of sets that are right in whole."""
    balanced_accuracy: Measure | None = None
    """The mean recall of the labels."""
    micro_f1: Measure | None = None
    """F1 over all decisions; with one label a text the accuracy."""
    macro_f1: Measure
    """The mean F1 of the labels."""
    macro_f1_frequent: Measure | None
    """The same of labels with 10 test rows or more."""
    weighted_f1: Measure | None = None
    """The mean F1 of the labels, weighted by their rows."""
    samples_f1: Measure | None = None
    """The mean F1 of the rows, where a text may have several labels."""
    hamming_loss: Measure | None = None
    """The share of wrong decisions among rows times labels."""
    mcc: Measure | None = None
    """The Matthews correlation, -1 to 1."""
    roc_auc: Measure | None = None
    """The area under the ROC curve, the mean of the labels."""
    pr_auc: Measure | None = None
    """The average precision, the mean of the labels."""
    log_loss: Measure
    """The mean negative log probability of the truth, in nats."""
    brier: Measure | None = None
    """The mean squared error of the probabilities."""
    ece: Measure
    """The expected calibration error: 15 bins of equal mass, debiased."""
    ece_calibrated: Measure
    """What a perfectly calibrated model would show on as many rows."""
    per_label: list[LabelScores]
    """Each label."""
    confusion: Confusion
    """What is answered for what."""


class Change(Keys):
    """A step that altered the rows."""

    step: str
    """Its name."""
    rows_before: int
    """Rows that it met."""
    rows_after: int
    """Rows that it left."""
    reason: str
    """What it did and why."""
    rows: list[int]
    """Numbers in the source of rows that it touched, the first of many."""
    concerned: int
    """How many rows it touched."""


class Leak(Keys):
    """Test rows that stand in training."""

    exact: int
    """Word for word."""
    near: int
    """With a near twin, those included."""
    threshold: float
    """The Jaccard similarity from which on rows are near twins."""


class Truncated(Keys):
    """Texts cut at the token limit."""

    rows: int
    """How many."""
    share: float
    """Their share."""


class Data(Keys):
    """What was read, and what was done to it."""

    rows: int
    """Rows that were read."""
    labels: list[str]
    """Names of the labels, in output order."""
    history: list[Change]
    """Steps in order; no row goes missing without one."""
    splits: dict[str, int]
    """Rows of each part: train, validation, calibration, test."""
    leak: Leak | None = None
    """Test rows with a twin in training."""
    truncated: Truncated | None = None
    """Texts that were not read whole."""
    duplicates: dict[str, float] | None = None
    """Repeated rows, near twins, conflicts, and the largest group, over all rows."""
    check: dict[str, Any] | None = None
    """What `tagsmith check` says of the rows: lengths, giveaways, scripts, languages, cleaning, findings."""
    tokens: dict[str, float] | None = None
    """Lengths in tokens: `median`, `p95`, `longest`, `max_tokens`, the share `cut`, tokens `per_word`, `unknown`."""
    padding: dict[str, float] | None = None
    """Shares of what tuning computed that were padding."""


class Suspect(Keys):
    """A training row whose label may be wrong."""

    row: int
    """Its number in the source."""
    sha256: str
    """The first 16 digits of the SHA-256 of its text."""
    given: str
    """Its label, or labels."""
    suggested: str
    """What the other rows speak for."""
    confidence: float
    """How much they do."""


class LabelAudit(Keys):
    """Labels that may be wrong, by confident learning on probes that did not see the row."""

    rows: int
    """Training rows that were audited."""
    of: int
    """Training rows; more than `rows` where a sample was audited."""
    flagged: int
    """Rows whose label the others speak against."""
    share: float
    """Their share."""
    suspects: list[Suspect]
    """The likeliest of them first, 100 at most."""
    text: str
    """The same as a sentence."""
    note: str
    """How it was found, and how to read it."""


class CurvePoint(Keys):
    """Accuracy after learning from so many rows."""

    rows: int
    """Training rows."""
    accuracy: Measure
    """The share of right answers, or of right decisions with several labels a text."""


class LearningCurve(Keys):
    """What a head on frozen states gains from more rows."""

    measure: Literal["accuracy", "decisions"]
    """What is counted."""
    points: list[CurvePoint]
    """Measured on nested subsets."""
    forecast: list[CurvePoint]
    """What twice the rows are expected to give."""
    gain: Measure
    """The points that this is more."""
    text: str
    """The same as a sentence."""
    note: str
    """What the curve is of."""


class NearestRow(Keys):
    """A training row like a test row."""

    row: int
    """Its number in the source."""
    sha256: str
    """The first 16 digits of the SHA-256 of its text."""
    label: str
    """Its label."""
    similarity: float
    """The cosine of the mean frozen states, 0 to 1."""


class Mistake(Keys):
    """A test row that was answered wrongly; its text stands in the page alone."""

    row: int
    """Its number in the source."""
    sha256: str
    """The first 16 digits of the SHA-256 of its text."""
    truth: str
    """Its label, or labels."""
    answer: str
    """What was answered."""
    probability: float
    """How sure the answer was."""
    nearest: list[NearestRow]
    """Training rows like it, the likest first."""


class ShiftFeature(Keys):
    """One thing that is counted of each row."""

    name: str
    """What it is."""
    distance: float
    """The largest share of rows that lies differently at any one point."""
    p_holm: float
    """The chance of as much without a shift, corrected for the number of features."""
    detected: bool
    """Whether that is below `alpha`."""


class Shift(Keys):
    """Whether new rows differ from those that the bundle was tested on."""

    detected: bool
    """Whether any feature does, beyond chance."""
    alpha: float
    """The chance of a detection without a shift, over all features."""
    power: float
    """The chance with which `smallest` would be seen."""
    rows: int
    """New rows that count, one of each group."""
    reference_rows: int
    """Test rows of the training."""
    smallest: float
    """The smallest share of rows whose move would be seen."""
    features: list[ShiftFeature]
    """Each feature, the surest first."""
    text: str
    """The same as a sentence."""


class ReliabilityBin(Keys):
    """Answers of like surety."""

    low: float
    """The least surety."""
    high: float
    """The greatest."""
    confidence: float
    """Their mean."""
    accuracy: float
    """The share that is right."""
    count: int
    """How many."""
    band: list[float]
    """Where the share of a calibrated model would lie, 95 times of 100."""


class Slice(Keys):
    """A part of the test rows."""

    by: str
    """What rows are told apart by."""
    value: str
    """The value of this part."""
    n: int
    """Rows."""
    accuracy: Measure
    """The share of right answers."""
    shrunk: float
    """The same drawn towards that of all rows."""
    p_holm: float
    """Whether it differs from the other rows, corrected for the number of parts."""


class ScoreTable(Keys):
    """What was said of each test row: columns of equal length, at most 5,000 rows, evenly spaced."""

    of: int
    """Test rows."""
    row: list[int]
    """Numbers in the source."""
    group: list[int] | None = None
    """Which rows are near twins."""
    truth: list[int] | list[list[int]]
    """Ids of the labels."""
    answer: list[int] | list[list[int]]
    """Ids of the answers."""
    probabilities: list[list[float]]
    """Probabilities in the order of the labels, to four places."""


class ReportKeys(Keys):
    """All keys of report.json; texts of rows stand in the page alone, times and dates in run.json."""

    tagsmith: str
    """The release that wrote it."""
    verdict: Verdict
    """The served model against TF-IDF."""
    notes: list[str]
    """What a reader must know."""
    test: Scores
    """The saved bundle, reloaded, on the test rows."""
    baselines: dict[str, Scores]
    """`majority`, `tfidf` and, where there is one, `probe` on the same rows."""
    before_tuning: Scores | None
    """The model before the first step."""
    test_clean: Scores | None
    """Test rows without a twin in training."""
    test_leaked: Scores | None
    """Test rows with one."""
    data: Data
    """The rows."""
    model: dict[str, Any]
    """Backbone, SHA-256, family, layers, pooling, head, method, parameters, steps; `depth` where it was searched; of a
    student `winner`, the same of its teacher, with `loss`: the verdict on the student's accuracy less its teacher's."""
    calibration: Calibration
    """How logits become probabilities, the rows that this was fitted on, and what it did out of fold."""
    comparisons: list[Comparison] = Field([])
    """All comparisons with TF-IDF."""
    reliability: list[ReliabilityBin] = Field([])
    """The bins of the reliability diagram."""
    abstention: Abstention = Abstention()
    """`risk_coverage` (pairs of coverage and error), its `area`, and the guarantee where one was asked for."""
    cascade: Cascade | None = None
    """TF-IDF where it is sure, the LLM for the rest: `points`, the `chosen` threshold, `text`."""
    slices: list[Slice] = Field([])
    """Accuracy of parts of the rows."""
    expected_cost: ExpectedCost | None = None
    """The cost of 1,000 texts by system, where costs were given."""
    at_prior: AtPrior | None = None
    """Scores at the shares of labels where the classifier will work, where those were given."""
    robustness: list[Damage] = Field([])
    """Accuracy and its drop after each kind of damage."""
    score_table: ScoreTable | None = None
    """What was said of each test row."""
    mistakes: list[Mistake] = Field([])
    """The surest wrong answers."""
    label_audit: LabelAudit | None = None
    """Training labels that may be wrong."""
    learning_curve: LearningCurve | None = None
    """What more labels would bring."""
    shift: Shift | None = None
    """Of `tagsmith evaluate`: whether the rows differ from those tested on."""
    candidates: list[dict[str, Any]] = Field([])
    """What else was tried, by the validation rows; never a test score."""
    curves: list[dict[str, float | None]] = Field([])
    """Each evaluation while tuning: epoch, step, losses and accuracies."""
    seeds: list[dict[str, Any]] = Field([])
    """What each seed's tuning scores."""
    spread: dict[str, dict[str, float]] = Field({})
    """Mean and standard deviation over the seeds."""
    forecast: dict[str, Any] | None = None
    """What the run was forecast to compute."""
    settings: dict[str, Any] = Field({})
    """All settings."""
    reproduce: str = ""
    """The command that repeats it."""
    book: dict[str, Any] | None = None
    """With the preset `book`: the tables of the book's chapter."""


def schema() -> dict[str, Any]:
    """The JSON Schema of report.json (draft 2020-12)."""
    told = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "report.json of a Tagsmith bundle"}
    return told | {key: value for key, value in ReportKeys.model_json_schema().items() if key != "title"}
