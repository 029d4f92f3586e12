"""One attention for every Transformers model: packed rows without padding, and decoding from a slot cache.

Registered with Transformers under the name `gopd`; the model's own code computes projections, norms and rotary
embeddings, and hands query, key and value here together with a `layout` that says which tokens belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

NAME = "gopd"


Segment = tuple[Tensor, Tensor, Tensor]
"""Query, key and value of neighbouring tokens, [batch, heads, tokens, width]."""


class KeyValueCache:
    """Keys and values of up to `slots` rows that decode side by side; grows in length when it must."""

    def __init__(self, slots: int, length: int) -> None:
        self.slots = slots
        self.length = length
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value store of one layer, [slots, heads, length, width]; made at first use."""
        if index == len(self.keys):
            for stores, like in ((self.keys, key), (self.values, value)):
                stores.append(like.new_zeros((self.slots, like.shape[1], self.length, like.shape[3])))
        return self.keys[index], self.values[index]

    def reserve(self, length: int) -> None:
        """Makes room for rows of `length` tokens, in steps of at least half as much again."""
        if length <= self.length:
            return
        length = max(length, self.length * 3 // 2)
        for stores in (self.keys, self.values):
            stores[:] = [F.pad(store, (0, 0, 0, length - self.length)) for store in stores]
        self.length = length

    def copy(self, source: int, to: int, length: int) -> None:
        """Copies the first `length` tokens of one slot into another."""
        for store in (*self.keys, *self.values):
            store[to, :, :length] = store[source, :, :length]


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Segments end to end in one sequence; with a cache, keys and values are also kept in the given slots.

    `after` names, for each segment, the one whose tokens come before its own (`packing.Packed`); empty: none has one.
    """

    lengths: list[int]
    after: Sequence[int | None] = ()
    cache: KeyValueCache | None = None
    slots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodeLayout:
    """One new token for each of the first `len(positions_B)` slots, at that row's position."""

    cache: KeyValueCache
    positions_B: Tensor
    rows_B: Tensor
    mask_B11L: Tensor

    @classmethod
    def at(cls, cache: KeyValueCache, positions_B: Tensor) -> DecodeLayout:
        """Layout of one decoding step; the additive mask is made once for all layers."""
        length = int(positions_B.max()) + 1
        cache.reserve(length)
        beyond_BL = torch.arange(length, device=positions_B.device) > positions_B.unsqueeze(-1)
        mask_BL = torch.zeros(beyond_BL.shape, device=positions_B.device).masked_fill_(beyond_BL, -torch.inf)
        rows_B = torch.arange(len(positions_B), device=positions_B.device)
        return cls(cache, positions_B, rows_B, mask_BL[:, None, None, :])


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: PackedLayout | DecodeLayout,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: [batch, heads, tokens, width] in, [batch, tokens, heads, width] out."""
    assert attention_mask is None and sliding_window is None, "refused when the model was loaded"
    if isinstance(layout, DecodeLayout):
        return _decode(query, key, value, scaling, layout, module.layer_idx), None
    if layout.cache is not None:
        keys, values = layout.cache.layer(module.layer_idx, key, value)
        pieces = zip(key[0].split(layout.lengths, 1), value[0].split(layout.lengths, 1), strict=True)
        for slot, (row_key, row_value) in zip(layout.slots, pieces, strict=True):
            keys[slot, :, : row_key.shape[1]] = row_key
            values[slot, :, : row_value.shape[1]] = row_value
    parts = (x.split(layout.lengths, 2) for x in (query, key, value))
    segments: list[Segment] = [(q, k, v) for q, k, v in zip(*parts, strict=True)]
    after = layout.after or [None] * len(segments)
    outputs = [
        _causal(*own, scaling, dropout)
        if before is None
        else _continued(segments[before], own, scaling, dropout)
        for own, before in zip(segments, after, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _causal(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, mask: Tensor | None = None
) -> Tensor:
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _continued(before: Segment, own: Segment, scaling: float, dropout: float) -> Tensor:
    """Attention of a segment's queries to the segment before and to its own: [batch, heads, own tokens, width].

    With a mask all pairs are computed; a response longer than its prompt is better off going through the prompt's
    queries again, where the causal half is skipped.
    """
    key, value = torch.cat([before[1], own[1]], 2), torch.cat([before[2], own[2]], 2)
    shared, count = before[0].shape[2], own[0].shape[2]
    if count > shared:
        whole = _causal(torch.cat([before[0], own[0]], 2), key, value, scaling, dropout)
        return whole[:, :, shared:]
    mask = torch.ones(count, shared + count, dtype=torch.bool, device=key.device).tril(shared)
    return _causal(own[0], key, value, scaling, dropout, mask)


def _decode(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: DecodeLayout, layer: int
) -> Tensor:
    keys, values = layout.cache.layer(layer, key, value)
    rows, length = len(layout.positions_B), layout.mask_B11L.shape[-1]
    keys[layout.rows_B, :, layout.positions_B] = key[:, :, 0]
    values[layout.rows_B, :, layout.positions_B] = value[:, :, 0]
    heads, width = query.shape[1], query.shape[3]
    query_BHGD = query.view(rows, keys.shape[1], heads // keys.shape[1], width) * scaling
    scores_BHGL = query_BHGD @ keys[:rows, :, :length].transpose(-1, -2)
    weights_BHGL = (scores_BHGL + layout.mask_B11L).softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights_BHGL @ values[:rows, :, :length]).view(rows, 1, heads, width)


AttentionInterface.register(NAME, attend)
