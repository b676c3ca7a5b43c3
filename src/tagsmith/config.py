"""All settings, one frozen section per stage, named as its folder. The string under a field is its help text."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tagsmith.errors import SettingError


class Section(BaseModel):
    """A frozen group of settings that refuses names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Step = Literal["mojibake", "html", "email", "invisible", "nfc", "nfkc", "spaces"]
"""A step of cleaning; see `tagsmith.data.cleaning`."""


class DataConfig(Section):
    """Stage 1: from a file to splits."""

    text: str | None = None
    """Column that holds the text, or a template of several such as `{title}. {body}`; found when it is not given."""
    text_pair: str | None = None
    """Column that holds the second text of a pair, such as the answer to a question."""
    label: str | list[str] | None = None
    """Column that holds the label, or a list of columns that each say 0 or 1 of one label; found when not given."""
    label_separator: str | None = None
    """What stands between several labels in one cell, such as a comma; `json` for cells such as ["a", "b"]."""
    merge_labels: dict[str, list[str]] = {}
    """Labels that become one: the new name, and the names that it stands for, as `{spam = ["Spam", "SPAM"]}`."""
    drop_labels: list[str] = []
    """Labels that are left out, with their rows where a row has one label."""
    group: str | None = None
    """Column whose equal values must stay in one split (a customer, a document)."""
    clean: tuple[Step, ...] = ()
    """How texts are cleaned first, in training and in serving, as a list or with commas; the order is fixed."""
    quoting: Literal["auto", "standard", "none"] = "auto"
    """How a CSV or TSV quotes: `standard` as RFC 4180, `none` takes quotes as text, `auto` decides and says so."""
    delimiter: str | None = None
    """What separates the cells of a CSV, one character or `tab`; found by looking when it is not given."""
    encoding: str | None = None
    """Encoding of a text file, such as cp1252; found by looking when it is not given."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether the first row of a CSV names the columns."""
    query: str | None = None
    """What a database is asked for, as `SELECT text, label FROM reviews`; a lone table needs none."""
    conflicts: Literal["keep", "majority", "drop"] = "keep"
    """What is done about texts that carry different labels: keep them, relabel them by majority, or drop them."""
    rare_labels: Literal["error", "keep", "drop", "merge"] = "error"
    """What is done about labels with fewer than `data.rare_below` rows."""
    rare_below: int = Field(2, ge=2)
    """Rows of a label below which it counts as rare."""
    rare_name: str = Field("other", min_length=1)
    """The label that rare labels become with `data.rare_labels` = merge."""
    split: Literal["group", "hash", "time", "kfold", "book"] = "group"
    """`group` evens out labels, `hash` is stable in growth, `time` tests the newest rows, `kfold` one fold of them;
    `book` repeats the book's own protocol."""
    split_column: str | None = None
    """Column that says of each row where it belongs: train, validation, calibration or test."""
    time: str | None = None
    """Column of dates or numbers, for `data.split` = time."""
    folds: int = Field(5, ge=2)
    """How many folds `data.split` = kfold makes."""
    fold: int = Field(1, ge=1)
    """Which fold is tested with `data.split` = kfold, from 1."""
    earlier: str | None = None
    """Folder of an earlier bundle: texts it was trained or tested on keep their part (`train --from BUNDLE`)."""
    corrections: str | None = None
    """A file that `tagsmith serve --corrections` kept: its texts join the training rows, and no others."""
    validation_share: float = Field(0.10, gt=0, lt=0.5)
    """Share of the rows for stopping and choosing; half of it becomes calibration rows when that is at least 200."""
    test_share: float = Field(0.20, gt=0, lt=0.9)
    """Share of the rows that is opened once, at the end."""
    balance: Literal["none", "undersample", "oversample", "weights"] = "none"
    """What is done about unequal labels, on the training rows only, after the split."""
    near_duplicates: float = Field(0.8, gt=0.5, le=1.0)
    """Set Jaccard of character 5-grams of the folded text from which on two rows are near duplicates."""

    @field_validator("clean", mode="before")
    @classmethod
    def _listed(cls, steps: Any) -> Any:
        """`none` and `html,spaces` as a command line gives them."""
        if not isinstance(steps, str):
            return steps
        return [] if steps == "none" else [step.strip() for step in steps.split(",") if step.strip()]

    @field_validator("clean")
    @classmethod
    def _in_order(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """Each step once and in the order in which it is applied, so that the same cleaning is the same setting."""
        if {"nfc", "nfkc"} <= set(steps):
            raise ValueError("'nfc' and 'nfkc' are two forms of the same; take one of them")
        return tuple(step for step in get_args(Step) if step in steps)


class ModelConfig(Section):
    """Stage 2: the LLM and what replaces its language-model head."""

    backbone: str = "smollm2-135m-instruct-q4"
    """A name from `tagsmith assets`, a Hugging Face id, or a local folder; `A or B` takes the first that can be had.
    With `tuning.method = "auto"` several may compete: `A,B`, or `any` for those that are to be had everywhere."""
    layers: int | Literal["recommended", "all", "auto"] = "recommended"
    """How many blocks of the backbone are kept, from the bottom; `recommended` is the named backbone's tried depth,
    `auto` finds one by probes and short tunings, on rows that they did not learn from."""
    pooling: Literal["auto", "last", "mean", "first"] = "auto"
    """Which token's state the head sees: the last real one, the mean, or the first; `auto` fits the family."""
    causal_mask: bool = True
    """Whether tokens of a decoder see only what comes before them, as in its pretraining; `false` lets each see the
    whole text, and takes the mean of all with `pooling = "auto"`."""
    head: Literal["linear", "mlp"] = "linear"
    """The classification head: one matrix without bias, or one hidden layer."""
    max_tokens: int = Field(256, ge=4)
    """Tokens that are read at once; how many texts are longer is in the report."""
    long_texts: Literal["head", "tail", "head_tail", "windows", "auto"] = "head"
    """What is read of a longer text: its start, its end, half of each, or all of it in up to 8 windows whose logits are
    averaged; `auto` tries each on the validation rows before tuning."""


class TuningConfig(Section):
    """Stage 3: which weights learn, and how."""

    method: Literal["auto", "head", "last_layers", "lora", "full", "contrastive"] = "last_layers"
    """`head` alone, the `last_layers` with final norm and head, `lora` adapters in all blocks, or the `full` LLM;
    `contrastive` draws texts of one label together, for a few rows of each label, and then fits a head;
    `auto` tries several on several backbones within the budget, and trains the best on all rows."""
    budget: str | None = Field(None, pattern=r"^\d+(\.\d+)?\s*(s|m|h)?$")
    """What `auto` may take from reading to the chosen weights: 90s, 10m, 1h; None is three passes of the largest
    backbone over all texts, at least a minute and at most half an hour."""
    trials: int = Field(0, ge=0)
    """Recipes that Optuna samples where the search of `auto` ends, going on from what was best; within the budget where
    one is given, else on top of it. Needs `tagsmith[optuna]`."""
    most_rows: int | None = Field(None, ge=2)
    """Training rows that the LLM learns from, a sample of each label's; None is all. TF-IDF learns from all of them."""
    blocks: int = Field(2, ge=1)
    """How many of the last blocks learn with `last_layers`."""
    lora_rank: int = Field(16, ge=1)
    """Rank of the adapters with `lora`."""
    lora_alpha: int = Field(32, ge=1)
    """Scale of the adapters: their product is multiplied by alpha / rank."""
    lora_targets: list[str] = ["all"]
    """Linear layers that get an adapter, by their last names such as q_proj, or `all`."""
    lora_dora: bool = False
    """Learn length and direction of each weight apart (DoRA)."""
    lora_bits: Literal[4, 32] = 32
    """Bits of the frozen weights under adapters: 4 is QLoRA, which needs the library bitsandbytes."""
    refit: bool = False
    """Once all is measured, train anew on the validation rows too, for as many epochs as led to the chosen step. What
    is saved knows more, and every score is of the classifier before it."""
    student: str = "tfidf"
    """What `--unlabelled` teaches: `tfidf`, or an encoder named as in `model.backbone`, such as minilm-l6; `auto` is
    minilm-l6 where the winner takes twice its time or more and the validation rows say that it beats TF-IDF."""
    student_layers: int | Literal["recommended", "all"] = "recommended"
    """How many blocks of an encoder the student keeps, from the bottom, as in `model.layers`."""
    hybrid: Literal["none", "average", "stacking", "cascade"] = "none"
    """Whether LLM and TF-IDF answer together: by an `average` of their scores, by a `stacking` that weighs each label's
    apart, or by a `cascade`: TF-IDF where it is sure, both elsewhere. `method = "auto"` tries all of them."""
    hybrid_share: float | None = Field(None, ge=0, le=1)
    """The share of TF-IDF in an `average`, of scores that were calibrated one by one; None is fitted on the validation
    rows."""
    start: Literal["random", "probe"] = "random"
    """What a linear head begins as: small random weights, or a probe fitted on the frozen backbone (LP-FT); with
    `method = "head"` the probe is all there is to fit."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """`focal` weighs rows that are answered well already less; of several labels a row, each by itself."""
    focal_gamma: float = Field(2.0, ge=0)
    """How much less, with `focal`: a row's loss is multiplied by (1 - p)^gamma."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all labels."""
    epochs: int = Field(3, ge=1)
    """Most passes over the training rows; early stopping may end sooner."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak rate of the backbone's weights."""
    head_learning_rate: float | None = Field(1e-3, gt=0)
    """Peak rate of the head; None takes `learning_rate`."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay of matrices (AdamW); norms and biases have none."""
    batch_size: int = Field(16, ge=1)
    """Rows per step, whatever fits into memory at once."""
    tokens_per_batch: int = Field(1024, ge=16)
    """Tokens per micro-batch, an upper bound; only memory and speed depend on it."""
    warmup: float = Field(0.06, ge=0, le=1)
    """Share of the steps in which the rate rises."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the rate does after the warm-up: falls to zero in a line or half a cosine, or stays."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor on the learning rate for each block further down: below 1 the lowest blocks change least."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    patience: int = Field(3, ge=1)
    """Evaluations without a better validation score after which tuning stops."""
    evaluations_per_epoch: int = Field(2, ge=1)
    """How often the validation rows are scored within an epoch."""
    choose_calibrated: bool = False
    """Choose the best step by its validation log loss after one temperature, as answers are calibrated in the end."""
    average: Literal["none", "ema", "best"] = "none"
    """What competes with the best step on the validation rows: nothing, a moving average of the weights over all steps
    (`ema`), or the mean of the weights at the `best` evaluations."""
    average_of: int = Field(3, ge=2)
    """Of how many evaluations, with `best`."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """How much the moving average keeps of itself at each step, with `ema`."""
    soup: int = Field(1, ge=1, le=16)
    """How many tunings from the same start, each with the rows in an order of its own, whose weights are averaged: one
    classifier, as fast as any of them. The mean is kept where it reads the validation rows no worse than the first;
    for `last_layers` and `full`. `auto` makes as many as there is time for, up to three."""
    gradient_checkpointing: bool = False
    """Compute the activations of tuned blocks a second time in the backward pass instead of keeping them: less memory,
    about a third more time, the same gradients."""
    seeds: int = Field(1, ge=1)
    """How many tunings from as many seeds, on the same splits and the same kept states; the first is the one that is
    saved, and the report says mean and spread of all."""
    cache_gib: float = Field(2.0, ge=0)
    """Disk that states of frozen blocks may take in the cache, for later runs on the same texts; 0 keeps none."""
    shard_states: bool = False
    """Of several processes each keeps the states of its own training rows alone, so that disk and memory of one machine
    need not hold them all; steps are divided by whose rows they have, a little less evenly."""
    sharding: Literal["auto", "none", "fully"] = "auto"
    """Whether several processes divide the weights that learn, their gradients and what the optimizer keeps (`fully`,
    FSDP2, for `method = "full"`), or each holds them all; `auto` divides what no worker could hold."""
    checkpoint_s: float | None = Field(None, ge=0)
    """Seconds between checkpoints, which is what a kill may cost; None is 30. Where writing takes over a twentieth of
    them they are more."""
    elastic: bool = False
    """A checkpoint is gone on from by another number of processes or threads too: the same result within rounding,
    where `--resume` otherwise asks for the same, and promises the same bits."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of frozen blocks and of products in tuning; `auto` is bf16 where the device is faster in it, fp16
    (its gradients scaled) on a GPU without bf16, else fp32. Steps of one or two blocks are fp32 on the CPU: faster."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Where tuning and its scores are computed: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` is CUDA where it is there."""
    compile: bool = False
    """Compile the blocks that learn (torch.compile): minutes at the start, faster steps on a GPU afterwards."""

    @property
    def budget_seconds(self) -> float | None:
        """`budget` in seconds."""
        if self.budget is None:
            return None
        number, unit = self.budget.strip().rstrip("smh").strip(), self.budget.strip()[-1]
        return float(number) * {"m": 60.0, "h": 3600.0}.get(unit, 1.0)


class EvaluationConfig(Section):
    """Stage 4: what is measured and what counts as better."""

    metric: Literal["log_loss", "accuracy", "macro_f1", "micro_f1", "balanced_accuracy"] = "log_loss"
    """What decides on the best step, on validation rows, what several labels a row are compared by, and with `rule`
    which label is answered."""
    rule: Literal["auto", "likeliest", "prior", "costs"] = "auto"
    """Which label is answered: the `likeliest`; by its `prior`, the likeliest once its share is held against it, as far
    as suits macro F1 or balanced accuracy best; by `costs`, the one that is expected to cost least. `auto` is `costs`
    where `costs` are given, `prior` where `metric` is macro_f1 or balanced_accuracy, and the likeliest else."""
    margin: float = Field(1.0, gt=0)
    """Points of accuracy (with several labels a row: of F1) within which two models are called practically equal."""
    resamples: int = Field(2000, ge=200)
    """Bootstrap resamples behind an interval that has no closed form."""
    calibrate: bool = True
    """Scale logits so that probabilities mean what they say, by the calibration rows; where there are fewer than 200,
    by the validation rows, as an approximation."""
    scaling: Literal["auto", "temperature", "vector"] = "auto"
    """How logits are scaled: by one temperature, or with a scale and an offset for each label; `auto` takes the latter
    where it is better on rows that it was not fitted on."""
    prior: Literal["em"] | dict[str, float] | None = None
    """Shares of the labels where the classifier will work, as `{ham = 0.9, spam = 0.1}`; `em` estimates them from
    `evaluation.unlabelled`; without, those of the source hold."""
    unlabelled: str | None = None
    """Texts without labels from where the classifier will work, for `evaluation.prior` = em."""
    max_error: float | None = Field(None, gt=0, lt=1)
    """The largest share of wrong answers: of texts that are not sure enough for it nothing is said. It is proven on the
    calibration rows, or refused."""
    coverage: float | None = Field(None, gt=0, le=1)
    """The share of texts that are answered, the surest ones; the report bounds their error."""
    threshold_goal: str | None = None
    """What each label should reach, `precision>=0.95` or, with several labels a text, `recall>=0.9`; proven on the
    calibration rows for all labels together, where they suffice."""
    audit: bool = True
    """Look back at the training rows: labels that may be wrong, what twice as many would bring, and the rows and words
    behind the surest mistakes."""
    slices: list[str] = []
    """Columns by whose values accuracy is told apart, beside label, length, language and time."""
    costs: dict[str, dict[str, float]] = {}
    """What an answer costs, as `{spam = {ham = 1.0}, ham = {spam = 20.0}}`: truth first, then the answer; what is not
    named costs 1 where it is wrong. The report tells the cost of 1,000 texts."""
    robustness_rows: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Test rows that are answered once more with typing errors, other case and look-alike letters, after the scores;
    `auto` takes as many as 2.5 % of the training's computing allow, 0 none."""


class DeploymentConfig(Section):
    """Stage 5: how a bundle answers."""

    tokens_per_batch: int = Field(512, ge=16)
    """Tokens that one core scores at once, an upper bound; answers do not depend on it."""
    batch_tokens: int = Field(1024, ge=16)
    """Tokens that `tagsmith serve` hands to its engine at once, with their padding; more answers more texts a second
    under load, and lets a short text wait longer behind others."""
    max_wait_ms: float = Field(2.0, ge=0, le=1000)
    """How long a text may wait for company while the engine is in demand; to one that rests it goes at once."""
    max_texts: int = Field(32, ge=1, le=4096)
    """Texts of one request to `tagsmith serve`; `/batch` takes any number of lines."""
    max_body_bytes: int = Field(2_000_000, ge=1024)
    """Size of the body of one request; `/batch` takes any number of lines of 1 MB."""
    queue_texts: int = Field(512, ge=1)
    """Texts that wait at most; where there is no room the answer is 429, and when to come again."""
    timeout_s: float = Field(30.0, gt=0)
    """How long a request may take before the answer is 504; a client lowers it by the header x-timeout-s."""
    drain_s: float = Field(30.0, ge=0)
    """How long a server that is told to stop goes on answering what it has accepted."""
    drift_window: int = Field(500, ge=50)
    """How many answered texts are compared at a time with the test rows."""
    drift_alarm_rate: float = Field(0.01, gt=0, lt=1)
    """Share of the windows that raise an alarm although nothing has changed."""
    decimals: int | None = Field(None, ge=1, le=15)
    """Decimals that scores of `tagsmith serve` are rounded to: fewer tell less about the model to who would copy it."""
    rate_per_minute: int | None = Field(None, ge=1)
    """Requests a minute of one key (of anybody, where there are no keys) beyond which the answer is 429."""
    flagged: list[str] = []
    """Labels that count as flagged on `/v1/moderations`, where a text has one label; with several labels a text, those
    found are."""


class Config(Section):
    """Every setting of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    tuning: TuningConfig = TuningConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    seed: int = Field(123, ge=0)
    """The one seed; every random step derives from it."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Config:
        """The defaults with nested `settings` laid over them; SettingError names what is wrong with any of them."""
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise SettingError(_explain(error)) from None

    def with_settings(self, settings: Mapping[str, Any]) -> Config:
        """A copy with nested `settings` laid over it."""
        return Config.of(_merge(self.model_dump(), settings))

    def flat(self) -> dict[str, str | int | float | bool | None]:
        """Each setting by its name, `section.key`; lists and tables as JSON."""
        values = {name: reduce(getattr, name.split("."), self) for name, _, _ in fields()}
        plain = (str, int, float, bool, type(None))
        return {name: value if isinstance(value, plain) else json.dumps(value) for name, value in values.items()}


PRESETS: dict[str, dict[str, Any]] = {
    "auto": {"tuning": {"method": "auto"}},
    "fixed": {},
    "book": {
        "data": {"quoting": "standard", "split": "book"},
        "model": {
            "backbone": "gpt2 or smollm2-135m-instruct-q4",
            "layers": "all",
            "pooling": "last",
            "max_tokens": 120,
        },
        "tuning": {
            "method": "last_layers",
            "blocks": 1,
            "epochs": 5,
            "learning_rate": 5e-5,
            "head_learning_rate": None,
            "weight_decay": 0.1,
            "batch_size": 8,
            "warmup": 0.0,
            "schedule": "constant",
            "patience": 99,
            "evaluations_per_epoch": 1,
        },
    },
}
"""Named starting points. `auto` searches within a budget, `fixed` is one plan that does well on most tables, `book` is
chapter 6 of "Build a Large Language Model (From Scratch)" (Raschka 2024)."""


def settings_of(preset: str) -> dict[str, Any]:
    """The nested settings of a preset; SettingError names the known ones."""
    if preset not in PRESETS:
        raise SettingError(f"Unknown preset '{preset}'. {_known(preset, PRESETS)}")
    return PRESETS[preset]


def load_settings(path: Path) -> dict[str, Any]:
    """The nested settings of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"No settings file at '{path}'. Give --config the path of a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"'{path}' is not valid TOML: {error}.") from None


def parse_setting(assignment: str) -> dict[str, Any]:
    """Nested settings from `section.key=value`; the value is read as TOML, or as a string where it is not TOML."""
    name, equals, text = assignment.partition("=")
    if not equals or not name.strip():
        raise SettingError(f"'{assignment}' is no setting. Write it as section.key=value, as in tuning.epochs=5.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    nested: Any = None if text == "none" and name.strip() in _NULLABLE else value
    for key in reversed(name.strip().split(".")):
        nested = {key: nested}
    return nested


_NULLABLE = {
    *("tuning.head_learning_rate", "tuning.budget", "tuning.most_rows", "data.text", "data.label", "data.group"),
    *("data.split_column", "data.time", "data.earlier", "data.corrections"),
    *("evaluation.prior", "evaluation.unlabelled", "evaluation.max_error"),
    *("evaluation.coverage", "evaluation.threshold_goal"),
    *("data.text_pair", "data.label_separator", "data.delimiter", "data.encoding", "data.query"),
}


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings laid over one another, the last on top."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    return merged


def fields() -> Iterable[tuple[str, str, Any]]:
    """Every setting as `(section.key, help text, default)`, in order."""
    for name, field in Config.model_fields.items():
        section = field.default
        if not isinstance(section, Section):
            yield name, _one_line(field.description), field.default
            continue
        for key, inner in type(section).model_fields.items():
            yield f"{name}.{key}", _one_line(inner.description), inner.default


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def settings_file() -> str:
    """A TOML file of every setting with its default, its meaning above it; what is None stands as a comment."""
    lines, section = ["# Every setting of Tagsmith with its default.", f"seed = {Config().seed}"], ""
    for name, help_text, default in fields():
        here, _, key = name.rpartition(".")
        if not here:
            continue
        if here != section:
            section = here
            lines += ["", f"[{section}]"]
        value = json.dumps(default)
        lines += [f"# {help_text}", f"# {key} =" if default is None else f"{key} = {value}"]
    return "\n".join(lines) + "\n"


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"] if part in _NAMES or "." not in str(part))
        if problem["type"] == "extra_forbidden":
            lines.append(f"Unknown setting '{name}'. {_known(name, [known for known, _, _ in fields()])}")
        else:
            lines.append(f"Setting '{name}' cannot be {problem['input']!r}: {problem['msg']}.")
    return " ".join(dict.fromkeys(lines))


_NAMES = frozenset({"data", "model", "tuning", "evaluation", "deployment", "seed"})


def _known(name: str, names: Iterable[str]) -> str:
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(sorted(known))}."
