"""Label names and their ids."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tagsmith.errors import DataError


@dataclass(frozen=True)
class Labels:
    """The names of a classifier's outputs, in output order. The same names always get the same ids.

    With `multi_label` a text may have any number of them, none included.
    """

    names: tuple[str, ...]
    multi_label: bool = False

    @classmethod
    def of(cls, names: Iterable[str], *, multi_label: bool = False) -> Labels:
        """The distinct names in natural order, so that `2` stands before `10`."""
        return cls(tuple(sorted(set(names), key=_natural)), multi_label)

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, names: Sequence[str]) -> np.ndarray:
        """Ids `(N,)` int64. DataError for a name that training did not see."""
        ids = self._ids(names)
        return np.fromiter((ids[name] for name in names), dtype=np.int64, count=len(names))

    def encode_sets(self, label_sets: Sequence[Sequence[str]]) -> np.ndarray:
        """Which labels each text has `(N, C)` bool. DataError for a name that training did not see."""
        ids = self._ids(itertools.chain.from_iterable(label_sets))
        truth_NC = np.zeros((len(label_sets), len(self)), dtype=bool)
        for truth_C, names in zip(truth_NC, label_sets, strict=True):
            truth_C[[ids[name] for name in names]] = True
        return truth_NC

    def _ids(self, names: Iterable[str]) -> dict[str, int]:
        ids = {name: i for i, name in enumerate(self.names)}
        unknown = sorted({name for name in names if name not in ids}, key=_natural)
        if unknown:
            raise DataError(
                f"Labels not seen in training: {unknown[:5]}; known: {list(self.names[:20])}. "
                "Correct these labels, or train again with rows that carry them."
            )
        return ids

    def in_order(self, by_name: Mapping[str, float]) -> np.ndarray:
        """The values of a mapping from names `(C,)`, in output order."""
        return np.array([by_name[name] for name in self.names])

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The names of ids."""
        return [self.names[int(i)] for i in ids]


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name
