"""The weights of the best evaluations, and the average that competes with them.

The mean of several good points of one tuning often lies better than each of them (Izmailov et al. 2018), and so does a
moving average of all steps (Polyak and Juditsky 1992). Neither touches the weights that learn, their optimizer or the
random state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tagsmith.config import TuningConfig


@dataclass(frozen=True)
class Snapshot:
    """Weights by name as they were after a step, and the validation score they had."""

    step: int
    score: float
    weights: Mapping[str, Tensor]


class Best:
    """The best snapshots of the weights that learn, the very best first, and their moving average where it is wanted.

    Before any evaluation the one snapshot is the start, whose score is minus infinity.
    """

    def __init__(self, weights: Sequence[tuple[str, nn.Parameter]], config: TuningConfig) -> None:
        self.weights: dict[str, Tensor] = dict(weights)
        self.config = config
        self.begin()

    def begin(self) -> None:
        """Take the weights of this moment for the start."""
        self.snapshots = [Snapshot(0, -math.inf, self._copies())]
        self.moving = self._copies() if self.config.average == "ema" else None
        self.moves = 0

    @property
    def best(self) -> Snapshot:
        """The snapshot with the best score, the earliest of equals."""
        return self.snapshots[0]

    def move(self) -> None:
        """Let the moving average follow one step; it follows the first ones faster, lest it remember the start.

        The decay of step t is `min(decay, (1 + t) / (10 + t))`, as in TensorFlow's ExponentialMovingAverage.
        """
        if self.moving is None:
            return
        self.moves += 1
        decay = min(self.config.ema_decay, (1 + self.moves) / (10 + self.moves))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.moving.values()), list(self.weights.values()), 1 - decay)

    def score(self, score: float, *, step: int) -> bool:
        """Keep the weights of this moment if they are among the best; whether they are the best."""
        place = next((i for i, each in enumerate(self.snapshots) if score > each.score), None)
        if place is None:
            return False
        self.snapshots.insert(place, Snapshot(step, score, self._copies()))
        del self.snapshots[self.config.average_of if self.config.average == "best" else 1 :]
        return place == 0

    def average(self) -> tuple[dict[str, Tensor], str] | None:
        """The average that competes with the best snapshot, and what it is of; None where none does."""
        if self.moving is not None:
            return self.moving, f"the moving average of {self.moves} steps"
        scored = sorted((each for each in self.snapshots if each.score > -math.inf), key=lambda each: each.step)
        if len(scored) < 2:
            return None
        means = {name: torch.stack([each.weights[name] for each in scored]).mean(dim=0) for name in self.weights}
        return means, f"the mean of the steps {', '.join(str(each.step) for each in scored)}"

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Make these the weights of this moment."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(weights[name])

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs, beside `state`."""
        kept = {f"best.{i}.{name}": w for i, each in enumerate(self.snapshots) for name, w in each.weights.items()}
        return kept | {f"moving.{name}": weight for name, weight in (self.moving or {}).items()}

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"scores": [[each.step, each.score] for each in self.snapshots], "moves": self.moves}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Be as `tensors` and `state` were taken."""
        self.snapshots = [
            Snapshot(step, score, {name: tensors[f"best.{i}.{name}"].to(w.device) for name, w in self.weights.items()})
            for i, (step, score) in enumerate(state["scores"])
        ]
        if self.moving is not None:
            self.moving = {name: tensors[f"moving.{name}"].to(w.device) for name, w in self.weights.items()}
        self.moves = state["moves"]

    def _copies(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.weights.items()}
