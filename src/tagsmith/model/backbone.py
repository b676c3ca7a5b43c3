"""One view of every family of LLM: embed, run blocks i to j, final norm. The language-model head is never loaded.

Axes: B texts, L positions, D width. Texts are padded on the right; with a causal mask right padding changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagsmith.errors import SettingError

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Context:
    """What the blocks of one batch share: lengths `(B,)`, and per kind of block a mask and rotary angles."""

    lengths_B: Tensor
    masks: dict[str, Any]  # a tensor, None where nothing is hidden, or another of transformers' kinds of mask
    rotary: dict[str, Rotary | None]


class Backbone(nn.Module):
    """A transformer trunk without its language-model head.

    `trunk` is the Hugging Face base model; all weights stay its own, so that it saves and loads as Hugging Face's.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.family = family_of(trunk.config)
        self.pair_separator_id: int | None = None
        """The token after which the second text of a pair begins, for families that mark it (BERT's types)."""

    @property
    def config(self) -> Any:
        """The Hugging Face configuration."""
        return self.trunk.config

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, from the bottom."""
        return self.family.blocks(self.trunk)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Size of a hidden state, D."""
        return int(self.config.hidden_size)

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block; an identity where the family has none."""
        return self.family.final_norm(self.trunk)

    def embed(self, ids_BL: Tensor) -> Tensor:
        """The states `(B, L, D)` that enter the first block."""
        if self.pair_separator_id is not None and self.family.embed_types is not None:
            separators_BL = (ids_BL == self.pair_separator_id).int()
            types_BL = (separators_BL.cumsum(1) - separators_BL).clamp(max=1).to(ids_BL.dtype)
            return self.family.embed_types(self.trunk, ids_BL, types_BL)
        return self.family.embed(self.trunk, ids_BL)

    def context(self, hidden_BLD: Tensor, lengths_B: Tensor) -> Context:
        """Masks and positions for a batch of states in this shape, dtype and device."""
        return self.family.context(self.trunk, hidden_BLD, lengths_B)

    def run(
        self, hidden_BLD: Tensor, context: Context, *, start: int, stop: int, blocks: nn.ModuleList | None = None
    ) -> Tensor:
        """The states that leave block `stop - 1`, given those that enter block `start`; not normed.

        `blocks` replaces the trunk's own, by an inference copy in another layout say; its first one is block `start`.
        """
        used = self.blocks[start:stop] if blocks is None else blocks[: stop - start]
        for i, block in enumerate(used, start=start):
            kind = self.family.kind(self.config, i)
            hidden_BLD = self.family.block(block, hidden_BLD, context.masks[kind], context.rotary[kind])
        return hidden_BLD

    def run_last_row(self, hidden_BLD: Tensor, context: Context, block: nn.Module) -> Tensor:
        """What the last block gives for the last token of each text `(B, D)`, at the cost of its keys and values.

        Equal to the whole block within rounding: only one row per text is read by last-token pooling, so that query,
        projections and MLP of the others need not exist. `supports_last_row` says for which families.
        """
        assert self.family.last_row is not None, "call it only where supports_last_row"
        kind = self.family.kind(self.config, self.depth - 1)
        return self.family.last_row(block, hidden_BLD, context.lengths_B, context.rotary[kind])

    def supports_last_row(self, longest: int) -> bool:
        """Whether the last block can run on one row per text of up to `longest` tokens."""
        window = getattr(self.config, "sliding_window", None)
        return self.family.last_row is not None and (not window or longest <= window)

    def cut(self, depth: int) -> None:
        """Drop the blocks above `depth`, from the module and from its configuration."""
        if not 1 <= depth <= self.depth:
            raise SettingError(
                f"model.layers cannot be {depth}: this backbone has {self.depth} blocks, of which 1 or more are kept."
            )
        del self.blocks[depth:]
        cut_config(self.config, depth)


def cut_config(config: Any, depth: int) -> None:
    """Make a Hugging Face configuration say `depth` blocks, its per-block lists included."""
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = list(config.layer_types[:depth])


def load_backbone(folder: Path, *, layers: int | None = None) -> Backbone:
    """The backbone in a Hugging Face folder, in fp32, cut to its lowest `layers` blocks (None keeps all).

    Raises:
        SettingError: a family that Tagsmith does not know, or weights that do not fit the configuration.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder)
    family_of(config)
    full_depth = config.num_hidden_layers
    if layers is not None and not 1 <= layers <= full_depth:
        raise SettingError(
            f"model.layers cannot be {layers}: '{folder.name}' has {full_depth} blocks, of which 1 or more are kept."
        )
    cut_config(config, layers or full_depth)
    with quiet_transformers():
        trunk, loaded = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=_attention(config),
            ignore_mismatched_sizes=True,  # they are refused below, in words
            output_loading_info=True,
        )
    missing = [key for key in loaded["missing_keys"] if "pooler" not in key]
    if missing or loaded["mismatched_keys"]:
        wrong = sorted(missing or map(str, loaded["mismatched_keys"]))
        raise SettingError(
            f"The weights in '{folder}' do not fit its config.json: {wrong[:3]} are missing or of another shape. "
            "Expected the trunk that the configuration describes; fetch both anew."
        )
    trunk.config.use_cache = False
    if hasattr(trunk, "pooler"):  # never read, and random where the folder has none: it must not reach a bundle
        trunk.pooler = None
    return Backbone(trunk.eval())


class quiet_transformers:  # noqa: N801 - reads as the context manager it is
    """Hold back transformers' progress bars and loading report, which speak of heads that we replace on purpose."""

    def __enter__(self) -> None:
        from transformers.utils import logging as hf_logging

        self._level = hf_logging.get_verbosity()
        hf_logging.set_verbosity(logging.CRITICAL)
        hf_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging as hf_logging

        hf_logging.set_verbosity(self._level)


def _attention(config: Any) -> str:
    # Gemma 2 caps its attention scores, which SDPA cannot.
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


@dataclass(frozen=True)
class Family:
    """How one family of models embeds, masks and runs its blocks."""

    causal: bool
    embed: Callable[[Any, Tensor], Tensor]
    context: Callable[[Any, Tensor, Tensor], Context]
    blocks: Callable[[Any], nn.ModuleList]
    block: Callable[[nn.Module, Tensor, Tensor | None, Rotary | None], Tensor]
    final_norm: Callable[[Any], nn.Module]
    kind: Callable[[Any, int], str]
    last_row: Callable[[nn.Module, Tensor, Tensor, Rotary | None], Tensor] | None = None
    embed_types: Callable[[Any, Tensor, Tensor], Tensor] | None = None


def family_of(config: Any) -> Family:
    """The family of a configuration; SettingError names the known ones."""
    if config.model_type not in FAMILIES:
        raise SettingError(
            f"The backbone is of the family '{config.model_type}', which Tagsmith does not know. "
            f"Known families: {', '.join(sorted(FAMILIES))}. Choose a backbone of one of them."
        )
    return FAMILIES[config.model_type]


# ---- Llama and its relatives: rotary positions, pre-norm, gated MLP


def _llama_context(trunk: Any, hidden_BLD: Tensor, lengths_B: Tensor) -> Context:
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    config = trunk.config
    positions_1L = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)[None]
    arguments = {"config": config, "inputs_embeds": hidden_BLD, "attention_mask": None, "past_key_values": None}
    makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
    masks, rotary = {}, {}
    for kind in {_kind(config, i) for i in range(config.num_hidden_layers)}:
        masks[kind] = makers[kind](**arguments, position_ids=positions_1L)
        by_kind = (kind,) if hasattr(trunk.rotary_emb, f"{kind}_inv_freq") else ()
        rotary[kind] = trunk.rotary_emb(hidden_BLD, positions_1L, *by_kind)
    return Context(lengths_B, masks, rotary)


def _kind(config: Any, i: int) -> str:
    """`sliding_attention` or `full_attention`; Mistral slides in every block and has no list of kinds."""
    if getattr(config, "layer_types", None):
        return config.layer_types[i]
    return "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"


def _llama_block(block: nn.Module, hidden_BLD: Tensor, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
    return block(hidden_BLD, attention_mask=mask, position_embeddings=rotary)


def _llama_last_row(block: Any, hidden_BLD: Tensor, lengths_B: Tensor, rotary: Rotary | None) -> Tensor:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    assert rotary is not None
    attention = block.self_attn
    normed_BLD = block.input_layernorm(hidden_BLD)
    keys = _heads(attention.k_proj(normed_BLD), attention.head_dim, getattr(attention, "k_norm", None))
    values = _heads(attention.v_proj(normed_BLD), attention.head_dim, None)
    queries = _heads(
        attention.q_proj(_last(normed_BLD, lengths_B)), attention.head_dim, getattr(attention, "q_norm", None)
    )
    cos_1LH, sin_1LH = rotary
    at = lengths_B - 1
    _, keys = apply_rotary_pos_emb(keys, keys, cos_1LH, sin_1LH)
    _, queries = apply_rotary_pos_emb(queries, queries, cos_1LH[0, at][:, None], sin_1LH[0, at][:, None])
    dropped = attention.attention_dropout if attention.training else 0.0
    attended_BD = _attend_to_all(queries, keys, values, lengths_B, scale=attention.scaling, dropout=dropped)
    hidden_BD = _last(hidden_BLD, lengths_B)[:, 0] + attention.o_proj(attended_BD)
    return hidden_BD + block.mlp(block.post_attention_layernorm(hidden_BD))


# ---- GPT-2: learned positions, pre-norm


def _gpt2_embed(trunk: Any, ids_BL: Tensor) -> Tensor:
    positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    return trunk.drop(trunk.wte(ids_BL) + trunk.wpe(positions_L))


def _plain_context(trunk: Any, hidden_BLD: Tensor, lengths_B: Tensor) -> Context:
    from transformers.masking_utils import create_causal_mask

    mask = create_causal_mask(config=trunk.config, inputs_embeds=hidden_BLD, attention_mask=None, past_key_values=None)
    return Context(lengths_B, {"full_attention": mask}, {"full_attention": None})


def _gpt2_last_row(block: Any, hidden_BLD: Tensor, lengths_B: Tensor, rotary: Rotary | None) -> Tensor:
    attention, width = block.attn, hidden_BLD.shape[-1]
    normed_BLD = block.ln_1(hidden_BLD)
    # One product for all three: a packed weight cannot be cut into its parts.
    queries_BLD, keys_BLD, values_BLD = attention.c_attn(normed_BLD).split(width, dim=-1)
    keys, values = (_heads(part, attention.head_dim, None) for part in (keys_BLD, values_BLD))
    queries = _heads(_last(queries_BLD, lengths_B), attention.head_dim, None)
    dropped = attention.attn_dropout.p if attention.training else 0.0
    attended_BD = _attend_to_all(queries, keys, values, lengths_B, scale=attention.scaling, dropout=dropped)
    hidden_BD = _last(hidden_BLD, lengths_B)[:, 0] + attention.resid_dropout(attention.c_proj(attended_BD))
    return hidden_BD + block.mlp(block.ln_2(hidden_BD))


# ---- BERT, RoBERTa: learned positions, post-norm, both directions


def _bert_embed(trunk: Any, ids_BL: Tensor) -> Tensor:
    return _bert_embed_types(trunk, ids_BL, torch.zeros_like(ids_BL))


def _bert_embed_types(trunk: Any, ids_BL: Tensor, types_BL: Tensor) -> Tensor:
    # RoBERTa numbers its positions from the pad id on; texts are padded on the right, so no pad shifts them.
    first = trunk.config.pad_token_id + 1 if "roberta" in trunk.config.model_type else 0
    positions_1L = torch.arange(first, first + ids_BL.shape[1], device=ids_BL.device)[None]
    return trunk.embeddings(input_ids=ids_BL, position_ids=positions_1L, token_type_ids=types_BL)


def _bert_context(trunk: Any, hidden_BLD: Tensor, lengths_B: Tensor) -> Context:
    from transformers.masking_utils import create_bidirectional_mask

    mask = create_bidirectional_mask(
        config=trunk.config, inputs_embeds=hidden_BLD, attention_mask=_real(hidden_BLD, lengths_B)
    )
    return Context(lengths_B, {"full_attention": mask}, {"full_attention": None})


# ---- ModernBERT: rotary positions, pre-norm, local and global attention


def _modernbert_context(trunk: Any, hidden_BLD: Tensor, lengths_B: Tensor) -> Context:
    from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

    positions_1L = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)[None]
    real_BL = _real(hidden_BLD, lengths_B)
    makers = {
        "full_attention": create_bidirectional_mask,
        "sliding_attention": create_bidirectional_sliding_window_mask,
    }
    kinds = set(trunk.config.layer_types)
    masks = {k: makers[k](config=trunk.config, inputs_embeds=hidden_BLD, attention_mask=real_BL) for k in kinds}
    return Context(lengths_B, masks, {k: trunk.rotary_emb(hidden_BLD, positions_1L, k) for k in kinds})


# ---- shared


def _real(hidden_BLD: Tensor, lengths_B: Tensor) -> Tensor | None:
    """A mask `(B, L)` of the real tokens; None where no text is padded."""
    if bool((lengths_B == hidden_BLD.shape[1]).all()):
        return None
    return torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)[None] < lengths_B[:, None]


def _last(hidden_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """The state of each text's last token, `(B, 1, D)`."""
    return hidden_BLD[torch.arange(len(lengths_B), device=hidden_BLD.device), lengths_B - 1][:, None]


def _heads(flat: Tensor, head_dim: int, norm: nn.Module | None) -> Tensor:
    """`(B, L, heads * head_dim)` to `(B, heads, L, head_dim)`, normed per head where the family does (Qwen3)."""
    split = flat.unflatten(-1, (-1, head_dim))
    return (split if norm is None else norm(split)).transpose(1, 2)


def _attend_to_all(
    queries: Tensor, keys: Tensor, values: Tensor, lengths_B: Tensor, *, scale: float, dropout: float
) -> Tensor:
    """Attention of one query per text over all its tokens, `(B, heads * head_dim)`."""
    real_BL = torch.arange(keys.shape[2], device=keys.device)[None] < lengths_B[:, None]
    attended = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=real_BL[:, None, None],
        scale=scale,
        dropout_p=dropout,
        enable_gqa=keys.shape[1] != queries.shape[1],
    )
    return attended.transpose(1, 2).flatten(1)


def _full(config: Any, i: int) -> str:
    return "full_attention"


_LLAMA = Family(
    causal=True,
    embed=lambda trunk, ids_BL: trunk.embed_tokens(ids_BL),
    context=_llama_context,
    blocks=lambda trunk: trunk.layers,
    block=_llama_block,
    final_norm=lambda trunk: trunk.norm,
    kind=_kind,
    last_row=_llama_last_row,
)
_GEMMA = Family(
    causal=True,
    embed=_LLAMA.embed,
    context=_llama_context,
    blocks=_LLAMA.blocks,
    block=_llama_block,
    final_norm=_LLAMA.final_norm,
    kind=_kind,
)
_GPT2 = Family(
    causal=True,
    embed=_gpt2_embed,
    context=_plain_context,
    blocks=lambda trunk: trunk.h,
    block=lambda block, hidden_BLD, mask, rotary: block(hidden_BLD, attention_mask=mask),
    final_norm=lambda trunk: trunk.ln_f,
    kind=_full,
    last_row=_gpt2_last_row,
)
_BERT = Family(
    causal=False,
    embed=_bert_embed,
    embed_types=_bert_embed_types,
    context=_bert_context,
    blocks=lambda trunk: trunk.encoder.layer,
    block=lambda block, hidden_BLD, mask, rotary: block(hidden_BLD, attention_mask=mask),
    final_norm=lambda trunk: nn.Identity(),
    kind=_full,
)
_MODERNBERT = Family(
    causal=False,
    embed=lambda trunk, ids_BL: trunk.embeddings(input_ids=ids_BL),
    context=_modernbert_context,
    blocks=lambda trunk: trunk.layers,
    block=_llama_block,
    final_norm=lambda trunk: trunk.final_norm,
    kind=_kind,
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": _GPT2,
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "modernbert": _MODERNBERT,
}
