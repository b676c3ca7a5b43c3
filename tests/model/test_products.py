import copy

import pytest
import torch
from torch import nn

from tagsmith.model.packing import PackedLinear, inference_copy
from tagsmith.model.products import FEW, MANY, LearningLinear, learning_products

SHAPES = [(1, 5), (2, 3, 5), (FEW, 5), (FEW + 1, 5), (MANY, 5), (0, 5)]


@pytest.fixture
def layers():
    """`layers(bias=)`: the same layer twice, as PyTorch has it and as it learns here."""

    def make(*, bias):
        torch.manual_seed(0)
        plain = nn.Linear(5, 7, bias=bias)
        other = copy.deepcopy(plain)
        other.__class__ = LearningLinear
        return plain, other

    return make


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_gradients_are_those_of_pytorch(layers, shape, bias):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = []
    for layer in layers(bias=bias):
        entering = rows.clone().requires_grad_(True)
        leaving = layer(entering)
        (leaving.square().sum() / 7).backward()
        found.append([leaving.detach(), entering.grad, *(weight.grad for weight in layer.parameters())])
    assert len(found[0]) == 3 + bias
    for wanted, had in zip(*found, strict=True):
        torch.testing.assert_close(had, wanted, atol=1e-5, rtol=1e-5)


def test_few_rows_do_not_go_to_pytorchs_own_product(layers, monkeypatch):
    _, layer = layers(bias=False)
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: pytest.fail("it is PyTorch that multiplies"))
    assert layer(torch.ones(3, 5)).shape == (3, 7)
    with pytest.raises(pytest.fail.Exception, match="PyTorch"):
        layer(torch.ones(FEW + 1, 5))


def test_only_what_needs_a_gradient_gets_one(layers):
    _, layer = layers(bias=True)
    layer.weight.requires_grad_(False)
    rows = torch.ones(2, 5)
    layer(rows).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((7,), 2.0))
    assert rows.grad is None


def test_layers_are_pytorchs_again_afterwards_and_pack_meanwhile():
    block = nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 5)))
    rows = torch.randn(3, 5)
    with torch.no_grad():
        wanted = block(rows)
    with learning_products([block]):
        assert [type(layer) for layer in block.modules() if isinstance(layer, nn.Linear)] == [LearningLinear] * 2
        packed = inference_copy([block], dtype=torch.float32)[0]
        assert isinstance(packed[0], PackedLinear)
        torch.testing.assert_close(packed(rows), wanted, atol=1e-5, rtol=1e-5)
    assert [type(layer) for layer in block.modules() if isinstance(layer, nn.Linear)] == [nn.Linear] * 2


def test_layers_are_pytorchs_again_after_an_error():
    layer = nn.Linear(5, 5)
    with pytest.raises(KeyError), learning_products([layer]):
        raise KeyError
    assert type(layer) is nn.Linear


def test_what_does_not_apply_changes_nothing():
    layer = nn.Linear(5, 5)
    with learning_products([layer], apply=False):
        assert type(layer) is nn.Linear
