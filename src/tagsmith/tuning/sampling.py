"""Optuna goes on where a search ends: recipes that nobody wrote down, sampled by what those before them came to.

The only file that knows Optuna. What it is told of a recipe is its mean loss on the judged rows, and first the loss
after a third of the rows to learn from: a trial ends there where that is worse than the median of those that went on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tagsmith.config import Config, merge
from tagsmith.errors import SettingError
from tagsmith.tuning.recipes import Recipe, gives_depth

if TYPE_CHECKING:
    import optuna

FIRST_LOOK = 1 / 3
"""The share of the sample's rows that a trial learns from first."""

RANDOM, UNPRUNED = 8, 4
"""So many recipes are known before one is sampled by them, and so many first looks before one ends a trial."""


@dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`: whole ones `step` apart where there is a step, or spread by their logarithm."""

    low: float
    high: float
    step: int | None = None
    is_log: bool = False


_RATES: Mapping[str, Between | list[int]] = {
    "learning_rate": Between(2e-5, 1e-3, is_log=True),
    "head_learning_rate": Between(2e-4, 1e-2, is_log=True),
    "epochs": Between(2, 8, step=2),
    "batch_size": [16, 32, 64],
}
_SAMPLED: Mapping[str, Mapping[str, Between | list[int]]] = {
    "last_layers": {**_RATES, "layer_decay": Between(0.7, 1.0)},
    "lora": {**_RATES, "lora_rank": [4, 8, 16, 32, 64]},
    "contrastive": {"learning_rate": _RATES["learning_rate"], "epochs": Between(2, 16, step=2)},
}
"""What is sampled for each method that a search may tune, and from where; depths beside it are the backbone's own."""


@dataclass(frozen=True)
class Space:
    """One backbone: the recipes to go on from, the depths to try, and the blocks that kept states enter.

    `bases` has for each method the recipe that read the judged rows best; what is not sampled is as it is there.
    """

    backbone: str
    bases: Mapping[str, Recipe]
    depths: tuple[int, int]
    starts: Collection[int]


@dataclass(frozen=True)
class Asked:
    """A recipe to be tried, and what Optuna calls it."""

    recipe: Recipe
    trial: optuna.Trial


def require_optuna(config: Config) -> None:
    """SettingError where trials are asked for and the library that makes them is missing."""
    if config.tuning.trials and find_spec("optuna") is None:
        raise SettingError(
            f"tuning.trials is {config.tuning.trials}, which needs the library optuna. Install it with "
            'pip install "tagsmith[optuna]", or leave tuning.trials out: the search itself needs no more.'
        )


class Sampler:
    """Recipes, each sampled by the losses of those before it; the same seed and losses give the same recipes."""

    def __init__(self, spaces: Sequence[Space], config: Config, *, can: Callable[[Recipe], bool]) -> None:
        """Recipes of which `can` says no are not tried; neither is what the user gave changed."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._spaces, self._can = {space.backbone: space for space in spaces}, can
        self._given = set(config.tuning.model_fields_set) | ({"layers"} if gives_depth(config) else set())
        self._seen: list[Any] = []
        self._config, self._made = config, 0
        self._pruned, self._failed = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=RANDOM),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=0, n_min_trials=UNPRUNED),
        )

    def learn(self, recipe: Recipe, loss: float) -> None:
        """Take a recipe of the search for a trial that was made."""
        own, backbone = recipe.applied(self._config), recipe.backbone
        method, values = own.tuning.method, own.tuning.model_dump() | {"layers": own.model.layers}
        params = {"backbone": backbone, f"{backbone} method": method}
        ranges = self._ranges(self._spaces[backbone], method)
        params |= {_name(backbone, method, key): values[key] for key in ranges}
        self._study.enqueue_trial(params)
        trial = self._study.ask()
        self._sampled(trial)
        self._seen.append(recipe.settings)
        self._study.tell(trial, loss)

    def ask(self, count: int) -> list[Asked]:
        """So many recipes that differ from all before them; fewer where there are no more."""
        found: list[Asked] = []
        for _ in range(20 * count):
            if len(found) == count:
                break
            trial = self._study.ask()
            recipe = self._sampled(trial)
            if recipe.settings in self._seen or not self._can(recipe):
                self._study.tell(trial, state=self._failed)
                continue
            self._seen.append(recipe.settings)
            self._made += 1
            found.append(Asked(Recipe(recipe.backbone, recipe.settings, trial=self._made), trial))
        return found

    def goes_on(self, asked: Asked, loss: float) -> bool:
        """Whether a trial is worth all rows, after its first look."""
        asked.trial.report(loss, step=0)
        if asked.trial.should_prune():
            self._study.tell(asked.trial, state=self._pruned)
            return False
        return True

    def tell(self, asked: Asked, loss: float) -> None:
        """What a trial came to."""
        self._study.tell(asked.trial, loss)

    def _ranges(self, space: Space, method: str) -> dict[str, Between | list[int]]:
        """By the name of a setting; none of those that the user gave."""
        low, high = space.depths
        found = dict(_SAMPLED[method])
        if method != "contrastive":
            found["layers"] = Between(low, high, step=1)
        if method == "last_layers":
            found["blocks"] = Between(1, high, step=1, is_log=True)
        return {key: own for key, own in found.items() if key not in self._given}

    def _sampled(self, trial: optuna.Trial) -> Recipe:
        backbone = trial.suggest_categorical("backbone", list(self._spaces))
        space = self._spaces[backbone]
        method = trial.suggest_categorical(f"{backbone} method", list(space.bases))
        base, ranges = space.bases[method], self._ranges(space, method)
        own = base.applied(self._config)
        found = {key: _suggested(trial, _name(backbone, method, key), ranges[key]) for key in ranges}
        layers = found.pop("layers", own.model.layers)
        if "blocks" in found:
            found["blocks"] = _blocks_above_kept(space.starts, layers, found["blocks"])
        elif method == "last_layers":
            layers = max(layers, own.tuning.blocks)
        return Recipe(backbone, merge(base.settings, {"model": {"layers": layers}, "tuning": found}))


def _name(backbone: str, method: str, key: str) -> str:
    return f"{backbone} {method} {key}"


def _suggested(trial: optuna.Trial, name: str, within: Between | list[int]) -> Any:
    """One value; of what is no whole number two digits, which is more than can be told apart."""
    if isinstance(within, list):
        return trial.suggest_categorical(name, within)
    if within.step is not None:
        return trial.suggest_int(name, int(within.low), int(within.high), step=within.step, log=within.is_log)
    return float(f"{trial.suggest_float(name, within.low, within.high, log=within.is_log):.2g}")


def _blocks_above_kept(starts: Collection[int], layers: int, blocks: int) -> int:
    """The number of last blocks nearest to `blocks` for which what enters them is at hand: no pass is made for it."""
    able = {0, *(start for start in starts if start < layers)}
    return layers - min(able, key=lambda start: (abs(layers - blocks - start), start))
