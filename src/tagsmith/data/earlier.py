"""Which part each text had in an earlier run, kept in its bundle, so that a table that grew keeps its test rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tagsmith.data.folding import fold_all, hash_texts
from tagsmith.data.table import Splits, Table
from tagsmith.errors import BundleError

SPLITS = "splits.safetensors"
"""The file of a bundle that holds the hashes of its folded texts and their parts, and no text."""

NEW, ASIDE = -1, -2
"""In place of a part: a row of a group that the earlier run did not see, and one that bridges two of its parts."""
TEST = 3
"""The part of the test rows, the last."""


@dataclass(frozen=True)
class Earlier:
    """The texts of an earlier run: `hashes (N,)` uint64, ascending, of folded texts, and `parts (N,)` uint8, 0 to 3.

    A text that stood in several parts counts for the first of them: what was learned from is no fair test.
    """

    hashes: np.ndarray
    parts: np.ndarray

    @classmethod
    def of(cls, splits: Splits[Table], before: Earlier | None = None) -> Earlier:
        """What a run must remember of its splits, and of texts that only the run before it had."""
        texts = [hash_texts(fold_all(part.frame["text"])) for _, part in splits.items()]
        parts = [np.full(len(hashes), part, dtype=np.uint8) for part, hashes in enumerate(texts)]
        if before is not None:
            texts, parts = [*texts, before.hashes], [*parts, before.parts]
        hashes, first = np.unique(np.concatenate(texts), return_index=True)
        return cls(hashes, np.concatenate(parts)[first])

    @classmethod
    def read(cls, folder: str | Path) -> Earlier:
        """What a bundle remembers; BundleError where it has no such file."""
        from safetensors.numpy import load_file

        path = Path(folder) / SPLITS
        if not path.is_file():
            raise BundleError(
                f"'{folder}' holds no {SPLITS}, so its split is not known. Expected the folder of a bundle of this "
                "version of Tagsmith; train it again, or leave out data.earlier."
            )
        arrays = load_file(path)
        return cls(arrays["hashes"], arrays["parts"])

    def write(self, folder: Path) -> None:
        """Keep it in a bundle."""
        from safetensors.numpy import save_file

        save_file({"hashes": self.hashes, "parts": self.parts}, folder / SPLITS)

    def parts_of(self, table: Table) -> np.ndarray:
        """The part of each row `(N,)`: its own where its text was seen, else its group's, or NEW, or ASIDE.

        A new row is set aside where its group holds texts that were seen in different parts.
        """
        own_N = self._seen(table)
        groups, group_N = np.unique(table.groups, return_inverse=True)
        least_G, most_G = np.full(len(groups), 4), np.full(len(groups), NEW)
        seen = own_N != NEW
        np.minimum.at(least_G, group_N[seen], own_N[seen])
        np.maximum.at(most_G, group_N[seen], own_N[seen])
        of_group_G = np.where(least_G == most_G, most_G, np.where(most_G == NEW, NEW, ASIDE))
        return np.where(seen, own_N, of_group_G[group_N])

    def took_part(self, table: Table) -> np.ndarray:
        """The rows `(N,)` bool that learnt or chose: not new, and not among the earlier test rows.

        A near twin of such a text counts where both stand in `table`; of unseen twins no hash can tell.
        """
        return ~np.isin(self.parts_of(table), (NEW, TEST))

    def _seen(self, table: Table) -> np.ndarray:
        hashes = hash_texts(fold_all(table.frame["text"]))
        if not len(self.hashes):
            return np.full(len(table), NEW)
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[places] == hashes, self.parts[places].astype(np.int64), NEW)
