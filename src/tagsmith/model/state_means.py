"""The mean state of each text: what a frozen model makes of it, without running another block.

Axes: N texts, P pieces, D width.
"""

from __future__ import annotations

import numpy as np

from tagsmith.model.activations import States
from tagsmith.model.mapping import let_go

_TOKENS_AT_ONCE = 2**16


def mean_states(states: States) -> np.ndarray:
    """The mean over the tokens of each text `(N, D)` float32, all of its pieces taken together; 0 without tokens."""
    texts, offsets = len(states.tokens), states.offsets
    sums_ND = np.zeros((texts, states.hidden_TD.shape[1]), dtype=np.float32)
    counts_N = np.zeros(texts)
    np.add.at(counts_N, states.tokens.rows, states.lengths)
    first = 0
    while first < len(states.lengths):
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _TOKENS_AT_ONCE, side="right")) - 1)
        own_TD = states.hidden_TD[offsets[first] : offsets[last]]
        owner_T = np.repeat(states.tokens.rows[first:last], states.lengths[first:last])
        np.add.at(sums_ND, owner_T, own_TD.float().numpy())
        let_go(own_TD)
        first = last
    return sums_ND / np.maximum(counts_N, 1)[:, None].astype(np.float32)
