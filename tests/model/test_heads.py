import numpy as np
import pytest
import torch

from tagsmith.model.heads import HEADS, begin_at, build_head


@pytest.mark.parametrize("name", HEADS)
def test_a_head_gives_one_logit_per_label(name):
    assert build_head(name, width=8, classes=3, seed=0)(torch.zeros(5, 8)).shape == (5, 3)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_depends_on_the_seed_alone(name):
    torch.manual_seed(7)
    first = build_head(name, width=8, classes=3, seed=0).state_dict()
    torch.manual_seed(8)
    again, other = (build_head(name, width=8, classes=3, seed=seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["score.weight"], other["score.weight"])


def test_building_a_head_leaves_the_random_state_alone():
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    build_head("mlp", width=8, classes=3, seed=0)
    assert torch.equal(torch.rand(1), wanted)


def test_the_linear_head_has_no_bias_so_that_hugging_face_can_express_it():
    assert list(build_head("linear", width=8, classes=3, seed=0).state_dict()) == ["score.weight"]


@pytest.mark.parametrize("name", HEADS)
def test_a_new_head_begins_near_even_odds(name):
    states = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    probs = build_head(name, width=64, classes=2, seed=0)(states).softmax(-1)
    assert float((probs - 0.5).abs().max().detach()) < 0.25


@pytest.mark.parametrize("name", HEADS)
def test_a_head_for_several_labels_begins_at_their_shares(name):
    truth = np.arange(400)[:, None] < [200, 40, 0]
    head = build_head(name, width=8, classes=3, seed=0, bias=True)
    begin_at(head, truth)
    np.testing.assert_allclose(torch.sigmoid(head.score.bias).detach(), [0.5, 0.1, 0.0], atol=0.005)
    begin_at(head, truth, weights_C=np.array([1.0, 9.0, 1.0]))
    np.testing.assert_allclose(torch.sigmoid(head.score.bias[1]).detach(), 0.5, atol=0.01)
