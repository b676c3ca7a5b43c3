"""Answers asked for beside the scores: of damaged texts, and of shortened ones that tell which words matter.

They need further passes of the LLM, so they are bounded by a small share of what its training computes, counted in
tokens before the start: the same run asks the same. Where bf16 was let in, it answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tagsmith.deployment.bundle import Bundle
    from tagsmith.deployment.engine import Engine
    from tagsmith.tuning.plan import Plan

DAMAGED, SHORTENED = 0.025, 0.015
"""Shares of a training's work."""
_WORK = 2.5e11
"""Weights times tokens where nothing was trained: some seconds on two cores, whatever the model."""
_USUAL_WEIGHTS = 10**8
"""Taken for engines that do not tell theirs."""
_BACKWARD = 3
"""What a step costs, forward and back, in passes."""
_FEWEST_ROWS, _MOST_ROWS, _MEASURED, _GROWTH = 8, 400, 256, 1.15
_QUESTIONS = (12, 8)
"""Fewer shortened texts for each, where not all can be asked about at length."""


@dataclass(frozen=True)
class Spare:
    """Who answers further texts, and how many tokens it may read of `damaged` and of `shortened` ones."""

    engine: Engine
    damaged: int
    shortened: int

    @classmethod
    def of(cls, bundle: Bundle[Any], plan: Plan | None) -> Spare:
        """In proportion to the plan of the training; None where there was none, as when other rows are measured."""
        if plan is None:
            tokens = round(tokens_of(bundle))
            return cls(quick_engine(bundle), tokens, tokens)
        tokens = trained_tokens(plan)
        return cls(quick_engine(bundle), round(DAMAGED * tokens), round(SHORTENED * tokens))

    def rows(self, texts: Sequence[str], *, kinds: int) -> int:
        """How many rows may be damaged in so many ways, judged by the length of the first `texts`."""
        mean = max(float(self.sizes(texts[:_MEASURED]).mean()), 1.0)
        # Damage makes tokens: capitals and look-alikes are rare in what tokenizers learnt from.
        return int(np.clip(self.damaged / (mean * (1 + kinds * _GROWTH)), _FEWEST_ROWS, _MOST_ROWS))

    def questions(self, texts: Sequence[str], *, most: int) -> tuple[int, int]:
        """Of how many texts, the first ones, words may be left out, and how often of each: at most `most` times."""
        sizes_N = self.sizes(texts)
        for each in (most, *(fewer for fewer in _QUESTIONS if fewer < most)):
            count = int(np.searchsorted(np.cumsum(sizes_N * (1 + each)), self.shortened, side="right"))
            if count == len(texts):
                return count, each
        return max(count, 1), each

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities `(N, C)`, NaN for an empty text."""
        from tagsmith.deployment.engine import probabilities

        return probabilities(self.engine, texts)

    def sizes(self, texts: Sequence[str]) -> np.ndarray:
        """How many tokens are read of each text `(N,)`."""
        return self.engine.encode(texts).sizes


def trained_tokens(plan: Plan) -> float:
    """What a training computes, in tokens that pass all blocks once: frozen blocks once, tuned ones in each epoch."""
    counts: Mapping[str, Any] = plan.as_dict()["tokens"]
    above = plan.blocks_above / plan.depth
    return counts["frozen"] * (1 - above) + _BACKWARD * counts["steps"] * above


def tokens_of(bundle: Bundle[Any]) -> float:
    """So many tokens that they take some seconds."""
    from tagsmith.deployment.torch_engine import TorchEngine

    engine = bundle.engine
    if not isinstance(engine, TorchEngine):
        return _WORK / _USUAL_WEIGHTS
    return _WORK / sum(weight.numel() for block in engine.classifier.backbone.blocks for weight in block.parameters())


def quick_engine(bundle: Bundle[Any]) -> Engine:
    """The bundle's own engine, or the same classifier in bf16 where its gate was passed and bf16 is faster here."""
    import torch

    from tagsmith.deployment.torch_engine import TorchEngine
    from tagsmith.model.device import bf16_is_faster, device_of

    engine = bundle.engine
    if not isinstance(engine, TorchEngine):
        return engine
    gate = (bundle.settings.get("engines") or {}).get("torch-bf16") or {}
    on_cpu = device_of(engine.classifier).type == "cpu"
    if engine.name == "torch-bf16" or not gate.get("passed") or not on_cpu or not bf16_is_faster():
        return engine
    return TorchEngine(
        engine.classifier,
        tokens_per_batch=engine.tokens_per_batch,
        cleaning=engine.cleaning,
        dtype=torch.bfloat16,
        mixer=engine.mixer,
    )
