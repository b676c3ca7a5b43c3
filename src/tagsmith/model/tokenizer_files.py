"""The tokenizer of a backbone that is at hand, found without its weights being read."""

from __future__ import annotations

import json
from pathlib import Path

from tagsmith.assets import cache_folder, sha256
from tagsmith.catalogue import ASSETS
from tagsmith.model.gguf import converted_folder

NAME = "tokenizer.json"


def tokenizer_at_hand(backbone: str) -> Path | None:
    """The `tokenizer.json` of a local folder, a name of ASSETS or a hub id; None where the cache lacks it.

    Nothing is fetched or converted. A file of the cache that is not what it was when it arrived counts as lacking.
    """
    local = Path(backbone).expanduser() / NAME
    if local.is_file():
        return local
    asset = ASSETS.get(backbone)
    if asset is not None:
        for copy in asset.copies:
            known = copy.files.get(NAME)
            path = cache_folder() / "assets" / backbone / NAME
            if known is not None and path.is_file() and sha256(path) == known:
                return path
        if asset.weights_sha256 is not None and (path := _published(converted_folder(asset.weights_sha256))):
            return path
    hub_id = backbone if asset is None else asset.hub_id
    return None if hub_id is None else _published(cache_folder() / "hub" / hub_id.replace("/", "--"))


def _published(folder: Path) -> Path | None:
    try:
        sums = json.loads((folder / "SHA256SUMS.json").read_text(encoding="utf-8"))
        return folder / NAME if sha256(folder / NAME) == sums[NAME] else None
    except (OSError, ValueError, KeyError):
        return None
