"""Which weights learn, and from which block on gradients are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tagsmith.config import TuningConfig
from tagsmith.errors import SettingError
from tagsmith.model.classifier import Classifier


def first_tuned_block(config: TuningConfig, depth: int) -> int | None:
    """The lowest block whose weights learn: `depth` when only the head does, None when the embeddings learn too.

    SettingError when more blocks shall learn than there are.
    """
    if config.method == "full":
        return None
    if config.method == "head":
        return depth
    if config.blocks > depth:
        raise SettingError(
            f"tuning.blocks is {config.blocks}, but the backbone was cut to {depth} blocks. Set it to {depth} or fewer."
        )
    return depth - config.blocks


def trainable(classifier: Classifier, config: TuningConfig) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and weights that learn: `head` alone, the last blocks with final norm and head, or everything."""
    start = first_tuned_block(config, classifier.backbone.depth)
    modules: list[tuple[str, nn.Module]] = [("head.", classifier.head)]
    if start is None:
        modules.append(("backbone.", classifier.backbone))
    elif start < classifier.backbone.depth:
        modules.append(("final_norm.", classifier.backbone.final_norm))
        modules += [(f"blocks.{i}.", classifier.backbone.blocks[i]) for i in range(start, classifier.backbone.depth)]
    for prefix, module in modules:
        for name, weight in module.named_parameters():
            if "pooler" not in name:
                yield prefix + name, weight


def named_weights(classifier: Classifier) -> dict[str, nn.Parameter]:
    """Every weight under the names that `trainable` gives."""
    modules: list[tuple[str, nn.Module]] = [
        ("backbone.", classifier.backbone),
        ("head.", classifier.head),
        ("final_norm.", classifier.backbone.final_norm),
        *((f"blocks.{i}.", block) for i, block in enumerate(classifier.backbone.blocks)),
    ]
    return {prefix + name: weight for prefix, module in modules for name, weight in module.named_parameters()}


@contextmanager
def swapped(classifier: Classifier, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block some weights are replaced, by those from before tuning say."""
    own = named_weights(classifier)
    kept = {name: own[name].detach().clone() for name in weights}
    try:
        _put(own, weights)
        yield
    finally:
        _put(own, kept)


def _put(own: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)
