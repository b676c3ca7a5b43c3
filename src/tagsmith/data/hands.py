"""Who does the heavy work of this stage: this process, or those that it is handed to, with the same result."""

from __future__ import annotations

from dataclasses import dataclass

from tagsmith.data.column_cleaning import Clean, clean
from tagsmith.data.near_twins import Sketched, sketched
from tagsmith.data.readers import ReadFiles, read_in_turn


@dataclass(frozen=True)
class Hands:
    """What reads files, cleans a column of texts, and makes texts ready to be searched for near twins."""

    read_files: ReadFiles = read_in_turn
    clean: Clean = clean
    sketched: Sketched = sketched


OWN = Hands()
"""Those of this process."""
