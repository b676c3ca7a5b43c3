"""Attention among texts that lie one after the other in a single row, so that nothing else computes padding.

Axes: T tokens of a row, B texts, L positions of the longest, H heads, d size of one.

Linear layers, norms and MLPs do not care which text a token belongs to; attention alone does. transformers' blocks hand
whatever stands in the place of a mask on to the attention function that the configuration names: here it may be a
`Ragged`, which says where texts begin, and no state lies outside of the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from tagsmith.model.dropout import dropped
from tagsmith.model.layout import Layout

NAME = "tagsmith"
"""Under which transformers knows `attend`."""


@dataclass(frozen=True)
class Reach:
    """How many tokens before and after itself a token sees; None is all of them."""

    before: int | None = None
    after: int | None = None


CAUSAL, EVERYTHING = Reach(after=0), Reach()


@dataclass(frozen=True, eq=False)
class Ragged:
    """Stands in the place of a mask: where texts lie in a row, and what their tokens see.

    `default` is what a block sees where it is given no mask: everything, or everything before.
    """

    layout: Layout
    reach: Reach
    default: Reach

    @cached_property
    def mask(self) -> Tensor | None:
        """The same for the rectangle around the texts."""
        return mask_of(self.layout, self.reach, default=self.default)


def mask_of(layout: Layout, reach: Reach, *, default: Reach) -> Tensor | None:
    """Which positions of a rectangle see which, `(B or 1, 1, L, L)` bool; None where it is what `default` says."""
    longest = layout.longest
    before, after = (None if far is None or far >= longest - 1 else far for far in (reach.before, reach.after))
    # What stands behind a text is hidden already from tokens that see nothing after them.
    hides = after != 0 and not bool(layout.real.all())
    if not hides and Reach(before, after) == default:
        return None
    at_L = torch.arange(longest, device=layout.lengths_B.device)
    ahead_LL = at_L[None] - at_L[:, None]
    seen_LL = torch.ones_like(ahead_LL, dtype=torch.bool)
    if before is not None:
        seen_LL &= ahead_LL >= -before
    if after is not None:
        seen_LL &= ahead_LL <= after
    if not hides:
        return seen_LL[None, None]
    # Padding may look anywhere: a row that sees nothing would be no number.
    return (seen_LL & layout.real[:, None] | ~layout.real[:, :, None])[:, None]


def use_attention(config: Any) -> None:
    """Let the blocks of a Hugging Face configuration compute their attention by `attend`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    config._attn_implementation = NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Ragged | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: `(1, H, T, d)` with a `Ragged`, `(B, H, L, d)` with a mask or none.

    Gives `(1, T, H, d)` or `(B, L, H, d)`. On a GPU ragged texts go through a kernel that knows their lengths; where
    there is none, attention alone is computed in the rectangle around them.
    """
    options |= {"dropout": dropout, "scaling": scaling, "softcap": softcap}
    if not isinstance(attention_mask, Ragged):
        return _in_rectangle(module, query, key, value, attention_mask, **options), None
    if softcap is None and dropout == 0 and has_kernel(query):
        return _in_kernel(query, key, value, attention_mask, scaling=scaling), None
    layout = attention_mask.layout
    query, key, value = (layout.as_rectangle(states) for states in (query, key, value))
    lines = _in_rectangle(module, query, key, value, attention_mask.mask, **options)
    return layout.as_row(lines), None


def _in_rectangle(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Tensor:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if options["softcap"] is None:
        if _is_short(query):
            causal = getattr(module, "is_causal", False) and mask is None
            return _written_out(query, key, value, mask, causal=causal, **options)
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    # Gemma 2 caps its attention scores, which SDPA cannot.
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    added = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    added = added.masked_fill(~mask, torch.finfo(query.dtype).min)
    return eager_attention_forward(module, query, key, value, added, **options)[0]


def _is_short(query: Tensor) -> bool:
    """Whether plain products beat SDPA's kernel on the CPU: going back, and in bf16, up to some 100 tokens.

    Measured on two cores with 16 texts of 11 tokens: 0.9 against 4.9 ms there and back, of 40 tokens 3.3 against 12.
    """
    pays = query.requires_grad or _dtype_of(query) == torch.bfloat16
    return query.device.type == "cpu" and query.shape[2] <= SHORT and pays


SHORT = 96


def _written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    dropout: float,
    scaling: float | None,
    **_: Any,
) -> Tensor:
    """Attention by two products and a softmax in fp32; heads that share keys stand below one another."""
    texts, heads, length, size = query.shape
    shared, longest = key.shape[1], key.shape[2]
    stacked = query.reshape(texts, shared, -1, size)
    scores = (stacked @ key.transpose(-1, -2)).float() * (size**-0.5 if scaling is None else scaling)
    scores = scores.view(texts, heads, length, longest)
    if causal:
        mask = torch.ones(length, longest, dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    shares = dropped(scores.softmax(-1), dropout).to(value.dtype)
    attended = shares.view(texts, shared, -1, longest) @ value
    return attended.view(texts, heads, length, size).transpose(1, 2)


def _in_kernel(query: Tensor, key: Tensor, value: Tensor, ragged: Ragged, *, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    dtype, layout, reach = _dtype_of(query), ragged.layout, ragged.reach
    query, key, value = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    shared = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _kernel_options() else {}
    if shared > 1 and not options:  # before torch 2.12 each head has keys of its own
        key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
    options |= {
        "scale": scaling,
        "window_size": tuple(-1 if far is None else far for far in (reach.before, reach.after)),
    }
    found = varlen_attn(query, key, value, layout.offsets, layout.offsets, layout.longest, layout.longest, **options)
    assert isinstance(found, Tensor), "nothing beside it was asked for"
    return found[None]


def has_kernel(query: Tensor) -> bool:
    """Whether attention over unequal lengths has a kernel here: on CUDA, in half precision, from torch 2.11 on."""
    return (
        query.is_cuda
        and _dtype_of(query) in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and _is_ampere(query.device.index)
        and "window_size" in _kernel_options()
    )


def _dtype_of(query: Tensor) -> torch.dtype:
    # Rotated queries come in fp32 out of autocast, which knows SDPA and does not know this kernel.
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


@cache
def _kernel_options() -> frozenset[str]:
    from torch.nn.attention import varlen

    return frozenset(signature(varlen.varlen_attn).parameters)


@cache
def _is_ampere(index: int | None) -> bool:
    return torch.cuda.get_device_capability(index) >= (8, 0)
