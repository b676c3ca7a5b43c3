"""What `auto` may tune: the candidates, the most promising first, and what each would take.

A recipe is settings laid over the run's own, so that the winner is trained as any other run is, and any of them can be
taken afterwards. Settings that the user gave stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import inf
from typing import Any

from tagsmith.config import Config, merge
from tagsmith.model.classifier import Classifier
from tagsmith.tuning.learner import Part
from tagsmith.tuning.methods import first_tuned_block

Settings = Mapping[str, Mapping[str, Any]]

FEW_ROWS = 3000
"""With fewer training rows a step is of 16 rows, with more of 32: fewer rows deserve more steps."""

EPOCHS = {"last_layers": 4, "full": 4, "lora": 4, "head": 1, "contrastive": 10}
SHORT = 2
"""Epochs of a short tuning where the user says how many a whole one has."""

LAST = 2
"""Blocks of an encoder that learn where there is no time for all of them."""

SMOOTHING = 0.1
"""Label smoothing where blocks of an encoder learn and each text has one label: docs/benchmarks/ideas.md."""

CHOSEN_BY_AUTO = {
    *(("tuning", key) for key in ("method", "budget", "trials", "hybrid")),
    ("model", "backbone"),
}


@dataclass(frozen=True)
class Entrant:
    """A backbone that competes: its classifier of all blocks, the rows as its tokens, and what its work takes here.

    `frozen` are the seconds of a token through a block that is frozen, `step` through one that learns, there and back.
    `took` are those of encoding its texts and timing it here, which the training of a winner begins with once more.
    """

    name: str
    classifier: Classifier
    parts: Mapping[str, Part]
    frozen: float
    step: float
    settings: Settings = field(default_factory=dict)
    """Settings that each of its recipes has, for what its tokenizer asks for."""
    took: float = 0.0

    @property
    def depth(self) -> int:
        """Blocks of the whole backbone."""
        return self.classifier.backbone.depth

    def tokens(self, *parts: str) -> int:
        """Tokens of some parts."""
        return sum(int(self.parts[name].tokens.offsets[-1]) for name in parts if name in self.parts)

    def reference_pass(self) -> float:
        """Seconds of one pass of all texts through all blocks."""
        return self.tokens(*self.parts) * self.depth * self.frozen


@dataclass(frozen=True)
class Recipe:
    """One way to tune one backbone, as settings; `trial` is its number where Optuna sampled it."""

    backbone: str
    settings: Settings
    trial: int = 0

    def applied(self, config: Config) -> Config:
        """The settings of a run that trains it."""
        own = {"model": {"backbone": self.backbone}, "tuning": {"budget": None, "trials": 0}}
        return config.with_settings(merge(self.settings, own))

    def with_tuning(self, **changes: Any) -> Recipe:
        """The same with other settings of `tuning`."""
        return replace(self, settings=merge(self.settings, {"tuning": changes}))

    def short_epochs(self, config: Config) -> int:
        """Epochs of a short tuning: half of its own."""
        return SHORT if "epochs" in config.tuning.model_fields_set else max(1, self.applied(config).tuning.epochs // 2)

    def name(self, config: Config) -> str:
        """What it is called in tables."""
        own = self.applied(config)
        tuning, layers = own.tuning, own.model.layers
        rate = f"rate {tuning.learning_rate:g}{'' if tuning.start == 'probe' else ', random head'}"
        did = {
            "head": "a head alone",
            "contrastive": f"drawn together by label, rate {tuning.learning_rate:g}, then a head",
            "lora": f"adapters of rank {tuning.lora_rank}, {rate}",
            "full": f"everything learns, {rate}",
            "last_layers": f"the last {tuning.blocks} learn, {rate}"
            if tuning.blocks != layers
            else f"all learn, {rate}",
        }[tuning.method]
        with_tfidf = {"none": "", "average": ", averaged with TF-IDF", "stacking": ", stacked with TF-IDF"}
        both = with_tfidf.get(tuning.hybrid, ", behind TF-IDF where that is not sure")
        return f"{self.backbone}, {layers} blocks, {own.model.pooling} pooling: {did}{both}{self._sampled()}"

    def _sampled(self) -> str:
        """What sets a trial apart from others of its method and rate."""
        own, words = self.settings.get("tuning", {}), []
        if not self.trial:
            return ""
        told = {"epochs": "{} epochs", "batch_size": "steps of {}", "layer_decay": "decay {:g}"}
        told |= {"head_learning_rate": "head rate {:g}"}
        words = [text.format(own[key]) for key, text in told.items() if key in own]
        return f" ({', '.join([f'trial {self.trial}', *words])})"

    def trial_seconds(self, entrant: Entrant, config: Config, *, rows: int, epochs: int) -> float:
        """About how long a short tuning on so many rows takes, from states that are at hand."""
        own = self.applied(config)
        if own.tuning.method == "head":
            return 0.0
        epochs = own.tuning.epochs if own.tuning.method == "contrastive" else epochs  # it is not cut short
        share = rows / len(entrant.parts["train"].truth)
        return epochs * share * entrant.tokens("train") * _above(own) * entrant.step

    def answer_seconds(self, entrant: Entrant, config: Config, *, rows: int) -> float:
        """About how long it takes to answer so many rows, from states that are at hand."""
        own = self.applied(config)
        each = entrant.tokens("train") / len(entrant.parts["train"].truth)
        return 0.0 if own.tuning.method == "head" else rows * each * _above(own) * entrant.frozen

    def seconds(self, entrant: Entrant, config: Config, *, rows: int | None = None, epochs: int | None = None) -> float:
        """About how long training it takes, on all training rows or on so many."""
        own = self.applied(config)
        total = len(entrant.parts["train"].truth)
        rows = total if rows is None else min(rows, total)
        train, held = rows / total * entrant.tokens("train"), entrant.tokens("validation", "calibration")
        start = first_tuned_block(own.tuning, int(own.model.layers)) or 0
        epochs = own.tuning.epochs if epochs is None else epochs
        scored = epochs * own.tuning.evaluations_per_epoch * held * _above(own) * 2 * entrant.frozen
        learnt = self.trial_seconds(entrant, config, rows=rows, epochs=epochs)
        return (train + held) * start * entrant.frozen + learnt + scored


def _above(config: Config) -> int:
    """Blocks that learn."""
    layers = int(config.model.layers)
    return layers - (first_tuned_block(config.tuning, layers) or 0)


def pinned(config: Config, *, depth: int) -> Settings:
    """The settings of `model` and `tuning` that the user gave, which no recipe changes; `depth` is of the backbone."""
    given = {
        section: {
            key: getattr(getattr(config, section), key)
            for key in getattr(config, section).model_fields_set
            if (section, key) not in CHOSEN_BY_AUTO
        }
        for section in ("model", "tuning")
    }
    given["model"].pop("layers", None)
    return merge(given, {"model": {"layers": min(depth, _asked(config) or depth)}} if gives_depth(config) else {})


def gives_depth(config: Config) -> bool:
    """Whether the user said how many blocks are kept: a number, all, or what is recommended."""
    return "layers" in config.model.model_fields_set and config.model.layers != "auto"


def _asked(config: Config) -> int | None:
    return config.model.layers if isinstance(config.model.layers, int) else None


def _start(config: Config) -> str:
    return "probe" if config.model.head == "linear" else "random"


def batch_size(rows: int) -> int:
    """Rows of a step, for a table of so many training rows."""
    return 16 if rows < FEW_ROWS else 32


def recipes_of(
    entrant: Entrant,
    config: Config,
    *,
    depths: Sequence[int],
    head: tuple[int, str],
    seconds: float = inf,
) -> list[Recipe]:
    """What is worth trying with a backbone, the most promising first, no two the same after the user's settings.

    Args:
        depths: shortlisted by probes, shallow to deep.
        head: depth and pooling of the best probe.
        seconds: of a winner's training. Where all blocks of an encoder cannot learn in them, its last ones are tried
            first: the others then compute each text once.
    """
    classifier = entrant.classifier
    pooling, rows, (layers, how) = classifier.pooling, len(entrant.parts["train"].truth), head
    common = {"batch_size": batch_size(rows), "start": _start(config), "average": "best", "patience": 4}
    common |= {"choose_calibrated": True}
    middle, deepest = depths[min(1, len(depths) - 1)], depths[-1]

    def tuned(layers: int, **tuning: Any) -> Settings:
        tuning = {**common, "epochs": EPOCHS[tuning["method"]], **tuning}
        return {"model": {"layers": layers, "pooling": pooling}, "tuning": tuning}

    found: list[Settings] = []
    if not classifier.backbone.family.causal and is_few(entrant):
        few = {"average": "none", "start": "probe", "batch_size": 32, "learning_rate": 1e-4}
        found.append(tuned(deepest, method="contrastive", **few))
    if is_few(entrant, most=FEWEST_OF_A_LABEL) and found:
        pass  # so few rows cannot tell many candidates apart: the fewer there are, the less luck decides
    elif not classifier.backbone.family.causal:
        own = {"layer_decay": 0.9, "label_smoothing": SMOOTHING if entrant.parts["train"].truth.ndim == 1 else 0.0}
        whole = [
            tuned(depth, method="last_layers", blocks=depth, learning_rate=rate, start=start, **own)
            for depth, rate, start in (
                (layers if how == pooling else deepest, 3e-4, _start(config)),
                (deepest, 3e-4, "random"),
                (deepest, 1e-4, _start(config)),
            )
        ]
        if Recipe(entrant.name, merge(entrant.settings, whole[0])).seconds(entrant, config) > seconds:
            last = min(LAST, deepest)
            found.append(tuned(deepest, method="last_layers", blocks=last, learning_rate=3e-4, **own))
        found += whole
    else:
        found += [
            tuned(depth, method="last_layers", blocks=min(blocks, depth), learning_rate=rate)
            for depth, blocks, rate in (
                (middle, 4, 1e-4),
                *((depth, 2, 2e-4) for depth in depths),
                (min(16, deepest), min(16, deepest), 1e-4),
            )
        ]
    found.append({"model": {"layers": layers, "pooling": how}, "tuning": {"method": "head"}})
    if find_spec("peft") is not None:
        found.append(tuned(min(16, deepest), method="lora", learning_rate=5e-4))
    given = pinned(config, depth=entrant.depth)
    recipes: list[Recipe] = []
    for settings in found:
        recipe = Recipe(entrant.name, merge(entrant.settings, settings, given))
        if recipe not in recipes and _is_possible(recipe, config):
            recipes.append(recipe)
    return recipes


MOST_OF_A_LABEL = 64
"""Up to so many training rows of a label, on average, texts are also drawn together by label."""

FEWEST_OF_A_LABEL = 16
"""Up to so many, that and a head alone are all that an encoder competes with."""


def is_few(entrant: Entrant, *, most: int = MOST_OF_A_LABEL) -> bool:
    """Whether there are at most so many training rows of a label, on average, each with one label."""
    truth = entrant.parts["train"].truth
    return truth.ndim == 1 and len(truth) <= most * len(entrant.classifier.labels)


def are_few(entrants: Sequence[Entrant]) -> bool:
    """Whether there are so few rows of each label that what is known of such tables counts more than they do."""
    return any(is_few(each, most=FEWEST_OF_A_LABEL) for each in entrants)


def _is_possible(recipe: Recipe, config: Config) -> bool:
    """Whether the user's own settings leave it as many blocks as it wants to tune."""
    own = recipe.applied(config)
    return own.tuning.method != "last_layers" or own.tuning.blocks <= int(own.model.layers)
