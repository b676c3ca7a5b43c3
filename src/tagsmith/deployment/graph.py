"""A classifier as one graph of tensors that other engines compute: exactly what Tagsmith computes, without torch.

In go token ids `(B, L)`, padded on the right, and the lengths `(B,)` of the texts; out come logits `(B, C)`. What
stands outside of the graph, since it is arithmetic of a few numbers: cleaning, tokens, windows of long texts and their
mean, calibration and thresholds.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tagsmith.errors import SettingError
from tagsmith.model.attention import Reach, use_attention
from tagsmith.model.backbone import Context
from tagsmith.model.classifier import Classifier
from tagsmith.model.layout import Layout
from tagsmith.model.pooling import pool

IDS, LENGTHS, LOGITS = "ids", "lengths", "logits"


class Graph(nn.Module):
    """A classifier whose every step is a tensor's: no branch depends on the texts."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        # Windows never reach beyond what is read of a text, or they reach it in every batch.
        self._on_one_row = classifier.pooling == "last" and classifier.backbone.supports_last_row(
            classifier.encoder.max_tokens
        )

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits `(B, C)`."""
        backbone = self.classifier.backbone
        context, hidden_BLD = self._context(ids_BL, lengths_B)
        if self._on_one_row:
            hidden_BLD = backbone.run(hidden_BLD, context, start=0, stop=backbone.depth - 1)
            pooled_BD = backbone.final_norm(backbone.run_last_row(hidden_BLD, context, backbone.blocks[-1]))
        else:
            hidden_BLD = backbone.final_norm(backbone.run(hidden_BLD, context, start=0, stop=backbone.depth))
            pooled_BD = pool(hidden_BLD, lengths_B, how=self.classifier.pooling)
        return self.classifier.head(pooled_BD)

    def _context(self, ids_BL: Tensor, lengths_B: Tensor) -> tuple[Context, Tensor]:
        """What the blocks share, and the states that enter the first one."""
        backbone, layout = self.classifier.backbone, Layout(lengths_B, ids_BL.shape)
        hidden_BLD = backbone.embed(ids_BL, lengths_B)
        masks, rotary = {}, {}
        for kind in sorted({backbone.family.kind(backbone.config, i) for i in range(backbone.depth)}):
            masks[kind] = _added_mask(lengths_B, ids_BL.shape[1], backbone.reach(kind))
            rotary[kind] = backbone.family.rotary(backbone.trunk, hidden_BLD, layout.positions, kind)
        return Context(layout, masks, rotary), hidden_BLD


def _added_mask(lengths_B: Tensor, longest: int, reach: Reach) -> Tensor:
    """What attention adds to its scores `(1 or B, 1, L, L)`: 0 where a position sees the other, or the least number."""
    at_L = torch.arange(longest)
    ahead_LL = at_L[None] - at_L[:, None]
    seen_LL = torch.ones_like(ahead_LL, dtype=torch.bool)
    if reach.before is not None:
        seen_LL = seen_LL & (ahead_LL >= -reach.before)
    if reach.after is not None:
        seen_LL = seen_LL & (ahead_LL <= reach.after)
    seen_BLL = seen_LL[None]
    if reach.after != 0:  # else what stands behind a text is hidden already
        real_BL = at_L[None] < lengths_B[:, None]
        seen_BLL = seen_BLL & real_BL[:, None] | ~real_BL[:, :, None]
    return torch.where(seen_BLL, 0.0, torch.finfo(torch.float32).min)[:, None]


def write_onnx(classifier: Classifier, file: Path) -> None:
    """Write a classifier as an ONNX graph with batch and length free, its weights in a file beside it.

    SettingError, which names the extra, where a library is missing, or in words where a backbone cannot be exported.
    """
    require_libraries("onnx", "onnxscript", extra="onnx", wanted="Exporting to ONNX")
    graph = Graph(classifier).eval()
    ids_BL, lengths_B = torch.tensor([[1, 2, 3, 0], [1, 2, 3, 4]]), torch.tensor([3, 4])
    free = torch.export.Dim.DYNAMIC
    with _plain_attention(classifier), _quietly(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph,
                (ids_BL, lengths_B),
                dynamo=True,
                dynamic_shapes=({0: free, 1: free}, {0: free}),
                input_names=[IDS, LENGTHS],
                output_names=[LOGITS],
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            kind = classifier.backbone.config.model_type
            raise SettingError(
                f"A '{kind}' backbone could not be exported to ONNX by torch {torch.__version__}: "
                f"{str(error).strip().splitlines()[-1]}. Expected one that it can trace; serve it with torch instead."
            ) from error
    assert program is not None, "what dynamo exports is given back"
    file.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(file), external_data=True)


def require_libraries(*names: str, extra: str, wanted: str) -> None:
    """SettingError for a library that is not installed, with the extra that brings it."""
    from importlib.util import find_spec

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise SettingError(
            f"{wanted} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            f'Install with pip install "tagsmith[{extra}]".'
        )


@contextmanager
def _plain_attention(classifier: Classifier) -> Iterator[None]:
    """Attention by transformers' own plain products, which every engine knows; ours branches by the texts at hand."""
    config = classifier.backbone.config
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        use_attention(config)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of operators that no text classifier has, and of its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
