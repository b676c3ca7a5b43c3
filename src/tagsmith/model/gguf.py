"""GGUF -> a Hugging Face folder with bf16 safetensors and a tokenizer, once."""

from __future__ import annotations

import functools
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tagsmith.assets import Located, aside, cache_folder, intact, publish
from tagsmith.errors import AssetError
from tagsmith.events import Event, Listener, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VERSION = "v1"  # a new one when `convert` writes other bytes, so that a cache of an older release is not taken for it


def ready_folder(located: Located, *, listen: Listener = silent) -> Path:
    """The folder that transformers loads: `located.path` itself, or what its GGUF file was converted to.

    What was converted is kept in the cache. AssetError when a GGUF file cannot be converted.
    """
    if located.path.suffix != ".gguf":
        return located.path
    folder = converted_folder(located.sha256)
    if not intact(folder):
        text = f"Converting {located.path.name} to safetensors, once; this takes some 10 s per 100 million weights."
        listen(Event("model", "note", values={"asset": located.name, "text": text}))
        convert(located.path, folder)
    return folder


def converted_folder(gguf_sha256: str) -> Path:
    """Where the cache keeps what a GGUF file of this SHA-256 was converted to, or would keep it."""
    return cache_folder() / "converted" / f"{gguf_sha256[:16]}-{_VERSION}"


def convert(gguf: Path, folder: Path) -> None:
    """Write the trunk of a GGUF model (bf16, no language-model head) and its tokenizer to `folder`, with hashes."""
    with aside(folder.parent) as scratch, _quiet(), _read_once():
        # transformers has many errors for a file that it cannot read, and all of them mean the same to the user.
        try:
            _write_tokenizer(gguf, scratch)
            _write_trunk(_load(gguf), scratch)
        except (ValueError, TypeError, KeyError, IndexError, NotImplementedError, OSError, RuntimeError) as error:
            raise AssetError(
                f"'{gguf}' cannot be converted ({type(error).__name__}: {error}). Expected a GGUF file of a Llama, "
                "Qwen, Mistral or Gemma model that transformers can read. Give a folder with safetensors instead."
            ) from error
        publish(scratch, folder)


def _write_tokenizer(gguf: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert tokenizer is not None, "None stands for a tokenizer whose package is absent, and these need none"
    tokenizer.save_pretrained(folder)


def _load(gguf: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModel

    # In fp32, since a GGUF loader may keep blocks packed where another type is asked for.
    return AutoModel.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)


def _write_trunk(model: PreTrainedModel, folder: Path) -> None:
    from safetensors.torch import save_file

    weights = model.bfloat16().state_dict()
    packed = [name for name, tensor in weights.items() if not tensor.is_floating_point()]
    if packed:
        raise ValueError(f"its weights stayed packed, {packed[0]} for one")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    # Without this the folder counts as quantized, and can be neither trained nor saved.
    vars(config).pop("quantization_config", None)
    config.architectures = [type(model).__name__]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)


@contextmanager
def _read_once() -> Generator[None, None, None]:
    """Let transformers parse the file once instead of four times: half of 20 s for SmolLM2 on two cores."""
    import gguf

    reader = functools.cache(gguf.GGUFReader)
    names = functools.cache(gguf.get_tensor_name_map)
    with _swapped(gguf, "GGUFReader", reader), _swapped(gguf, "get_tensor_name_map", names):
        yield


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep transformers from drawing bars, one of which knows no switch, and from warning of weights kept packed."""
    from transformers import modeling_gguf_pytorch_utils as loader
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with _swapped(loader, "tqdm", lambda items, **_: items):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _swapped(home: ModuleType, name: str, value: object) -> Generator[None, None, None]:
    before = getattr(home, name)
    setattr(home, name, value)
    try:
        yield
    finally:
        setattr(home, name, before)
