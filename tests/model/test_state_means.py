import numpy as np
import pytest
import torch

from tagsmith.data.encoding import Tokens
from tagsmith.model.activations import States
from tagsmith.model.state_means import mean_states


def test_means_are_those_of_all_tokens_of_a_text_in_all_its_pieces(monkeypatch):
    hidden = torch.arange(24, dtype=torch.float32).view(8, 3)
    tokens = Tokens(
        ids=np.arange(8, dtype=np.int32),
        offsets=np.array([0, 2, 5, 8]),
        rows=np.array([0, 1, 1]),
        truncated=np.zeros(2),
    )
    for at_once in (1, 4, 100):
        monkeypatch.setattr("tagsmith.model.state_means._TOKENS_AT_ONCE", at_once)
        means = mean_states(States(hidden, tokens))
        assert means == pytest.approx(np.stack([hidden[:2].mean(0), hidden[2:].mean(0)]))
