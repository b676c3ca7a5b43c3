"""A bundle on its way to the Hugging Face hub: which files go, which stay, and the upload in one commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tagsmith.deployment.manifest import MANIFEST, unlisted, verify
from tagsmith.errors import AssetError, SettingError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WITH_TEXTS = frozenset({"report.html"})
"""Files that hold texts of rows."""


@dataclass(frozen=True)
class Shipment:
    """What of a bundle is pushed: files with their sizes in bytes, and those that stay, each with the reason."""

    folder: Path
    repo: str
    files: Mapping[str, int]
    left: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(self.files.values())


def pack(folder: Path, repo: str, *, with_texts: bool = False) -> Shipment:
    """What would be pushed, without asking anybody.

    Raises:
        BundleError: no bundle, or one that was altered.
        SettingError: `repo` is no name of a repository.
    """
    _require_name(repo)
    verify(folder)
    strange = set(unlisted(folder))
    files, left = {}, {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in strange:
            left[name] = f"not in {MANIFEST}"
        elif name in WITH_TEXTS and not with_texts:
            left[name] = "holds texts of rows; --with-texts pushes it"
        else:
            files[name] = path.stat().st_size
    assert MANIFEST in files, "what was verified has a manifest"
    return Shipment(folder, repo, files, left)


def push(shipment: Shipment, *, public: bool = False, message: str = "", api: HfApi | None = None) -> str:
    """Upload all files in one commit, and give its address; the repository is made where it is not there.

    `public` is for a repository that is made now; one that exists stays as it is. Endpoint and token are
    huggingface_hub's own (HF_ENDPOINT, HF_TOKEN, `hf auth login`). AssetError where the hub cannot be had or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = api or HfApi(library_name="tagsmith")
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(shipment.folder / name)) for name in shipment.files
    ]
    try:
        api.create_repo(shipment.repo, private=not public, exist_ok=True)
        done = api.create_commit(shipment.repo, operations, commit_message=message or "Push a bundle of Tagsmith")
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise AssetError(
            f"The hub answered {status} for '{shipment.repo}'. {_ADVICE.get(status, 'Expected a commit; try again.')}"
        ) from error
    except Exception as error:  # the client lets errors of its HTTP library through, another one in each major release
        raise AssetError(
            f"'{shipment.repo}' could not be pushed ({type(error).__name__}: {error}). Expected a hub that answers; "
            "check the network and HF_ENDPOINT, and try again: what was uploaded is not sent twice."
        ) from error
    return str(done.commit_url)


_ADVICE = {
    401: "Expected a token that may write: `hf auth login`, or HF_TOKEN.",
    403: "Expected a token that may write there; take a name of your own or of your organisation.",
    404: "Expected a namespace of your own or of your organisation, as in ME/NAME.",
}


def _require_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise SettingError(
            f"'{repo}' is no repository of the hub. Expected NAME or OWNER/NAME, of letters, digits, '-', '_' and '.'."
        ) from None
