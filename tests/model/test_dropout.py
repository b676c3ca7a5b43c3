import pytest
import torch
from torch import nn

from tagsmith.model.attention import attend
from tagsmith.model.backbone import load_backbone
from tagsmith.model.dropout import QuickDropout, drop_quickly, dropped


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_about_the_share_is_zero_and_the_mean_stays(share, dtype):
    rows = torch.ones(400, 501, dtype=dtype)
    found = dropped(rows, share)
    assert found.dtype is dtype
    assert found.shape == rows.shape
    spread = 5 * (share * (1 - share) / rows.numel()) ** 0.5
    assert float((found == 0).double().mean()) == pytest.approx(share, abs=spread)
    kept = found[found != 0].float()
    assert float(kept.min()) == float(kept.max()) == pytest.approx(1 / (1 - share), rel=0.01)


def test_neighbours_are_dropped_independently():
    lost_N = (dropped(torch.ones(400_000), 0.5) == 0).double()
    for apart in (1, 2, 3, 4, 8):
        assert float((lost_N[apart:] * lost_N[:-apart]).mean()) == pytest.approx(0.25, abs=0.005)


def test_gradients_are_those_of_what_was_kept():
    rows = torch.randn(7, 5, requires_grad=True)
    found = dropped(rows, 0.4)
    found.sum().backward()
    torch.testing.assert_close(rows.grad, (found / rows).detach())
    assert set(rows.grad[found == 0].tolist()) == {0.0}


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (1e-9, 1.0), (1.0, 0.0)])
def test_nothing_and_everything_can_be_dropped(share, expected):
    assert dropped(torch.ones(3, 3), share).tolist() == [[expected] * 3] * 3
    assert dropped(torch.ones(0, 3), share).shape == (0, 3)


def test_another_device_draws_as_pytorch_does(monkeypatch):
    asked = []
    monkeypatch.setattr("tagsmith.model.dropout.F.dropout", lambda values, share: (asked.append(share), values)[1])
    assert dropped(torch.ones(3, 3, device="meta"), 0.5).device.type == "meta"
    assert asked == [0.5]


def test_a_seed_repeats_it_and_the_next_draw_is_another():
    rows, first = torch.ones(50, 3), []
    for _ in range(2):
        torch.manual_seed(4)
        first.append(dropped(rows, 0.5))
    assert torch.equal(*first)
    assert not torch.equal(first[0], dropped(rows, 0.5))


def test_a_layer_drops_in_training_alone():
    trunk = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.2)))
    drop_quickly(trunk)
    assert [type(module) for module in trunk.modules()].count(QuickDropout) == 2
    rows = torch.ones(64, 3)
    assert torch.equal(trunk[1](rows).unique(), torch.tensor([0.0, 2.0]))
    assert trunk.eval()[1](rows) is rows


def test_the_dropout_of_a_backbone_draws_so(bert_folder):
    kinds = {type(module) for module in load_backbone(bert_folder).modules()}
    assert QuickDropout in kinds
    assert nn.Dropout not in kinds


def test_attention_drops_its_shares():
    module, states = nn.Module(), torch.randn(2, 4, 30, 8, requires_grad=True)  # that learn: written out
    torch.manual_seed(1)
    whole, _ = attend(module, states, states, torch.ones_like(states), None)
    some, _ = attend(module, states, states, torch.ones_like(states), None, dropout=0.5)
    torch.testing.assert_close(whole, torch.ones_like(whole))
    assert float(some.detach().std()) > 0.05
    assert float(some.detach().mean()) == pytest.approx(1.0, abs=0.05)
