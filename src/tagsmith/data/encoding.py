"""Texts to tokens, ragged: one long row of ids and where each piece starts. Padding comes later, or never.

Axes: N texts, P pieces (a text is one, unless it is long and read in windows), T tokens, B pieces of a batch, C labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tagsmith.data.pairs import PAIR
from tagsmith.errors import DataError, SettingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LongTexts = Literal["head", "tail", "head_tail", "windows"]
"""What is read of a text that is longer than the limit."""

MOST_WINDOWS = 8
"""Windows of one text; a text too long for them has gaps between them, and counts as truncated."""

TEXTS_AT_ONCE = 2048
_LEFT_OUT = {"is_local", "local_files_only", "name_or_path", "chat_template"}


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts: `ids (T,)` int32 and `offsets (P+1,)` int64; piece i is `ids[offsets[i]:offsets[i+1]]`.

    `rows (P,)` says of which text each piece is, in order; `truncated (N,)` bool which texts were not read whole.
    """

    ids: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.truncated)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each piece `(P,)`."""
        return np.diff(self.offsets)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each text `(N,)`, over all of its pieces."""
        return np.bincount(self.rows, weights=self.lengths, minlength=len(self)).astype(np.int64)

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """All texts of several, one after the other."""
        counts = np.cumsum([0, *(len(part) for part in parts)])
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))]).astype(np.int64),
            np.concatenate([part.rows + before for part, before in zip(parts, counts, strict=False)]),
            np.concatenate([part.truncated for part in parts]),
        )

    def of_texts(self, rows: np.ndarray) -> Tokens:
        """The tokens of some texts, in this order."""
        pieces, owners = self.pieces(rows)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[pieces])]).astype(np.int64)
        return Tokens(self.ids[self.places(pieces)], offsets, owners, self.truncated[rows])

    def emptied(self, rows: np.ndarray) -> Tokens:
        """The same, but for some texts, which have no tokens any more."""
        emptied = np.isin(self.rows, rows)
        lengths = np.where(emptied, 0, self.lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Tokens(self.ids[np.repeat(~emptied, self.lengths)], offsets, self.rows, self.truncated)

    def places(self, pieces: np.ndarray) -> np.ndarray:
        """Where the tokens of some pieces lie in `ids`, one piece after the other."""
        lengths = self.lengths[pieces]
        firsts = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(self.offsets[pieces] - firsts, lengths)

    def pieces(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pieces of some texts, in their order, and for each the place of its text among `rows`."""
        firsts, lasts = np.searchsorted(self.rows, rows), np.searchsorted(self.rows, rows, side="right")
        counts = lasts - firsts
        owners = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return firsts[owners] + within, owners

    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of which no two have the same tokens, and for each piece its place among them `(P,)`."""
        places: dict[bytes, int] = {}
        firsts, inverse = [], np.empty(len(self.rows), dtype=np.int64)
        for row, (start, end) in enumerate(zip(self.offsets[:-1], self.offsets[1:], strict=True)):
            key = self.ids[start:end].tobytes()
            if key not in places:
                places[key] = len(firsts)
                firsts.append(row)
            inverse[row] = places[key]
        return np.array(firsts, dtype=np.int64), inverse

    def padded(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rectangle of some pieces, `(B, L)` int64 filled with 0 on the right, and their lengths `(B,)`."""
        lengths = self.lengths[pieces]
        ids_BL = np.zeros((len(pieces), int(lengths.max(initial=1))), dtype=np.int64)
        for line, piece in zip(ids_BL, pieces, strict=True):
            tokens = self.ids[self.offsets[piece] : self.offsets[piece + 1]]
            line[: len(tokens)] = tokens
        return ids_BL, lengths

    def ragged(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of some pieces one after the other, `(1, T)` int64, and their lengths `(B,)`."""
        lengths = self.lengths[pieces]
        ids_T = np.zeros(max(1, lengths.sum()), dtype=np.int64)
        ids_T[: lengths.sum()] = self.ids[self.places(pieces)]
        return ids_T[None], lengths


def mean_of_pieces(logits_PC: np.ndarray, rows: np.ndarray, *, texts: int) -> np.ndarray:
    """Logits `(N, C)` of texts: the mean over the pieces of each; `rows (P,)` says whose each piece is."""
    if len(rows) == texts:
        return logits_PC
    sums_NC = np.zeros((texts, logits_PC.shape[1]), dtype=np.float64)
    np.add.at(sums_NC, rows, logits_PC)
    return (sums_NC / np.bincount(rows, minlength=texts)[:, None]).astype(logits_PC.dtype)


class Encoder:
    """A tokenizer with one policy for long texts, the same in training and in serving.

    Special-token strings in a text stay text: a user's "<|im_end|>" never becomes a control token. With `pairs` a text
    that holds `PAIR` is encoded as the tokenizer's own template for pairs has it, or on two lines where there is none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        long_texts: LongTexts = "head",
        pairs: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.long_texts: LongTexts = long_texts
        self.pairs = pairs
        self.settings = dict(settings or {})
        tokenizer.encode_special_tokens = True
        # A tokenizer file may carry its own limits: all-MiniLM's pads to 128.
        tokenizer.no_padding()
        self._knows_pairs = tokenizer.num_special_tokens_to_add(True) > tokenizer.num_special_tokens_to_add(False)
        self._limit()

    @classmethod
    def from_folder(
        cls, folder: Path, *, max_tokens: int, long_texts: LongTexts = "head", pairs: bool = False
    ) -> Encoder:
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
        return cls(
            Tokenizer.from_file(str(path)), max_tokens=max_tokens, long_texts=long_texts, pairs=pairs, settings=known
        )

    def reading(self, long_texts: LongTexts) -> Encoder:
        """The same encoder with another policy for long texts."""
        from tokenizers import Tokenizer

        copied = Tokenizer.from_str(self.tokenizer.to_str())
        return Encoder(
            copied, max_tokens=self.max_tokens, long_texts=long_texts, pairs=self.pairs, settings=self.settings
        )

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

    @property
    def pair_separator_id(self) -> int | None:
        """The id of the token after which the second text of a pair has type 1, as in BERT; None without such types."""
        encoding = self.tokenizer.encode("a", "b")
        if not self._knows_pairs or 1 not in encoding.type_ids:
            return None
        return encoding.ids[encoding.type_ids.index(1) - 1]

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, from which transformers encodes as this encoder does."""
        self.tokenizer.no_truncation()
        self.tokenizer.save(str(folder / "tokenizer.json"))
        self._limit()
        settings = {key: value for key, value in self.settings.items() if key not in _LEFT_OUT}
        settings |= {"split_special_tokens": True, "model_max_length": self.max_tokens}
        # Some tokenizers pad on the left, and GPT-2 counts from the left.
        settings |= {"padding_side": "right", "truncation_side": "left" if self.long_texts == "tail" else "right"}
        if self.pad_token is not None:
            settings["pad_token"] = self.pad_token
        settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8"
        )

    def encode(self, texts: Sequence[str]) -> Tokens:
        """The tokens of texts, long ones as `long_texts` says. DataError for a text that is not valid Unicode."""
        found: list[tuple[list[np.ndarray], bool]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            chunk = list(texts[start : start + TEXTS_AT_ONCE])
            _refuse_surrogates(chunk, first=start)
            found += self._cut(chunk) if self.long_texts in ("head_tail", "windows") else self._truncated(chunk)
        pieces = [piece for pieces, _ in found for piece in pieces]
        lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        return Tokens(
            ids=np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            rows=np.repeat(np.arange(len(found)), [len(pieces) for pieces, _ in found]).astype(np.int64),
            truncated=np.array([cut for _, cut in found], dtype=bool),
        )

    def _limit(self) -> None:
        self.tokenizer.enable_truncation(self.max_tokens, direction="left" if self.long_texts == "tail" else "right")

    def _truncated(self, texts: Sequence[str]) -> list[tuple[list[np.ndarray], bool]]:
        """One piece for each text, cut by the tokenizer itself, and whether it was cut."""
        encodings = self.tokenizer.encode_batch([self._pair(text) for text in texts])
        return [([np.asarray(found.ids, dtype=np.int32)], bool(found.overflowing)) for found in encodings]

    def _pair(self, text: str) -> str | tuple[str, str]:
        first, separator, second = text.partition(PAIR) if self.pairs else (text, "", "")
        if not separator:
            return text
        return (first, second) if self._knows_pairs else f"{first}\n{second}"

    def _cut(self, texts: Sequence[str]) -> list[tuple[list[np.ndarray], bool]]:
        """The pieces of each text within the tokenizer's first and last tokens, and whether something is missing."""
        if self.pairs:
            raise SettingError(
                f"model.long_texts is '{self.long_texts}', which knows single texts only; found text pairs. "
                "Use 'head': the longer text of a pair is cut first."
            )
        before, after = self._frame()
        room = self.max_tokens - len(before) - len(after)
        self.tokenizer.no_truncation()
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        self._limit()
        cut = _windows if self.long_texts == "windows" else _head_and_tail
        result = []
        for encoding in encodings:
            content = np.asarray(encoding.ids, dtype=np.int32)
            pieces, missing = cut(content, room) if len(content) > room else ([content], False)
            result.append(([np.concatenate([before, piece, after]) for piece in pieces], missing))
        return result

    def _frame(self) -> tuple[np.ndarray, np.ndarray]:
        """The special tokens that the tokenizer puts before and after a text."""
        bare = self.tokenizer.encode("a", add_special_tokens=False).ids
        whole = self.tokenizer.encode("a").ids
        first = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return np.array(whole[:first], dtype=np.int32), np.array(whole[first + len(bare) :], dtype=np.int32)


def _head_and_tail(content: np.ndarray, room: int) -> tuple[list[np.ndarray], bool]:
    return [np.concatenate([content[: room - room // 2], content[len(content) - room // 2 :]])], True


def _windows(content: np.ndarray, room: int) -> tuple[list[np.ndarray], bool]:
    """Windows spread evenly from the start to the end, neighbours sharing at least an eighth where that fits."""
    overlap = room // 8
    wanted = -(-(len(content) - overlap) // (room - overlap))
    count = min(wanted, MOST_WINDOWS)
    starts = np.linspace(0, len(content) - room, count).round().astype(int)
    return [content[start : start + room] for start in starts], count * room < len(content)


def _refuse_surrogates(texts: Sequence[str], *, first: int) -> None:
    for i, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"Text {first + i} holds half of a surrogate pair, which is no character. "
                "Expected valid Unicode; read the source with its right encoding."
            ) from None
