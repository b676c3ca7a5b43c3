"""Texts to tokens, ragged: one long row of ids and where each text starts. Padding comes later, or never."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagsmith.errors import DataError, SettingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXTS_AT_ONCE = 2048
_LEFT_OUT = {"is_local", "local_files_only", "name_or_path", "chat_template"}


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts: `ids (T,)` int32 and `offsets (N+1,)` int64; text i is `ids[offsets[i]:offsets[i+1]]`.

    `truncated (N,)` bool says which texts were longer.
    """

    ids: np.ndarray
    offsets: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text `(N,)`."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> Tokens:
        """The texts at these positions, in this order."""
        return Tokens(*ragged_take(self.ids, self.offsets, rows), self.truncated[rows])

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of which no two have the same tokens, and for each text its place among them `(N,)`."""
        places: dict[bytes, int] = {}
        firsts, inverse = [], np.empty(len(self), dtype=np.int64)
        for row, (start, end) in enumerate(zip(self.offsets[:-1], self.offsets[1:], strict=True)):
            key = self.ids[start:end].tobytes()
            if key not in places:
                places[key] = len(firsts)
                firsts.append(row)
            inverse[row] = places[key]
        return np.array(firsts, dtype=np.int64), inverse

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rectangle of some texts, `(B, L)` int64 filled with 0 on the right, and their lengths `(B,)`."""
        lengths = self.lengths[rows]
        ids_BL = np.zeros((len(rows), int(lengths.max(initial=1))), dtype=np.int64)
        for line, row in zip(ids_BL, rows, strict=True):
            tokens = self.ids[self.offsets[row] : self.offsets[row + 1]]
            line[: len(tokens)] = tokens
        return ids_BL, lengths


def ragged_take(flat: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of a ragged array: their values in one row, and where each starts."""
    lengths = np.diff(offsets)[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return flat[np.repeat(offsets[rows], lengths) + within], starts


class Encoder:
    """A tokenizer with one truncation policy, the same in training and in serving.

    Special-token strings in a text stay text: a user's "<|im_end|>" never becomes a control token.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, settings: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.settings = dict(settings or {})
        tokenizer.encode_special_tokens = True
        # A tokenizer file may carry its own limits: all-MiniLM's pads to 128.
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)

    @classmethod
    def from_folder(cls, folder: Path, *, max_tokens: int) -> Encoder:
        """The `tokenizer.json` of a Hugging Face folder."""
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise SettingError(
                f"'{folder}' has no tokenizer.json. Expected a fast tokenizer beside the weights; "
                "save one with transformers' AutoTokenizer.save_pretrained and try again."
            )
        settings = folder / "tokenizer_config.json"
        known = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        return cls(Tokenizer.from_file(str(path)), max_tokens=max_tokens, settings=known)

    @property
    def pad_token(self) -> str | None:
        """The token that others pad with: the tokenizer's own, else its end of text, else its first special token."""
        for key in ("pad_token", "eos_token", "unk_token"):
            token = self.settings.get(key)
            if token:
                return token["content"] if isinstance(token, Mapping) else token
        added = self.tokenizer.get_added_tokens_decoder()
        return next((added[i].content for i in sorted(added) if added[i].special), None)

    @property
    def pad_id(self) -> int | None:
        """The id of `pad_token`."""
        return None if self.pad_token is None else self.tokenizer.token_to_id(self.pad_token)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, from which transformers encodes as this encoder does."""
        self.tokenizer.no_truncation()
        self.tokenizer.save(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.max_tokens)
        settings = {key: value for key, value in self.settings.items() if key not in _LEFT_OUT}
        settings |= {"split_special_tokens": True, "model_max_length": self.max_tokens}
        # Some tokenizers pad and cut on the left; texts are cut from the end here, and GPT-2 counts from the left.
        settings |= {"padding_side": "right", "truncation_side": "right"}
        if self.pad_token is not None:
            settings["pad_token"] = self.pad_token
        settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8"
        )

    def encode(self, texts: Sequence[str]) -> Tokens:
        """The tokens of texts, each cut after `max_tokens`. DataError for a text that is not valid Unicode."""
        ids, lengths, truncated = [], [], []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            chunk = list(texts[start : start + TEXTS_AT_ONCE])
            _refuse_surrogates(chunk, first=start)
            for encoding in self.tokenizer.encode_batch(chunk):
                ids.append(np.asarray(encoding.ids, dtype=np.int32))
                lengths.append(len(encoding.ids))
                truncated.append(bool(encoding.overflowing))
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        flat = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
        return Tokens(flat, offsets, np.asarray(truncated, dtype=bool))


def _refuse_surrogates(texts: Sequence[str], *, first: int) -> None:
    for i, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"Text {first + i} holds half of a surrogate pair, which is no character. "
                "Expected valid Unicode; read the source with its right encoding."
            ) from None
