"""Texts as people and spammers mangle them: typing errors, other case, letters that only look the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tagsmith.evaluation.comparison import compare_hits
from tagsmith.evaluation.proportions import proportion

KINDS = ("typos", "upper case", "lower case", "look-alikes")
_SHARE = 0.1
_LOOK_ALIKE = str.maketrans(
    "aceiopsxyABCEHKMOPTX",
    "\u0430\u0441\u0435\u0456\u043e\u0440\u0455\u0445\u0443"
    "\u0410\u0412\u0421\u0415\u041d\u041a\u041c\u041e\u0420\u0422\u0425",
)
"""Latin letters and the Cyrillic ones that are drawn the same."""


def mangled(texts: Sequence[str], *, seed: int) -> Mapping[str, list[str]]:
    """Each kind of damage done to all texts, the same for the same seed.

    `typos` swaps, drops, doubles or replaces a letter in about one word of five; `upper` and `lower` change the case;
    `look-alikes` puts Cyrillic letters for a tenth of the Latin ones that look the same.
    """
    damages: Sequence[Callable[[str, np.random.Generator], str]] = (
        _with_typos,
        lambda text, _: text.upper(),
        lambda text, _: text.lower(),
        _with_look_alikes,
    )
    found = {}
    for number, (kind, damage) in enumerate(zip(KINDS, damages, strict=True)):
        rng = np.random.default_rng([seed, number])
        found[kind] = [damage(text, rng) for text in texts]
    return found


def _with_typos(text: str, rng: np.random.Generator) -> str:
    letters = list(text)
    places = [i for i, letter in enumerate(letters[:-1]) if letter.isalpha() and letters[i + 1].isalpha()]
    if not places:
        return text
    # A typo in about one word of five: one in 25 letters, and one in any text.
    chosen = sorted(rng.choice(places, size=max(1, round(len(places) / 25)), replace=False).tolist(), reverse=True)
    for place in chosen:
        match int(rng.integers(4)):
            case 0:
                letters[place], letters[place + 1] = letters[place + 1], letters[place]
            case 1:
                del letters[place]
            case 2:
                letters.insert(place, letters[place])
            case 3:
                letters[place] = "abcdefghijklmnopqrstuvwxyz"[int(rng.integers(26))]
    return "".join(letters)


def _with_look_alikes(text: str, rng: np.random.Generator) -> str:
    places = [i for i, letter in enumerate(text) if ord(letter) in _LOOK_ALIKE]
    if not places:
        return text
    letters = list(text)
    for place in rng.choice(places, size=max(1, round(_SHARE * len(places))), replace=False).tolist():
        letters[place] = letters[place].translate(_LOOK_ALIKE)
    return "".join(letters)


def sample_rows(groups: np.ndarray, *, most: int, seed: int) -> np.ndarray:
    """Places of `most` rows, one of each group, in order."""
    first = np.sort(np.unique(groups, return_index=True)[1])
    return np.sort(np.random.default_rng(seed).permutation(first)[:most])


def robustness_of(
    undamaged: Mapping[str, np.ndarray], damaged: Mapping[str, Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """For each kind of damage how many of the same rows are right with it, and the drop in points from without.

    `undamaged[system]` says which rows `(N,)` each system answers rightly, `damaged[kind][system]` which it does after
    that damage. The first system is the model; what the others drop stands under their names. The interval of a drop is
    the paired one.
    """
    groups = np.arange(len(next(iter(undamaged.values()))))
    found = []
    for kind, systems in damaged.items():
        entry: dict[str, Any] = {"kind": kind, "n": len(groups)}
        for number, (name, right) in enumerate(systems.items()):
            drop = compare_hits(undamaged[name], right, groups).difference
            told = {"accuracy": proportion(right, groups).as_dict(), "drop": drop.as_dict()}
            entry |= told if number == 0 else {name: told}
        found.append(entry)
    return found
