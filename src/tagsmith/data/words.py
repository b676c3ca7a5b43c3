"""Values of any type -> words. No polars."""

from __future__ import annotations

import json
import math
import re
from typing import Any


def is_plain_list(value: object) -> bool:
    """Whether a value is a list of words or numbers, as labels are."""
    return isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)


def word_of(value: object) -> str | None:
    """1 and 1.0 become "1", true becomes "true", records become JSON; NaN is no value."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    if isinstance(value, bool | int | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def mended(text: str | None) -> Any:
    """The text with a sign in the place of each half of a character (a lone surrogate)."""
    return None if text is None else re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
