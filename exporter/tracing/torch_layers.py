"""Layers of torch.nn that cannot be traced as they are, and what says the same.

Tracing unrolls the recurrent layers over the tokens of an example, and attention merges time with
batch.  `LAYERS` is the whole table: the class, and the function that replaces its `forward`, which
takes the layer and the same arguments.  Both run and are compared before the function is used
(`replace`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.ops import rnn

from .replace import Functions, UnreplaceableError


def recurrent(
    layer: nn.RNNBase,
    input: Tensor,  # noqa: A002  the names are PyTorch's
    hx: Tensor | tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
    """LSTM, GRU and RNN of any number of layers, in one direction or both.

    `input` is [B, T, I], or [T, B, I] without `batch_first`, or [T, I]; `hx` [layers, B, H], of an
    LSTM two.  What runs backwards is the same from the last token to the first.
    """
    if not isinstance(input, Tensor):
        raise UnreplaceableError(
            "takes packed sequences: give [batch, time, size], and leave packing to the session, "
            "whose steps take `lengths`"
        )
    given = tuple(hx) if isinstance(hx, tuple | list) else () if hx is None else (hx,)
    alone = input.dim() == 2
    if alone:
        given = tuple(state.unsqueeze(1) for state in given)
    x = input.unsqueeze(0) if alone else input if layer.batch_first else input.transpose(0, 1)
    if not given and not layer.proj_size and isinstance(x.shape[1], int) and x.shape[1] == 1:
        given = _zeros(layer, x)  # as what a loop over tokens calls after the first one
    run = _projected if layer.proj_size else _layer
    ends: list[Tensor] = []
    tops: list[Tensor] = []
    for index in range(layer.num_layers):
        passed = []
        for way in ("", "_reverse") if layer.bidirectional else ("",):
            start = tuple(state[len(ends)] for state in given)
            y, end = run(layer, f"l{index}{way}", x.flip(1) if way else x, start)
            ends.append(end)
            tops.append(y[:, -1])  # h after the last token is what the layer gives for it
            passed.append(y.flip(1) if way else y)
        x = torch.cat(passed, 2) if len(passed) > 1 else passed[0]
    hidden, cells = torch.stack(tops), torch.stack(ends)
    if alone:
        x, hidden, cells = x.squeeze(0), hidden.squeeze(1), cells.squeeze(1)
    output = x if layer.batch_first or alone else x.transpose(0, 1)
    return output, (hidden, cells) if layer.mode == "LSTM" else hidden


def _zeros(layer: nn.RNNBase, x: Tensor) -> tuple[Tensor, ...]:
    """What a layer starts from: h, and c of an LSTM."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    start = x.new_zeros(count, x.shape[0], layer.hidden_size)
    return (start, start) if layer.mode == "LSTM" else (start,)


def _weights(layer: nn.RNNBase, place: str) -> dict[str, Tensor]:
    """The weights of one layer and direction, as ``l0`` or ``l0_reverse``."""
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layer.bias else [])]
    return {name: getattr(layer, f"{name}_{place}") for name in names}


def _layer(
    layer: nn.RNNBase, place: str, x: Tensor, start: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """One layer, and its c after the last token; h of other kinds."""
    past = torch.stack(start, 1) if start else None
    x, end = rnn(x, **_weights(layer, place), past_state=past, mode=layer.mode)
    return x, end[:, -1]


def _projected(
    layer: nn.RNNBase, place: str, x: Tensor, start: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """A layer of an LSTM with ``h = W_hr (o tanh(c))``, and its c after the last token.

    What is carried is ``m = o tanh(c)``, with U W_hr in place of U.  A given h follows from no m,
    so that from one only a single token can be taken, as cells do.
    """
    weights, back = _weights(layer, place), getattr(layer, f"weight_hr_{place}")
    if not start:
        inner = {**weights, "weight_hh": weights["weight_hh"] @ back}
        m, end = rnn(x, **inner, mode=layer.mode)
        return m @ back.T, end[:, 1]
    if not (isinstance(x.shape[1], int) and x.shape[1] == 1):
        raise UnreplaceableError(
            "projects its state (proj_size) and starts from a given one over several tokens: let "
            "it start from zeros, or give it one token in each call"
        )
    h, c = start
    gates = F.linear(x[:, 0], weights["weight_ih"], weights.get("bias_ih"))
    gates = gates + F.linear(h, weights["weight_hh"], weights.get("bias_hh"))
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return F.linear(o.sigmoid() * c.tanh(), back)[:, None], c


def attention(
    layer: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention with heads as an axis of their own: [B, H, T, D].

    Masks mean what they mean there: True, or a number that is added, for what is left out.
    """
    del is_causal  # a hint beside the mask
    if query.dim() != 3:
        raise UnreplaceableError("takes a sequence without a batch: give [batch, time, size]")
    if not layer.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    q, k, v = (_heads(layer, x, place) for place, x in enumerate((query, key, value)))
    mask = _mask(layer, attn_mask, key_padding_mask, q.dtype)
    for k_own, v_own in _own_keys(layer, k):
        k, v = torch.cat((k, k_own), 2), torch.cat((v, v_own), 2)
        mask = None if mask is None else F.pad(mask, (0, 1))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    output = layer.out_proj(mixed.transpose(1, 2).flatten(2))
    weights = None
    if need_weights:  # nodes that nobody reads go
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        weights = (scores if mask is None else scores + mask).softmax(-1)
        weights = weights.mean(1) if average_attn_weights else weights
    return output if layer.batch_first else output.transpose(0, 1), weights


def _heads(layer: nn.MultiheadAttention, x: Tensor, place: int) -> Tensor:
    """Queries, keys or values, by their place: [B, H, T, D]."""
    size, name = layer.embed_dim, ("q", "k", "v")[place]
    rows = slice(place * size, (place + 1) * size)
    stacked = layer.in_proj_weight
    weight = getattr(layer, f"{name}_proj_weight") if stacked is None else stacked[rows]
    bias = None if layer.in_proj_bias is None else layer.in_proj_bias[rows]
    return torch.unflatten(F.linear(x, weight, bias), -1, (layer.num_heads, -1)).transpose(1, 2)


def _own_keys(layer: nn.MultiheadAttention, k: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of a layer's own that stand behind all others, [B, H, 1, D]."""
    found = []
    if layer.bias_k is not None and layer.bias_v is not None:
        heads = (x.view(1, layer.num_heads, 1, -1) for x in (layer.bias_k, layer.bias_v))
        first, second = (x.expand(k.shape[0], -1, -1, -1) for x in heads)
        found.append((first, second))
    if layer.add_zero_attn:
        nothing = torch.zeros_like(k[:, :, :1])
        found.append((nothing, nothing))
    return found


def _mask(
    layer: nn.MultiheadAttention,
    attn_mask: Tensor | None,
    padding: Tensor | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """What is added to scores: [T, T], [B, H, T, T], or [B, 1, 1, T] of padding."""
    added = None if padding is None else _added(padding, dtype)[:, None, None]
    if attn_mask is None:
        return added
    mask = _added(attn_mask, dtype)
    mask = torch.unflatten(mask, 0, (-1, layer.num_heads)) if mask.dim() == 3 else mask
    return mask if added is None else mask + added


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of flags or of numbers as numbers."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
    return mask.to(dtype)


def largest(layer: nn.MaxPool1d, input: Tensor) -> Tensor:  # noqa: A002
    """The largest of each window of `input` [B, C, T]: PyTorch's own fixes T where it is traced."""
    if layer.return_indices:
        raise UnreplaceableError("returns places beside the largest values")
    words = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (
        int(each[0] if isinstance(each, tuple) else each)
        for each in (getattr(layer, word) for word in words)
    )
    pooled: Tensor = F.max_pool2d(
        input.unsqueeze(-2),
        (1, kernel),
        (1, stride),
        (0, padding),
        (1, dilation),
        layer.ceil_mode,
    )
    return pooled.squeeze(-2)


LAYERS: Mapping[type[nn.Module], Callable[..., Any]] = {
    nn.LSTM: recurrent,
    nn.GRU: recurrent,
    nn.RNN: recurrent,
    nn.MultiheadAttention: attention,
    nn.MaxPool1d: largest,
}


FUNCTIONS: Functions = {
    # It looks into a mask for what only another kernel would need to know.
    "_detect_is_causal_mask": lambda mask, is_causal=None, size=None: bool(is_causal),  # noqa: ARG005
}
