"""Texts of one label drawn together and those of others apart, before a head is fitted: for a few rows of a label.

The recipe of SetFit (Tunstall et al. 2022), with every pair of a step instead of drawn ones: a text is read once for
all of its pairs.

Axes: B texts of a step, P pieces of texts, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tagsmith.config import TuningConfig
from tagsmith.data.batching import training_steps
from tagsmith.errors import SettingError
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import device_of, sent
from tagsmith.tuning.learner import Part
from tagsmith.tuning.optimizers import set_rates


def contrast(
    classifier: Classifier,
    part: Part,
    weights: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    config: TuningConfig,
    *,
    dtype: torch.dtype,
    seed: int,
) -> Iterator[tuple[int, int, float]]:
    """Move the backbone so that cosines of pooled states say whether two texts share a label; gives step, steps, loss.

    SettingError where a text may have several labels.
    """
    if part.truth.ndim == 2:
        raise SettingError(
            "tuning.method is 'contrastive', which draws texts of a label together, and a text may have several here. "
            "Take 'last_layers' or another method."
        )
    sizes, device = part.tokens.sizes, device_of(classifier)
    steps = [
        rows
        for epoch in range(config.epochs)
        for rows in training_steps(sizes, rows_per_step=config.batch_size, seed=seed, epoch=epoch)
        if len(rows) > 1
    ]
    classifier.train()
    for number, rows in enumerate(steps):
        set_rates(optimizer, step=number, total=len(steps), config=config)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            pooled_BD = _pooled(classifier, part, rows)
        loss = pair_loss(pooled_BD.float(), sent(torch.from_numpy(part.truth[rows]), device))
        loss.backward()
        torch.nn.utils.clip_grads_with_norm_(
            weights, config.clip, torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        )
        optimizer.step()
        yield number + 1, len(steps), float(loss.detach())


def pair_loss(pooled_BD: Tensor, truth_B: Tensor) -> Tensor:
    """The squared error of cosines, which should be 1 for pairs of a label and 0 for others; each kind counts half."""
    unit_BD = nn.functional.normalize(pooled_BD, dim=1)
    cosines_BB = unit_BD @ unit_BD.T
    same_BB = truth_B[:, None] == truth_B[None, :]
    others_BB = ~torch.eye(len(truth_B), dtype=torch.bool, device=truth_B.device)
    kinds = [(cosines_BB[same_BB & others_BB], 1.0), (cosines_BB[~same_BB], 0.0)]
    found = [((cosines - target) ** 2).mean() for cosines, target in kinds if len(cosines)]
    return torch.stack(found).mean()


def _pooled(classifier: Classifier, part: Part, rows: np.ndarray) -> Tensor:
    """Pooled states of texts `(B, D)`: the mean over the pieces of each."""
    pieces, owners = part.tokens.pieces(rows)
    device = device_of(classifier)
    ids, lengths = (sent(values, device) for values in part.tokens.ragged(pieces))
    pooled_PD = classifier.pooled(classifier.backbone.embed(ids, lengths), lengths, start=0)
    if len(pieces) == len(rows):
        return pooled_PD
    shares_P = torch.from_numpy(1 / np.bincount(owners)[owners]).to(pooled_PD)
    sums_BD = pooled_PD.new_zeros(len(rows), pooled_PD.shape[1])
    return sums_BD.index_add(0, sent(owners, device), pooled_PD * shares_P[:, None])
