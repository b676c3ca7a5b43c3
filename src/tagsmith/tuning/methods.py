"""Which weights learn, from which block on gradients are needed, and copies of a classifier that share the others."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tagsmith.config import TuningConfig
from tagsmith.errors import SettingError
from tagsmith.model.adapters import adapted_layers, adapter_weights
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import arithmetic


def first_tuned_block(config: TuningConfig, depth: int) -> int | None:
    """The lowest block whose weights learn: `depth` when only the head does, None when the embeddings learn too.

    Adapters sit on all blocks.

    SettingError when more blocks shall learn than there are.
    """
    if config.method in ("full", "contrastive"):
        return None
    if config.method == "head":
        return depth
    if config.method == "lora":
        return 0
    if config.blocks > depth:
        raise SettingError(
            f"tuning.blocks is {config.blocks}, but the backbone was cut to {depth} blocks. Set it to {depth} or fewer."
        )
    return depth - config.blocks


FEW_BLOCKS = 2


def step_arithmetic(config: TuningConfig, *, depth: int, device: torch.device) -> torch.dtype:
    """The dtype of products in a step; frozen blocks have theirs from `arithmetic`.

    With `auto` the CPU takes fp32 where one block learns, or two: there casting the weights anew in each step, and
    making kernels for lengths that change, takes longer than bf16 saves. On two cores with AMX and 8 SMS texts a step,
    one block on its last row took 9 ms against 22, two blocks 38 against 76, four 95 against 118; with 64 texts a step
    two blocks took 210 ms against 327. From some eight on bf16 is the faster.
    """
    start = first_tuned_block(config, depth)
    few = start is not None and depth - start <= FEW_BLOCKS
    if config.precision == "auto" and device.type == "cpu" and few:
        return torch.float32
    return arithmetic(config.precision, device)


def trainable(classifier: Classifier, config: TuningConfig) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and weights that learn: `head` alone, the last blocks with final norm and head, adapters, or everything.

    Before adapters are attached, and after they are merged, the weights that they change stand for them.
    """
    if config.method == "lora":
        yield from ((f"head.{name}", weight) for name, weight in classifier.head.named_parameters())
        yield from ((f"backbone.trunk.{name}", weight) for name, weight in _adapted(classifier, config))
        return
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


def _adapted(classifier: Classifier, config: TuningConfig) -> Iterator[tuple[str, nn.Parameter]]:
    attached = adapter_weights(classifier.backbone)
    if attached:
        yield from attached.items()
        return
    for name, layer in adapted_layers(classifier.backbone, config.lora_targets).items():
        yield f"{name}.weight", layer.get_parameter("weight")


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
    kept = copies((name, own[name]) for name in weights)
    try:
        put(classifier, weights)
        yield
    finally:
        put(classifier, kept)


def cut_copy(classifier: Classifier, depth: int, *, start: int | None) -> Classifier:
    """A classifier of the lowest `depth` blocks; weights below block `start` are shared (None: none), others copied."""
    shared: dict[int, Any] = {id(classifier.encoder): classifier.encoder}
    if start is not None:
        learning = [*classifier.backbone.blocks[start:depth], classifier.backbone.final_norm, classifier.head]
        own = {id(weight) for module in learning for weight in module.parameters()}
        shared |= {id(weight): weight for weight in classifier.parameters() if id(weight) not in own}
    cut = copy.deepcopy(classifier, memo=shared)
    cut.backbone.cut(depth)
    return cut


def copies(weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """What named weights are at this moment."""
    return {name: weight.detach().clone() for name, weight in weights}


def put(classifier: Classifier, weights: Mapping[str, Tensor]) -> None:
    """Set weights to what `copies` gave of those that `trainable` or `named_weights` names."""
    own = named_weights(classifier)
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)
