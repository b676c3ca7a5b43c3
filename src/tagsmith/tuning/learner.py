"""One step: gradients of a fixed number of rows, in micro-batches that fit into memory, and one move of the weights.

Axes: B texts of a micro-batch, P their pieces (more than one where a long text is read in windows), C labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tagsmith.config import TuningConfig
from tagsmith.data.batching import packed
from tagsmith.data.encoding import Tokens
from tagsmith.errors import ResourceError, is_out_of_memory
from tagsmith.model.activations import States
from tagsmith.model.classifier import Classifier
from tagsmith.model.device import device_of, sent
from tagsmith.tuning.losses import right_rows, summed_loss
from tagsmith.tuning.methods import step_arithmetic
from tagsmith.tuning.parallel import ranks_here
from tagsmith.tuning.sharding import Shards, whole


@dataclass(frozen=True)
class Part:
    """Tokenised texts of one split with their label ids `(N,)`, or `(N, C)` bool where a text may have several.

    `groups (N,)` says which of them are duplicates; None where each is its own. `shares (N, C)` float32 say how much of
    a text each label has, where a teacher does: a step learns them in the place of `truth`.
    """

    tokens: Tokens
    truth: np.ndarray
    groups: np.ndarray | None = None
    shares: np.ndarray | None = None


class Learner:
    """What a step works on: a classifier, the training rows, the weights that learn and their optimizer.

    `states` are what enters block `start`, where blocks below it are frozen. It computes where the weights lie; of
    several processes each takes its share of a step's rows, and gradients are added. `skipped` counts the steps that
    moved nothing because a gradient overflowed in fp16. Where memory runs out, `tokens_per_batch` is halved, once, and
    `notes` has a word on it. Where `states` are those of this process's own rows alone, it takes just these of a step.
    """

    def __init__(
        self,
        classifier: Classifier,
        part: Part,
        config: TuningConfig,
        *,
        weights: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        class_weights_C: Tensor | None,
        states: States | None,
        start: int | None,
        shards: Shards | None = None,
    ) -> None:
        self.classifier, self.part, self.config = classifier, part, config
        self.weights, self.optimizer = list(weights), optimizer
        self.states, self.start, self.shards = states, start, shards
        self.device, self.ranks = device_of(classifier), ranks_here()
        self.has_own_states = states is not None and len(states.tokens) < len(part.tokens)
        self.class_weights_C = None if class_weights_C is None else class_weights_C.to(self.device)
        self.dtype = step_arithmetic(config, depth=classifier.backbone.depth, device=self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.skipped = 0
        self.tokens_per_batch, self.notes = config.tokens_per_batch, list[str]()
        self._shortest = np.array([part.tokens.sizes.argmin()])

    def step(self, rows: np.ndarray) -> tuple[float, int]:
        """Learn from some rows: their mean loss and how many were answered right before the weights moved.

        A loss that is no number moves nothing.
        """
        if not self.classifier.training:
            self.classifier.train()
        own = self.ranks.owned(rows) if self.has_own_states else self.ranks.share(rows)
        loss, right = self._told(self._fitting_gradients(own, rows_in_step=len(rows)))
        if self.shards is None:  # divided weights add theirs on the way back
            self.ranks.add_gradients(self.weights)
        self.scaler.unscale_(self.optimizer)
        self._clip()
        if math.isfinite(loss):
            self._move()
        return loss, right

    def _fitting_gradients(self, rows: np.ndarray, *, rows_in_step: int) -> list[tuple[Tensor, Tensor]]:
        """`_gradients`, with smaller micro-batches where memory runs out."""
        try:
            return self._gradients(rows, rows_in_step=rows_in_step)
        except (MemoryError, RuntimeError) as error:
            self._take_less(error)
        return self._fitting_gradients(rows, rows_in_step=rows_in_step)  # not before the failed one is let go

    def _gradients(self, rows: np.ndarray, *, rows_in_step: int) -> list[tuple[Tensor, Tensor]]:
        """Set the gradients to those of some rows; the share of the loss and the right answers of each micro-batch."""
        self.optimizer.zero_grad(set_to_none=True)
        # One micro-batch after another on all cores: side by side, each would cast the weights to bf16 anew, which
        # measured twice as slow at 16 rows a step.
        micros = packed(rows, self.part.tokens.sizes, tokens_per_batch=self.tokens_per_batch)
        if self.shards is None:
            return [self._backward(micro, rows_in_step=rows_in_step) for micro in micros]
        level = self.shards.level(micros, self._shortest)
        found = [self._backward(micro, rows_in_step=rows_in_step, counts=counts) for micro, counts in level]
        return found[: len(micros)]

    def _take_less(self, error: Exception) -> None:
        """Halve the micro-batches of all further steps where memory ran out, once; ResourceError the second time."""
        if not is_out_of_memory(error):
            raise error
        if self.shards is not None:  # the others wait in the midst of their batches
            raise ResourceError(
                f"Memory ran out with micro-batches of {self.tokens_per_batch} tokens (tuning.tokens_per_batch). "
                f"{self._what_needs_less()} Or take more workers, which divide the weights."
            ) from error
        size, wanted = self.tokens_per_batch, self.config.tokens_per_batch
        if size < wanted:
            raise ResourceError(
                f"Memory ran out with micro-batches of {wanted} tokens (tuning.tokens_per_batch), and again with "
                f"{size}. {self._what_needs_less()} Or free some memory."
            ) from error
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.tokens_per_batch = size // 2
        self.notes.append(
            f"Memory ran out: micro-batches have {size // 2} tokens from here on instead of {size}. A step is of as "
            "many rows as before, and its gradients are the same within rounding."
        )

    def _what_needs_less(self) -> str:
        """Settings that need less memory than two failures have shown to be too much."""
        tuning, longest = self.config, int(self.part.tokens.sizes.max())
        ways = [f"tuning.tokens_per_batch = {self.tokens_per_batch // 2}"] if longest < self.tokens_per_batch else []
        if not tuning.gradient_checkpointing:
            ways.append("tuning.gradient_checkpointing = true")
        if tuning.method == "last_layers" and tuning.blocks > 1:
            ways.append(f"tuning.blocks = {tuning.blocks // 2}")
        ways.append("fewer model.layers")
        return f"Take {', or '.join(ways)}."

    def _told(self, found: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, int]:
        """Loss and right answers of a step, over all processes. Asked for at its end: an accelerator waits for it."""
        sums = [sum(loss.item() for loss, _ in found), sum(right.item() for _, right in found)]
        loss, right = self.ranks.added(np.array(sums, dtype=np.float64))
        return float(loss), int(right)

    def _clip(self) -> None:
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        # Most steps are shorter, and need no second look at every gradient; an accelerator is not asked, but told.
        if self.device.type != "cpu" or norm > self.config.clip:
            torch.nn.utils.clip_grads_with_norm_(self.weights, self.config.clip, norm)

    def _move(self) -> None:
        """One step of the optimizer, unless a gradient scaled for fp16 overflowed: then the scale is lowered."""
        before = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.skipped += self.scaler.is_enabled() and self.scaler.get_scale() < before

    def _backward(self, micro: np.ndarray, *, rows_in_step: int, counts: bool = True) -> tuple[Tensor, Tensor]:
        """Add the gradients of a micro-batch, if it counts; its share of the step's loss, and its right answers."""
        truth = sent(self.part.truth[micro], self.device)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32):
            logits_BC = self._logits(micro)
        tuning = self.config
        loss = summed_loss(
            logits_BC,
            truth if self.part.shares is None else sent(self.part.shares[micro], self.device),
            class_weights_C=self.class_weights_C,
            focal_gamma=tuning.focal_gamma if tuning.loss == "focal" else 0.0,
            label_smoothing=tuning.label_smoothing,
        )
        loss = loss / rows_in_step if counts else 0.0 * loss
        self.scaler.scale(loss).backward()
        return loss.detach(), right_rows(logits_BC, truth).sum()

    def _logits(self, rows: np.ndarray) -> Tensor:
        """Logits of texts `(B, C)`: the mean over the pieces of each."""
        tokens = self.part.tokens
        if self.has_own_states and self.states is not None:
            tokens, rows = self.states.tokens, rows // self.ranks.count  # its place among the own ones
        pieces, owners = tokens.pieces(rows)
        if self.states is not None and self.start:
            batch = self.states.ragged(pieces)
            hidden_BLD, lengths_B = (sent(values, self.device) for values in batch)
            logits_PC = self.classifier.finish(hidden_BLD, lengths_B, start=self.start)
        else:
            ids_BL, lengths = tokens.ragged(pieces)
            logits_PC = self.classifier(sent(ids_BL, self.device), sent(lengths, self.device))
        if len(pieces) == len(rows):
            return logits_PC
        shares_P = sent(torch.from_numpy(1 / np.bincount(owners)[owners]).to(logits_PC.dtype), self.device)
        sums_BC = logits_PC.new_zeros(len(rows), logits_PC.shape[1])
        return sums_BC.index_add(0, sent(owners, self.device), logits_PC * shares_P[:, None])
