"""How an earlier bundle was trained, as settings for a training that repeats it or takes another of its candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagsmith.config import ModelConfig, TuningConfig, merge
from tagsmith.deployment.manifest import verify
from tagsmith.deployment.recipe import read_settings
from tagsmith.errors import SettingError


def planned_settings(folder: Path, *, take: int | None = None) -> dict[str, Any]:
    """The settings of a bundle's training, or with `take` of the candidate that has this number in its report.

    Raises:
        BundleError: no bundle, or one that was altered.
        SettingError: no such candidate, or one that no LLM takes part in.
    """
    verify(folder)
    settings = dict(read_settings(folder)["config"])
    if take is None:
        return settings
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    candidates: list[Mapping[str, Any]] = report.get("candidates", [])
    found = next((each for each in candidates if each["number"] == take), None)
    if found is None:
        known = f"1 to {len(candidates)}" if candidates else "none: it was trained without a search"
        raise SettingError(f"'{folder}' has no candidate {take}. Its candidates are {known}.")
    if found["settings"] is None:
        raise SettingError(
            f"Candidate {take} of '{folder}' is {found['name']}, which is no LLM. It lies in every bundle as its "
            "baseline; `tagsmith export BUNDLE --to tfidf` makes a bundle of it."
        )
    own = {"model": {"backbone": found["backbone"]}}
    return merge(settings, UNSEARCHED, found["settings"], own)


UNSEARCHED = {
    "model": {"long_texts": ModelConfig().long_texts},
    "tuning": TuningConfig().model_dump(
        include={
            *(
                "average",
                "batch_size",
                "blocks",
                "choose_calibrated",
                "epochs",
                "head_learning_rate",
                "hybrid",
                "hybrid_share",
                "label_smoothing",
                "layer_decay",
            ),
            *("learning_rate", "lora_rank", "most_rows", "patience", "soup", "start"),
        }
    ),
}
"""What a candidate decides on, as it is where none does: nothing of the winner's must be left in another's."""
