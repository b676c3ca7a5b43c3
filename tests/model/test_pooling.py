import pytest
import torch

from tagsmith.errors import SettingError
from tagsmith.model.backbone import Backbone
from tagsmith.model.classifier import choose_pooling
from tagsmith.model.pooling import POOLINGS, pool

HIDDEN = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([5, 2, 1])


def test_last_takes_the_last_real_token():
    assert torch.equal(pool(HIDDEN, LENGTHS, how="last"), torch.stack([HIDDEN[0, 4], HIDDEN[1, 1], HIDDEN[2, 0]]))


def test_mean_is_over_real_tokens():
    wanted = torch.stack([HIDDEN[i, :length].mean(0) for i, length in enumerate(LENGTHS)])
    torch.testing.assert_close(pool(HIDDEN, LENGTHS, how="mean"), wanted)


def test_first_takes_the_first_token():
    assert torch.equal(pool(HIDDEN, LENGTHS, how="first"), HIDDEN[:, 0])


@pytest.mark.parametrize("how", POOLINGS)
def test_what_stands_in_the_padding_changes_nothing(how):
    other = HIDDEN.clone()
    other[1, 2:] = 1e4
    other[2, 1:] = -1e4
    assert torch.equal(pool(other, LENGTHS, how=how), pool(HIDDEN, LENGTHS, how=how))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_first_token_of_a_causal_backbone_is_refused(family, make_trunk):
    backbone = Backbone(make_trunk(family))
    with pytest.raises(SettingError, match=r"model.pooling cannot be 'first' .* Use 'last' or 'mean'"):
        choose_pooling(backbone, "first")


@pytest.mark.parametrize(("family", "pooling"), [("llama", "last"), ("gpt2", "last"), ("bert", "mean")])
def test_auto_fits_the_family(family, pooling, make_trunk):
    assert choose_pooling(Backbone(make_trunk(family)), "auto") == pooling


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_decoder_without_its_causal_mask_is_pooled_as_an_encoder(family, make_trunk):
    backbone = Backbone(make_trunk(family))
    backbone.causal_mask = False
    assert choose_pooling(backbone, "auto") == "mean"
    assert [choose_pooling(backbone, how) for how in POOLINGS] == list(POOLINGS)


def test_an_encoder_may_be_pooled_in_each_way(make_trunk):
    backbone = Backbone(make_trunk("bert"))
    assert [choose_pooling(backbone, how) for how in POOLINGS] == list(POOLINGS)
