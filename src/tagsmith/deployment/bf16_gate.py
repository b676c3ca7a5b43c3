"""Whether PyTorch may answer in bf16 for a bundle that was just saved: a look at a few held-out rows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tagsmith.data.encoding import Tokens
from tagsmith.deployment.bundle import Bundle
from tagsmith.deployment.parity import at_once, compared
from tagsmith.deployment.recipe import SETTINGS
from tagsmith.deployment.torch_engine import TorchEngine
from tagsmith.model.device import device_of, processor_has_bf16

MOST_ROWS = 64


def with_bf16_gate(bundle: Bundle[TorchEngine], tokens: Tokens, truth: np.ndarray) -> Bundle[TorchEngine]:
    """The bundle whose recipe notes whether bf16 may answer, after a look at the first of some held-out rows.

    Nothing is noted where the processor has no bf16: an engine without a gate does not answer. An export compares on
    all held-out rows.
    """
    engine, rows = bundle.engine, np.arange(min(MOST_ROWS, len(tokens)))
    if not len(rows) or device_of(engine.classifier).type != "cpu" or not processor_has_bf16():
        return bundle
    few = tokens.of_texts(rows)
    halved = TorchEngine(
        engine.classifier, tokens_per_batch=engine.tokens_per_batch, dtype=torch.bfloat16, mixer=engine.mixer
    )
    found = compared(
        engine.probabilities_of(halved.logits_of(few)),
        engine.probabilities_of(engine.logits_of(few)),
        truth[rows],
        names=("torch-bf16", engine.name),
        told=f"{len(rows)} held-out rows",
        thresholds=engine.thresholds,
        sureties=engine.sureties,
    )
    refused = at_once(found)
    noted: dict[str, Any] = {"passed": not refused, "refused": refused, **found.as_dict()}
    settings = {**bundle.settings, "engines": {"torch-bf16": noted}}
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    (bundle.folder / SETTINGS).write_text(text, encoding="utf-8")
    return replace(bundle, settings=settings)
