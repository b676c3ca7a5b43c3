"""Backbone, pooling and head as one thing that is tuned, measured, saved and served.

Axes: N texts, B texts of a batch, L positions, D width, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tagsmith.config import ModelConfig
from tagsmith.data.batching import MOST_EVENED, evenly_sorted, length_sorted
from tagsmith.data.encoding import Encoder, Tokens, mean_of_pieces
from tagsmith.errors import SettingError
from tagsmith.labels import Labels
from tagsmith.model.activations import FrozenBlocks, States
from tagsmith.model.backbone import Backbone, load_backbone
from tagsmith.model.beginnings import alike
from tagsmith.model.calibration import Calibration
from tagsmith.model.decision import Rule
from tagsmith.model.device import device_of, sent, tokens_at_once
from tagsmith.model.heads import build_head
from tagsmith.model.packing import inference_copy, side_by_side
from tagsmith.model.pooling import pool

ROWS_AT_ONCE = 8192


class Classifier(nn.Module):
    """An LLM whose language-model head was replaced by a classification head.

    `thresholds (C,)` are the probabilities from which on labels are answered, or a decision for one label; None where
    the likeliest one is.
    `sureties (C,)` are those from which the likeliest label is answered at all; None where it always is.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, *, pooling: str, encoder: Encoder, labels: Labels) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pooling = pooling
        self.encoder = encoder
        self.labels = labels
        self.calibration = Calibration(multi_label=labels.multi_label)
        self.thresholds: Rule = np.full(len(labels), 0.5) if labels.multi_label else None
        self.sureties: np.ndarray | None = None

    def finish(
        self, hidden_BLD: Tensor, lengths_B: Tensor, *, start: int, blocks: nn.ModuleList | None = None
    ) -> Tensor:
        """Logits `(B, C)`, given the states that enter block `start`."""
        return self.head(self.pooled(hidden_BLD, lengths_B, start=start, blocks=blocks))

    def pooled(
        self, hidden_BLD: Tensor, lengths_B: Tensor, *, start: int, blocks: nn.ModuleList | None = None
    ) -> Tensor:
        """What the head sees `(B, D)`, given the states that enter block `start`.

        With last-token pooling the last block runs on one row per text, where the family allows it.
        """
        used = self.backbone.blocks[start:] if blocks is None else blocks
        context = self.backbone.context(hidden_BLD, lengths_B)
        if self.pooling == "last" and len(used) and self.backbone.supports_last_row(context.layout.longest):
            last = self.backbone.depth - 1
            hidden_BLD = self.backbone.run(hidden_BLD, context, start=start, stop=last, blocks=used[:-1])
            return self.backbone.final_norm(self.backbone.run_last_row(hidden_BLD, context, used[-1]))
        hidden_BLD = self.backbone.run(hidden_BLD, context, start=start, stop=self.backbone.depth, blocks=used)
        return pool(self.backbone.final_norm(hidden_BLD), lengths_B, how=self.pooling)

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits `(B, C)` of token ids, padded or in one row `(1, T)`."""
        return self.finish(self.backbone.embed(ids_BL, lengths_B), lengths_B, start=0)


class Scorer:
    """A classifier frozen and packed to answer; in fp32 an answer does not depend on its batch beyond rounding.

    In another `dtype` the blocks compute; the last norm, the pooling and the head stay in fp32.
    """

    def __init__(
        self, classifier: Classifier, *, tokens_per_batch: int = 512, dtype: torch.dtype = torch.float32
    ) -> None:
        self.classifier = classifier
        self.tokens_per_batch = tokens_per_batch
        self.dtype = dtype
        self.blocks = inference_copy(classifier.backbone.blocks, dtype=dtype)
        self._below = self.lowest(len(self.blocks) - 1)

    def lowest(self, stop: int) -> FrozenBlocks:
        """The lowest `stop` blocks, as this scorer runs them."""
        return FrozenBlocks(self.classifier.backbone, stop=stop, dtype=self.dtype, blocks=self.blocks)

    def logits(self, tokens: Tokens) -> np.ndarray:
        """Logits `(N, C)` float32; NaN for a text of no tokens. Equal texts are computed once.

        One thread takes a batch, even where other cores rest: on two threads a lone text took 24 ms instead of 32, but
        behind a server, whose front wants a core as well, the threads waited for each other.
        """
        firsts, twins = tokens.distinct()
        batches = self._batches(tokens, firsts[tokens.lengths[firsts] > 0])
        logits_MC = np.full((len(firsts), len(self.classifier.labels)), np.nan, dtype=np.float32)
        computed = side_by_side(partial(self._batch, tokens), batches, device=device_of(self.classifier))
        for pieces, logits_BC in zip(batches, computed, strict=True):
            logits_MC[twins[pieces]] = logits_BC.cpu().numpy()
        return mean_of_pieces(logits_MC[twins], tokens.rows, texts=len(tokens))

    def _batches(self, tokens: Tokens, pieces: np.ndarray) -> list[np.ndarray]:
        """Few pieces in batches of like size; many so that those which begin alike come together."""
        most = tokens_at_once(self.tokens_per_batch, device_of(self.classifier))
        batches = evenly_sorted(tokens.lengths[pieces], tokens_per_batch=most)
        if len(batches) > MOST_EVENED and self._below.shares:
            return alike(tokens, pieces, tokens_per_batch=most, shares=True)
        return [pieces[places] for places in batches]

    def probabilities(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Calibrated probabilities `(N, C)` float64 and whether each text was truncated `(N,)`.

        NaN for a text without any letter or sign: it gets no answer.
        """
        probs = np.zeros((len(texts), len(self.classifier.labels)))
        truncated = np.zeros(len(texts), dtype=bool)
        for start in range(0, len(texts), ROWS_AT_ONCE):
            chunk = texts[start : start + ROWS_AT_ONCE]
            tokens = self.classifier.encoder.encode(chunk)
            logits_NC = self.logits(tokens)
            logits_NC[[i for i, text in enumerate(chunk) if not text.strip()]] = np.nan
            probs[start : start + len(chunk)] = self.classifier.calibration.probabilities(logits_NC)
            truncated[start : start + len(chunk)] = tokens.truncated
        return probs, truncated

    @torch.inference_mode()
    def _batch(self, tokens: Tokens, rows: np.ndarray) -> Tensor:
        device = self._below.device
        ids, lengths = tokens.ragged(rows)
        lengths_B = sent(lengths, device)
        hidden_BLD = self._below.enter(sent(ids, device), lengths_B)
        pooled_BD = self.classifier.pooled(hidden_BLD, lengths_B, start=self._below.stop, blocks=self.blocks[-1:])
        return self.classifier.head(pooled_BD.float())


def finish_states(classifier: Classifier, states: States, *, start: int, tokens_per_batch: int = 512) -> np.ndarray:
    """Logits `(N, C)` float32 in fp32 arithmetic, from the states that enter block `start`."""
    return _finished(classifier, states, classifier.finish, start=start, tokens_per_batch=tokens_per_batch)


def pool_states(classifier: Classifier, states: States, *, start: int, tokens_per_batch: int = 512) -> np.ndarray:
    """What the head sees of each text `(N, D)` float32, from the states that enter block `start`."""
    return _finished(classifier, states, classifier.pooled, start=start, tokens_per_batch=tokens_per_batch)


def _finished(
    classifier: Classifier, states: States, function: Callable[..., Tensor], *, start: int, tokens_per_batch: int
) -> np.ndarray:
    above = classifier.backbone.blocks[start:]
    blocks = inference_copy(above, dtype=torch.float32) if len(above) else None
    device = device_of(classifier)
    batches = length_sorted(states.lengths, tokens_per_batch=tokens_at_once(tokens_per_batch, device))

    @torch.inference_mode()
    def finish(pieces: np.ndarray) -> Tensor:
        hidden_BLD, lengths_B = (sent(values, device) for values in states.ragged(pieces))
        return function(hidden_BLD, lengths_B, start=start, blocks=blocks)

    found = torch.cat(list(side_by_side(finish, batches, device=device))).cpu().numpy()
    in_order = np.empty_like(found)
    in_order[np.concatenate(batches)] = found
    return mean_of_pieces(in_order, states.tokens.rows, texts=len(states.tokens))


def build(
    folder: Path, config: ModelConfig, *, labels: Labels, layers: int | None, seed: int, pairs: bool = False
) -> Classifier:
    """An untrained classifier from a backbone's folder, cut to `layers` blocks (None keeps all); `pairs` as in Encoder.

    Raises:
        SettingError: an unknown family, a depth it does not have, or more tokens than its context holds.
    """
    backbone = load_backbone(folder, layers=layers)
    # With `auto` long texts are read from their start until the validation rows have spoken.
    encoder = Encoder.from_folder(
        folder,
        max_tokens=fitting_tokens(backbone, config),
        long_texts="head" if config.long_texts == "auto" else config.long_texts,
        pairs=pairs,
    )
    return assemble(backbone, encoder, config, labels=labels, seed=seed)


def assemble(backbone: Backbone, encoder: Encoder, config: ModelConfig, *, labels: Labels, seed: int) -> Classifier:
    """An untrained classifier from its parts."""
    backbone.pair_separator_id = encoder.pair_separator_id
    backbone.causal_mask = config.causal_mask
    if not (config.causal_mask or backbone.family.causal):
        raise SettingError(
            f"model.causal_mask is false, but a '{backbone.config.model_type}' backbone has no causal mask: its tokens "
            "see the whole text already. Leave the setting out, or take a decoder such as a Llama."
        )
    head = build_head(config.head, width=backbone.width, classes=len(labels), seed=seed, bias=labels.multi_label)
    return Classifier(backbone, head, pooling=choose_pooling(backbone, config.pooling), encoder=encoder, labels=labels)


def choose_pooling(backbone: Backbone, asked: str) -> str:
    """`auto` resolved: the last token of a causal model has seen all the others; an encoder's mean is the safest.

    SettingError for the first token of a causal model, which has seen nothing but itself.
    """
    if asked == "auto":
        return "last" if backbone.causal else "mean"
    if asked == "first" and backbone.causal:
        raise SettingError(
            f"model.pooling cannot be 'first' for a '{backbone.config.model_type}' backbone: "
            "its first token sees no other token. Use 'last' or 'mean'."
        )
    return asked


def fitting_tokens(backbone: Backbone, config: ModelConfig) -> int:
    """`max_tokens`, if the backbone's positions reach so far."""
    positions = getattr(backbone.config, "max_position_embeddings", None)
    room = None if positions is None else positions - (2 if "roberta" in backbone.config.model_type else 0)
    if room is not None and config.max_tokens > room:
        raise SettingError(
            f"model.max_tokens is {config.max_tokens}, but this backbone has only {room} positions. "
            f"Set it to {room} or fewer."
        )
    return config.max_tokens
