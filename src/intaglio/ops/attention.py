"""Causal attention with a cache, over all tokens or a sliding window: ONNX `Attention`, opset 25.

    o_t = sum_s softmax_s(scale q_t . k_s) v_s    over s <= t and, with a window w, s > t - w

`Attention` of the standard returns past and new keys one after the other; with a window, only the
last w - 1 of them can be seen again, and only those are carried on.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio import operators
from intaglio.errors import InputError

from .op import Op, Sample


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend from T new tokens to themselves and to P tokens before them.

    Args:
        query: [B, Hq, T, dk].
        key: [B, Hkv, T, dk]; Hq is a multiple of Hkv.
        value: [B, Hkv, T, dv].
        past_key: [B, Hkv, P, dk], the keys before these, P >= 0; None means P = 0.
        past_value: [B, Hkv, P, dv], given together with `past_key`.
        window: how many tokens each query sees, itself included; None means all.
        scale: factor of the scores; None means 1/sqrt(dk).

    Returns:
        The output [B, Hq, T, dv], and keys and values as the past of the next call
        [B, Hkv, N, dk or dv]: past and new ones, N = P + T; with a window the last of them,
        N = min(P + T, window - 1).

    Raises:
        InputError: if an argument does not fit the others; it is named.
    """
    _check(query, key, value, past_key, past_value, window)
    if past_key is not None and past_value is not None:
        key, value = torch.cat((past_key, key), 2), torch.cat((past_value, value), 2)
    time, total = query.shape[2], key.shape[2]
    mask = None
    if window is not None or total > time:
        age = torch.arange(total - time, total, device=query.device)[:, None]
        age = age - torch.arange(total, device=query.device)
        mask = (age >= 0) & (age < (window or total + 1))
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output, *_present(key, value, window)


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `attention` token by token, one query head after the other."""
    _check(query, key, value, past_key, past_value, window)
    if past_key is not None and past_value is not None:
        key, value = torch.cat((past_key, key), 2), torch.cat((past_value, value), 2)
    group = query.shape[1] // key.shape[1]
    past = key.shape[2] - query.shape[2]
    output = query.new_empty(*query.shape[:3], value.shape[-1])
    for head in range(query.shape[1]):
        keys, values = key[:, head // group], value[:, head // group]
        for t in range(query.shape[2]):
            stop = past + t + 1
            start = 0 if window is None else max(0, stop - window)
            scores = torch.einsum("bk,bsk->bs", query[:, head, t], keys[:, start:stop])
            weights = (scores * (scale or query.shape[-1] ** -0.5)).softmax(-1)
            output[:, head, t] = torch.einsum("bs,bsv->bv", weights, values[:, start:stop])
    return output, *_present(key, value, window)


def _present(key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Keep what a later query can see."""
    start = 0 if window is None else max(0, key.shape[2] - (window - 1))
    return key[:, :, start:].clone(), value[:, :, start:].clone()


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor | None,
    past_value: Tensor | None,
    window: int | None,
) -> None:
    if window is not None and window < 1:
        raise InputError(f"window is {window}; a token sees at least itself: at least 1.")
    if (past_key is None) != (past_value is None):
        raise InputError("past_key and past_value are given together, or neither is.")
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dim() != 4:
            raise InputError(f"{name} has the shape {list(x.shape)}; it should be [B, H, T, D].")
    batch, heads, time, size = query.shape
    if heads % key.shape[1]:
        raise InputError(f"query has {heads} heads, not a multiple of the {key.shape[1]} of key.")
    _expect("key", key, [batch, key.shape[1], time, size])
    _expect("value", value, [batch, key.shape[1], time, value.shape[-1]])
    if past_key is not None and past_value is not None:
        _expect("past_key", past_key, [batch, key.shape[1], past_key.shape[2], size])
        shape = [batch, key.shape[1], past_key.shape[2], value.shape[-1]]
        _expect("past_value", past_value, shape)


def _expect(name: str, x: Tensor, shape: list[int]) -> None:
    if list(x.shape) != shape:
        raise InputError(f"{name} has the shape {list(x.shape)}; it should be {shape}.")


def samples(dtype: torch.dtype) -> list[Sample]:
    """Grouped heads, pasts of length 0 and more, windows shorter and longer than the past."""
    generator = torch.Generator().manual_seed(0)

    def sample(time: int, past: int, heads: tuple[int, int], **others: float) -> Sample:
        q_heads, kv_heads, dk, dv = *heads, 8, 6

        def normal(*shape: int) -> Tensor:
            return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)

        return {
            "query": normal(q_heads, time, dk),
            "key": normal(kv_heads, time, dk),
            "value": normal(kv_heads, time, dv),
            "past_key": normal(kv_heads, past, dk),
            "past_value": normal(kv_heads, past, dv),
            **others,
        }

    return [
        sample(5, 0, (2, 2)),
        sample(4, 3, (4, 2)),
        sample(1, 9, (3, 1), scale=0.5),
        sample(6, 2, (2, 2), window=3),
        sample(1, 7, (4, 2), window=4),
        sample(3, 2, (2, 1), window=16),
        sample(3, 0, (2, 2), window=1),
    ]


def _attributes(sample: Sample) -> dict[str, int | float]:
    window, scale = sample.get("window"), sample.get("scale")
    return {
        "is_causal": 1,
        **({} if window is None else {"left_window_size": window - 1}),
        **({} if scale is None else {"scale": scale}),
    }


ATTENTION = Op(
    signature=operators.ATTENTION,
    since=25,
    attributes=_attributes,
    reference=reference,
    forward=attention,
    samples=samples,
    tolerance={
        torch.float64: 1e-12,
        torch.float32: 2e-6,
        torch.float16: 4e-3,
        torch.bfloat16: 3e-2,
    },
    source="ONNX Attention-25; Vaswani et al. 2017, arXiv:1706.03762",
)
