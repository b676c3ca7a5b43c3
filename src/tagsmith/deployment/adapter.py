"""The adapter that `lora` learnt, beside the weights into which it was merged; no bundle ever loads it."""

from __future__ import annotations

import json
from pathlib import Path

from tagsmith.model.adapters import Adapter

FOLDER = "adapter"


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Save an adapter under `adapter/` as the library peft reads it, for those who put it on a backbone themselves."""
    from safetensors.torch import save_file

    target = folder / FOLDER
    target.mkdir()
    save_file(adapter.weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = json.dumps(adapter.settings, indent=1, ensure_ascii=False, default=str)
    (target / "adapter_config.json").write_text(settings + "\n", encoding="utf-8")
