import json

import numpy as np
import pytest
import torch

from tagsmith.data.encoding import Encoder
from tagsmith.data.pairs import PAIR
from tagsmith.errors import SettingError
from tagsmith.model.backbone import FAMILIES, Backbone, load_backbone
from tagsmith.model.packing import inference_copy

ALL = sorted(set(FAMILIES) - {"xlm-roberta"})  # RoBERTa's code with another vocabulary
WITH_LAST_ROW = ["llama", "qwen2", "qwen3", "gpt2"]
LENGTHS = torch.tensor([9, 4, 1, 9])
REAL = torch.arange(9)[None] < LENGTHS[:, None]


def some_ids(backbone):
    """Ids in which the pad id stands as padding and nowhere else, as transformers wants it."""
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(3, 100, (4, 9), generator=generator)
    return torch.where(REAL, ids_BL, torch.tensor(getattr(backbone.config, "pad_token_id", 0) or 0))


@pytest.fixture(params=ALL)
def backbone(request, make_trunk):
    return Backbone(make_trunk(request.param))


@torch.no_grad()
def test_the_states_after_each_block_equal_those_of_hugging_face(backbone):
    ids_BL = some_ids(backbone)
    reference = backbone.trunk(input_ids=ids_BL, attention_mask=REAL.long(), output_hidden_states=True)
    hidden_BLD = backbone.embed(ids_BL)
    context = backbone.context(hidden_BLD, LENGTHS)
    for i in range(backbone.depth):
        torch.testing.assert_close(hidden_BLD[REAL], reference.hidden_states[i][REAL], atol=1e-5, rtol=1e-5)
        hidden_BLD = backbone.run(hidden_BLD, context, start=i, stop=i + 1)
    normed = backbone.final_norm(hidden_BLD)
    torch.testing.assert_close(normed[REAL], reference.last_hidden_state[REAL], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_packed_copy_gives_the_same_states(backbone):
    hidden_BLD = backbone.embed(some_ids(backbone))
    context = backbone.context(hidden_BLD, LENGTHS)
    own = backbone.run(hidden_BLD, context, start=0, stop=3)
    packed = inference_copy(backbone.blocks, dtype=torch.float32)
    copy = backbone.run(hidden_BLD, context, start=0, stop=3, blocks=packed)
    torch.testing.assert_close(copy[REAL], own[REAL], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_text_alone_has_the_states_that_it_has_beside_longer_ones(backbone):
    ids_BL = some_ids(backbone)
    hidden_BLD = backbone.embed(ids_BL)
    together = backbone.run(hidden_BLD, backbone.context(hidden_BLD, LENGTHS), start=0, stop=3)
    hidden_BLD = backbone.embed(ids_BL[1:2, :4])
    alone = backbone.run(hidden_BLD, backbone.context(hidden_BLD, LENGTHS[1:2]), start=0, stop=3)
    torch.testing.assert_close(alone[0], together[1, :4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["own blocks", "packed blocks"])
@pytest.mark.parametrize("family", WITH_LAST_ROW)
@torch.no_grad()
def test_the_last_block_on_one_row_equals_the_whole_block(family, packed, make_trunk):
    backbone = Backbone(make_trunk(family))
    assert backbone.supports_last_row(9)
    hidden_BLD = backbone.embed(some_ids(backbone))
    context = backbone.context(hidden_BLD, LENGTHS)
    whole = backbone.run(hidden_BLD, context, start=2, stop=3)[torch.arange(4), LENGTHS - 1]
    block = inference_copy(backbone.blocks[2:], dtype=torch.float32)[0] if packed else backbone.blocks[2]
    torch.testing.assert_close(backbone.run_last_row(hidden_BLD, context, block), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", WITH_LAST_ROW)
def test_the_last_block_on_one_row_gives_the_same_gradients(family, make_trunk):
    backbone = Backbone(make_trunk(family))
    with torch.no_grad():
        hidden_BLD = backbone.embed(some_ids(backbone))
    context = backbone.context(hidden_BLD, LENGTHS)
    block = backbone.blocks[2]
    gradients = []
    for last_row in (True, False):
        block.zero_grad()
        if last_row:
            states = backbone.run_last_row(hidden_BLD, context, block)
        else:
            states = backbone.run(hidden_BLD, context, start=2, stop=3)[torch.arange(4), LENGTHS - 1]
        states.square().mean().backward()
        gradients.append([weight.grad.clone() for weight in block.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_the_last_block_runs_whole_where_texts_outgrow_a_sliding_window(make_trunk):
    mistral = Backbone(make_trunk("mistral"))
    assert mistral.supports_last_row(5)
    assert not mistral.supports_last_row(6)


@pytest.mark.parametrize("window", [2, 9, 50], ids=["shorter", "equal", "longer"])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
@torch.no_grad()
def test_a_sliding_window_is_kept_whether_texts_are_longer_or_shorter(family, window, make_trunk):
    backbone = Backbone(make_trunk(family, sliding_window=window))
    ids_BL = some_ids(backbone)
    reference = backbone.trunk(input_ids=ids_BL, attention_mask=REAL.long()).last_hidden_state
    hidden_BLD = backbone.embed(ids_BL)
    states = backbone.run(hidden_BLD, backbone.context(hidden_BLD, LENGTHS), start=0, stop=3)
    torch.testing.assert_close(backbone.final_norm(states)[REAL], reference[REAL], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cut_backbone_gives_the_states_of_the_same_blocks_of_the_whole_one(backbone, make_trunk):
    ids_BL = some_ids(backbone)
    hidden_BLD = backbone.embed(ids_BL)
    whole = backbone.run(hidden_BLD, backbone.context(hidden_BLD, LENGTHS), start=0, stop=2)
    backbone.cut(2)
    assert backbone.depth == 2
    hidden_BLD = backbone.embed(ids_BL)
    cut = backbone.run(hidden_BLD, backbone.context(hidden_BLD, LENGTHS), start=0, stop=2)
    torch.testing.assert_close(cut[REAL], whole[REAL], atol=0, rtol=0)


@torch.no_grad()
def test_a_cut_backbone_saves_and_loads_as_hugging_faces_own(backbone, tmp_path):
    backbone.cut(2)
    backbone.trunk.save_pretrained(tmp_path)
    again = load_backbone(tmp_path)
    assert again.depth == 2
    ids_BL = some_ids(backbone)
    reference = backbone.trunk(input_ids=ids_BL, attention_mask=REAL.long()).last_hidden_state
    states = again.trunk(input_ids=ids_BL, attention_mask=REAL.long()).last_hidden_state
    torch.testing.assert_close(states[REAL], reference[REAL], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_loading_fewer_layers_equals_cutting(backbone, tmp_path):
    backbone.trunk.save_pretrained(tmp_path)
    shallow = load_backbone(tmp_path, layers=1)
    backbone.cut(1)
    ours, cut = shallow.state_dict(), backbone.state_dict()
    assert {name for name in ours if "pooler" not in name} == {name for name in cut if "pooler" not in name}
    assert all(torch.equal(weight, cut[name]) for name, weight in ours.items() if "pooler" not in name)


@pytest.mark.parametrize("depth", [0, -1, 4])
def test_an_impossible_depth_is_refused_in_words(depth, tiny_folder, make_trunk):
    with pytest.raises(SettingError, match=rf"model.layers cannot be {depth}: .* has 3 blocks"):
        load_backbone(tiny_folder, layers=depth)
    with pytest.raises(SettingError, match=rf"model.layers cannot be {depth}: this backbone has 3 blocks"):
        Backbone(make_trunk("llama")).cut(depth)


def test_an_unknown_family_is_refused_and_the_known_ones_are_named(tmp_path):
    from transformers import OPTConfig

    OPTConfig(hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"family 'opt', which Tagsmith does not know\. Known families: bert, gemma"):
        load_backbone(tmp_path)


def test_weights_that_do_not_fit_their_config_are_refused(make_trunk, tmp_path):
    make_trunk("llama").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 4}))
    with pytest.raises(SettingError, match="do not fit its config.json"):
        load_backbone(tmp_path)


def test_weights_of_another_shape_are_refused(make_trunk, tmp_path):
    make_trunk("llama").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"intermediate_size": 48}))
    with pytest.raises(SettingError, match="do not fit its config.json"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_weights_without_a_pooler_load_the_same_each_time(family, make_trunk, tmp_path):
    trunk = make_trunk(family)
    weights = {name: weight for name, weight in trunk.state_dict().items() if "pooler" not in name}
    trunk.save_pretrained(tmp_path, state_dict=weights)
    torch.manual_seed(1)
    first = load_backbone(tmp_path).state_dict()
    torch.manual_seed(2)
    second = load_backbone(tmp_path).state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_the_second_text_of_a_pair_has_the_type_that_bert_gives_it(bert_folder):
    from transformers import AutoModel

    trunk = AutoModel.from_pretrained(bert_folder).eval()
    encoder = Encoder.from_folder(bert_folder, max_tokens=48, pairs=True)
    backbone = load_backbone(bert_folder)
    backbone.pair_separator_id = encoder.pair_separator_id
    tokens = encoder.encode([f"the room{PAIR}was lovely", "one text only"])
    ids_BL, lengths = (torch.from_numpy(each) for each in tokens.padded(np.arange(2)))
    reference = encoder.tokenizer.encode("the room", "was lovely")
    with torch.inference_mode():
        expected = trunk(
            input_ids=torch.tensor([reference.ids]), token_type_ids=torch.tensor([reference.type_ids])
        ).last_hidden_state
        hidden_BLD = backbone.embed(ids_BL)
        context = backbone.context(hidden_BLD, lengths)
        hidden_BLD = backbone.run(hidden_BLD, context, start=0, stop=backbone.depth)
    assert 1 in reference.type_ids
    torch.testing.assert_close(hidden_BLD[:1, : len(reference.ids)], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bert", "modernbert"])
def test_blocks_that_compute_their_activations_anew_keep_less_and_give_the_same_gradients(family, make_trunk):
    gradients, kept = [], []
    for recomputes in (False, True):
        backbone = Backbone(make_trunk(family)).train()
        backbone.recomputes = recomputes
        bytes_kept = []

        def keep(tensor, counted=bytes_kept):
            counted.append(tensor.nbytes)
            return tensor

        torch.manual_seed(3)  # dropout must fall on the same places twice
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden_BLD = backbone.embed(some_ids(backbone))
            context = backbone.context(hidden_BLD, LENGTHS)
            if backbone.supports_last_row(9):
                hidden_BLD = backbone.run(hidden_BLD, context, start=0, stop=2)
                last = backbone.run_last_row(hidden_BLD, context, backbone.blocks[2])
            else:
                last = backbone.run(hidden_BLD, context, start=0, stop=3)[REAL]
        kept.append(sum(bytes_kept))
        last.square().sum().backward()
        gradients.append({n: w.grad for n, w in backbone.named_parameters() if w.grad is not None})
    assert kept[1] < kept[0] / 3
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
