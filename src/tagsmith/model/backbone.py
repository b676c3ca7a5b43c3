"""One view of every family of LLM: embed, run blocks i to j, final norm. The language-model head is never loaded.

Axes: B texts, L positions, T tokens, D width. Texts are padded on the right, states `(B, L, D)`, or lie one after the
other in a single row, `(1, T, D)`: `Layout` tells one from the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tagsmith.errors import SettingError
from tagsmith.model.attention import CAUSAL, EVERYTHING, Ragged, Reach, mask_of, use_attention
from tagsmith.model.dropout import drop_quickly, dropped
from tagsmith.model.layout import Layout

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Context:
    """What the blocks of one batch share: where its texts lie, and per kind of block a mask and rotary angles."""

    layout: Layout
    masks: dict[str, Tensor | Ragged | None]
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
        self.recomputes = False
        """Whether blocks keep no activations for the backward pass and compute them a second time."""
        self.causal_mask = True
        """Whether tokens of a causal family are kept from seeing what comes after them, as they were in pretraining."""
        self.runs_whole_blocks = False
        """Whether the last block computes all rows in any case: weights that are divided come together at its call."""
        use_attention(trunk.config)

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

    @property
    def causal(self) -> bool:
        """Whether a token sees only what comes before it."""
        return self.family.causal and self.causal_mask

    @property
    def shares_beginnings(self) -> bool:
        """Whether texts that begin alike have equal states there, and nothing but attention looks at whole texts."""
        return self.causal and self.pair_separator_id is None

    def embed(self, ids_BL: Tensor, lengths_B: Tensor | None = None, nodes: Tensor | None = None) -> Tensor:
        """The states `(B, L, D)` that enter the first block; of ids in a single row `(1, T)` with the lengths.

        `nodes` as in `Layout`: beginnings that several texts of the row share stand in it once.
        """
        if lengths_B is None:
            lengths_B = ids_BL.new_full((len(ids_BL),), ids_BL.shape[1])
        layout = Layout(lengths_B, ids_BL.shape, nodes)
        types_BL = torch.zeros_like(ids_BL)
        if self.pair_separator_id is not None:
            separators_BL = (ids_BL == self.pair_separator_id).int()
            before_BL = separators_BL.cumsum(1) - separators_BL
            types_BL = (before_BL - before_BL[:, layout.starts]).clamp(max=1).to(ids_BL.dtype)
        return self.family.embed(self.trunk, ids_BL, layout.positions, types_BL)

    def context(self, hidden_BLD: Tensor, lengths_B: Tensor, nodes: Tensor | None = None) -> Context:
        """Masks and positions for a batch of states in this shape, dtype and device."""
        layout = Layout(lengths_B, hidden_BLD.shape[:2], nodes)
        default = CAUSAL if self.family.causal else EVERYTHING
        masks: dict[str, Tensor | Ragged | None] = {}
        rotary = {}
        for kind in {self.family.kind(self.config, i) for i in range(self.depth)}:
            reach = self.reach(kind)
            masks[kind] = Ragged(layout, reach, default) if layout.ragged else mask_of(layout, reach, default=default)
            rotary[kind] = self.family.rotary(self.trunk, hidden_BLD, layout.positions, kind)
        return Context(layout, masks, rotary)

    def reach(self, kind: str) -> Reach:
        """How many tokens before and after itself a token sees in blocks of a kind."""
        window = self.config.sliding_window if kind == "sliding_attention" else None
        # The window of causal families counts the token itself, ModernBERT's does not.
        far = None if window is None else window - self.family.causal
        return Reach(before=far, after=0 if self.causal else far)

    def run(
        self, hidden_BLD: Tensor, context: Context, *, start: int, stop: int, blocks: nn.ModuleList | None = None
    ) -> Tensor:
        """The states that leave block `stop - 1`, given those that enter block `start`; not normed.

        `blocks` replaces the trunk's own, by an inference copy in another layout say; its first one is block `start`.
        """
        used = self.blocks[start:stop] if blocks is None else blocks[: stop - start]
        for i, block in enumerate(used, start=start):
            kind = self.family.kind(self.config, i)
            hidden_BLD = self._through(self.family.block, block, hidden_BLD, context.masks[kind], context.rotary[kind])
        return hidden_BLD

    def run_last_row(self, hidden_BLD: Tensor, context: Context, block: nn.Module) -> Tensor:
        """What the last block gives for the last token of each text `(B, D)`, at the cost of its keys and values.

        Equal to the whole block within rounding: only one row per text is read by last-token pooling, so that query,
        projections and MLP of the others need not exist. `supports_last_row` says for which families.
        """
        assert self.family.last_row is not None, "call it only where supports_last_row"
        kind = self.family.kind(self.config, self.depth - 1)
        return self._through(self.family.last_row, block, hidden_BLD, context.layout, context.rotary[kind])

    def _through(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """What a block gives; with `recomputes` its activations are not kept, if there will be a backward pass."""
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    def supports_last_row(self, longest: int) -> bool:
        """Whether the last block can run on one row per text of up to `longest` tokens."""
        window = getattr(self.config, "sliding_window", None)
        is_able = self.family.last_row is not None and not self.runs_whole_blocks
        return is_able and (not window or longest <= window)

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
    drop_quickly(trunk)
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


@dataclass(frozen=True)
class Family:
    """How one family of models embeds tokens and runs its blocks.

    `embed` is given ids, positions and types (which text of a pair); `rotary` states, positions and the kind of block.
    """

    causal: bool
    embed: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    rotary: Callable[[Any, Tensor, Tensor, str], Rotary | None]
    blocks: Callable[[Any], nn.ModuleList]
    block: Callable[[nn.Module, Tensor, Tensor | Ragged | None, Rotary | None], Tensor]
    final_norm: Callable[[Any], nn.Module]
    kind: Callable[[Any, int], str]
    last_row: Callable[[nn.Module, Tensor, Layout, Rotary | None], Tensor] | None = None


def family_of(config: Any) -> Family:
    """The family of a configuration; SettingError names the known ones."""
    if config.model_type not in FAMILIES:
        raise SettingError(
            f"The backbone is of the family '{config.model_type}', which Tagsmith does not know. "
            f"Known families: {', '.join(sorted(FAMILIES))}. Choose a backbone of one of them."
        )
    return FAMILIES[config.model_type]


# ---- Llama and its relatives: rotary positions, pre-norm, gated MLP


def _llama_rotary(trunk: Any, hidden_BLD: Tensor, positions: Tensor, kind: str) -> Rotary:
    by_kind = (kind,) if hasattr(trunk.rotary_emb, f"{kind}_inv_freq") else ()
    return trunk.rotary_emb(hidden_BLD, positions, *by_kind)


def _kind(config: Any, i: int) -> str:
    """`sliding_attention` or `full_attention`; Mistral slides in every block and has no list of kinds."""
    if getattr(config, "layer_types", None):
        return config.layer_types[i]
    return "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"


def _llama_block(block: nn.Module, hidden_BLD: Tensor, mask: Tensor | Ragged | None, rotary: Rotary | None) -> Tensor:
    return block(hidden_BLD, attention_mask=mask, position_embeddings=rotary)


def _llama_last_row(block: Any, hidden_BLD: Tensor, layout: Layout, rotary: Rotary | None) -> Tensor:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    assert rotary is not None
    attention = block.self_attn
    normed_BLD = block.input_layernorm(hidden_BLD)
    keys = _heads(attention.k_proj(normed_BLD), attention.head_dim, getattr(attention, "k_norm", None))
    values = _heads(attention.v_proj(normed_BLD), attention.head_dim, None)
    queries = _heads(
        attention.q_proj(normed_BLD[layout.lasts][:, None]), attention.head_dim, getattr(attention, "q_norm", None)
    )
    cos_1LH, sin_1LH = rotary
    _, at_B = layout.lasts
    _, keys = apply_rotary_pos_emb(keys, keys, cos_1LH, sin_1LH)
    _, queries = apply_rotary_pos_emb(queries, queries, cos_1LH[0, at_B][:, None], sin_1LH[0, at_B][:, None])
    dropped = attention.attention_dropout if attention.training else 0.0
    attended_BD = _attend_to_all(queries, keys, values, layout, scale=attention.scaling, dropout=dropped)
    hidden_BD = hidden_BLD[layout.lasts] + attention.o_proj(attended_BD)
    return hidden_BD + block.mlp(block.post_attention_layernorm(hidden_BD))


# ---- GPT-2: learned positions, pre-norm


def _gpt2_embed(trunk: Any, ids_BL: Tensor, positions: Tensor, types_BL: Tensor) -> Tensor:
    return trunk.drop(trunk.wte(ids_BL) + trunk.wpe(positions))


def _gpt2_last_row(block: Any, hidden_BLD: Tensor, layout: Layout, rotary: Rotary | None) -> Tensor:
    attention, width = block.attn, hidden_BLD.shape[-1]
    normed_BLD = block.ln_1(hidden_BLD)
    # One product for all three: a packed weight cannot be cut into its parts.
    queries_BLD, keys_BLD, values_BLD = attention.c_attn(normed_BLD).split(width, dim=-1)
    keys, values = (_heads(part, attention.head_dim, None) for part in (keys_BLD, values_BLD))
    queries = _heads(queries_BLD[layout.lasts][:, None], attention.head_dim, None)
    dropped = attention.attn_dropout.p if attention.training else 0.0
    attended_BD = _attend_to_all(queries, keys, values, layout, scale=attention.scaling, dropout=dropped)
    hidden_BD = hidden_BLD[layout.lasts] + attention.resid_dropout(attention.c_proj(attended_BD))
    return hidden_BD + block.mlp(block.ln_2(hidden_BD))


# ---- BERT, RoBERTa: learned positions, post-norm, both directions


def _bert_embed(trunk: Any, ids_BL: Tensor, positions: Tensor, types_BL: Tensor) -> Tensor:
    # RoBERTa numbers its positions from the pad id on; texts are padded on the right, so no pad shifts them.
    first = trunk.config.pad_token_id + 1 if "roberta" in trunk.config.model_type else 0
    return trunk.embeddings(input_ids=ids_BL, position_ids=positions + first, token_type_ids=types_BL)


# ---- ModernBERT: rotary positions, pre-norm, local and global attention


def _modernbert_rotary(trunk: Any, hidden_BLD: Tensor, positions: Tensor, kind: str) -> Rotary:
    return trunk.rotary_emb(hidden_BLD, positions, kind)


# ---- shared


def _heads(flat: Tensor, head_dim: int, norm: nn.Module | None) -> Tensor:
    """`(B, L, heads * head_dim)` to `(B, heads, L, head_dim)`, normed per head where the family does (Qwen3)."""
    split = flat.unflatten(-1, (-1, head_dim))
    return (split if norm is None else norm(split)).transpose(1, 2)


def _attend_to_all(
    queries: Tensor, keys: Tensor, values: Tensor, layout: Layout, *, scale: float, dropout: float
) -> Tensor:
    """Attention of one query per text over all its tokens, `(B, heads * head_dim)`; heads may share keys and values.

    Written out: SDPA's kernel on the CPU took five times as long to go back through a single query.
    """
    keys, values = layout.as_rectangle(keys), layout.as_rectangle(values)
    texts, shared, _, size = keys.shape
    grouped = queries.reshape(texts, shared, -1, size)  # the heads of one key stand side by side, as rows
    scores = (grouped @ keys.transpose(-1, -2)).float() * scale
    shares = scores.masked_fill(~layout.real[:, None, None], -torch.inf).softmax(-1).to(values.dtype)
    return (dropped(shares, dropout) @ values).reshape(texts, -1)


def _full(config: Any, i: int) -> str:
    return "full_attention"


def _no_rotary(trunk: Any, hidden_BLD: Tensor, positions: Tensor, kind: str) -> None:
    return None


_LLAMA = Family(
    causal=True,
    embed=lambda trunk, ids_BL, positions, types_BL: trunk.embed_tokens(ids_BL),
    rotary=_llama_rotary,
    blocks=lambda trunk: trunk.layers,
    block=_llama_block,
    final_norm=lambda trunk: trunk.norm,
    kind=_kind,
    last_row=_llama_last_row,
)
_GEMMA = Family(
    causal=True,
    embed=_LLAMA.embed,
    rotary=_llama_rotary,
    blocks=_LLAMA.blocks,
    block=_llama_block,
    final_norm=_LLAMA.final_norm,
    kind=_kind,
)
_GPT2 = Family(
    causal=True,
    embed=_gpt2_embed,
    rotary=_no_rotary,
    blocks=lambda trunk: trunk.h,
    block=lambda block, hidden_BLD, mask, rotary: block(hidden_BLD, attention_mask=mask),
    final_norm=lambda trunk: trunk.ln_f,
    kind=_full,
    last_row=_gpt2_last_row,
)
_BERT = Family(
    causal=False,
    embed=_bert_embed,
    rotary=_no_rotary,
    blocks=lambda trunk: trunk.encoder.layer,
    block=lambda block, hidden_BLD, mask, rotary: block(hidden_BLD, attention_mask=mask),
    final_norm=lambda trunk: nn.Identity(),
    kind=_full,
)
_MODERNBERT = Family(
    causal=False,
    embed=lambda trunk, ids_BL, positions, types_BL: trunk.embeddings(input_ids=ids_BL),
    rotary=_modernbert_rotary,
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
