"""The library's recurrences in plain Python, and the operators that say the same.

The library computes selective scans and delta rules in chunks or in loops over tokens.  A tracer
unrolls them and fixes the number of tokens, so each is exchanged while a module is traced.
`MIXERS` is the whole table: the name that a function bears in the library's model files, where
several families have a copy of it each, or that of a class and its method, and the function that
replaces it.  Both are run and compared before the replacement is used (`replace`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio.ops import diagonal_ssm, linear_attention


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Tensor:
    """Mamba: h <- e^{dt A} h + dt B x, y = (C h + D x) silu(z), for each channel by itself.

    `hidden_states`, `dt` and `z` are [B, D, T], `A` is [D, N], `B` and `C` are [B, N, T].

    Source: Gu and Dao 2023, arXiv:2312.00752.
    """
    _refuse_states(None, return_last_state)
    bias = None if delta_bias is None else delta_bias[:, None]
    dt = _step_size(dt, bias, softplus=delta_softplus)
    u, A, delta, write, read = _wide(hidden_states, A, dt, B, C)
    u, delta, write, read = (x.transpose(1, 2) for x in (u, delta, write, read))
    y, _state = diagonal_ssm(u, A, write, read, delta)
    y = y.transpose(1, 2)
    y = y if D is None else y + hidden_states * D[:, None]
    return y if z is None else y * F.silu(z)


def chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: Any,
) -> Tensor:
    """Mamba-2: S <- e^{dt A} S + B (dt x)^T, y = S^T C + D x, one decay per head.

    `hidden_states` is [B, T, H, P], `dt` [B, T, H], `A` and `D` [H], `B` and `C` [B, T, G, N] for
    G groups of heads.

    Source: Dao and Gu 2024, arXiv:2405.21060.
    """
    del chunk_size
    _refuse_states(initial_states, return_final_states)
    heads, size = hidden_states.shape[2:]
    dt = _step_size(dt, dt_bias, softplus=dt_softplus).clamp(*dt_limit)
    x, dt, A, B, C = _wide(hidden_states, dt, A, B, C)
    scanned, _state = linear_attention(
        _per_head(C, heads),
        _per_head(B, heads),
        (x * dt[..., None]).flatten(2),
        decay=dt * A,
        update_rule="gated",
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=1.0,
    )
    y = torch.unflatten(scanned, -1, (heads, size))
    return y if D is None else y + D[..., None] * x


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """Gated delta rule: S <- e^g S + beta k (v - e^g S^T k)^T, o = S^T q / sqrt(K).

    `query` and `key` are [B, T, Hk, K], `value` [B, T, H, V], `g` and `beta` [B, T, H]; each key
    head serves the H / Hk value heads that follow each other.

    Source: Yang et al. 2024, arXiv:2412.06464.
    """
    _refuse_states(initial_state, output_final_state)
    heads, size = value.shape[2:]
    q, k, v, decay, rate = _wide(query, key, value, g, beta)
    if use_qk_l2norm_in_kernel:
        q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    output, _state = linear_attention(
        _per_head(q, heads),
        _per_head(k, heads),
        v.flatten(2),
        decay=decay,
        beta=rate,
        update_rule="gated_delta",
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=query.shape[-1] ** -0.5,
        chunk_size=chunk_size,
    )
    return torch.unflatten(output, -1, (heads, size)).to(query.dtype), None


def kimi_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, **given: Any
) -> tuple[Tensor, None]:
    """Kimi delta attention: the gated delta rule with a decay for each channel of the keys.

    Shapes are those of `gated_delta_rule`, but `g` is [B, T, H, K].

    Source: Kimi Team 2025, arXiv:2510.26692, equation 1.
    """
    return gated_delta_rule(query, key, value, g.flatten(2), beta, **given)


def lightning_attention(
    self: Any, hidden_states: Tensor, *_: Any, attention_mask: Tensor | None = None, **__: Any
) -> tuple[Tensor, Tensor]:
    """Lightning attention: S <- e^{-s} S + k v^T, o = S^T q, with a fixed slope s for each head.

    `self` is the layer, `hidden_states` [B, T, D].

    Source: Qin et al. 2024, arXiv:2401.04658, equations 3 and 4.
    """
    del attention_mask  # rows are given without padding
    heads = self.num_attention_heads
    packed = self.act_fn(self.qkv_proj(hidden_states)).unflatten(-1, (heads, -1))
    q, k, v = (x.flatten(2) for x in torch.split(packed, self.head_dim, dim=3))
    decay = -self.slope_rate.reshape(heads).to(q.dtype) + torch.zeros_like(q[..., :1])
    output, state = linear_attention(
        q,
        k,
        v,
        decay=decay,
        update_rule="gated",
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=1.0,
    )
    gate = F.sigmoid(self.output_gate(hidden_states))
    return self.out_proj(gate * self.norm(output)), state


def gated_linear_recurrence(
    self: Any, hidden_states: Tensor, recurrent_gate: Tensor, reset: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, Tensor]:
    """RG-LRU: h <- a h + x for each channel by itself, a being 0 where a sequence starts.

    `hidden_states` and `recurrent_gate` are [B, T, D], `reset` is [B, T, 1].

    Source: De et al. 2024, arXiv:2402.19427, equation 4.
    """
    del self
    x, gate = _wide(hidden_states, recurrent_gate * ~reset)
    ones, size = torch.ones_like(x), x.shape[-1]
    output, _state = linear_attention(
        ones,
        x,
        ones,
        decay=gate.clamp_min(torch.finfo(gate.dtype).tiny).log(),
        update_rule="gated",
        q_num_heads=size,
        kv_num_heads=size,
        scale=1.0,
    )
    return output.to(hidden_states.dtype), output[:, -1]


def _step_size(dt: Tensor, bias: Tensor | None, *, softplus: bool) -> Tensor:
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    return F.softplus(dt) if softplus else dt


def _wide(*tensors: Tensor) -> list[Tensor]:
    """In float32, in which the library computes them; in float64 where the model runs so."""
    wide = any(x.dtype == torch.float64 for x in tensors)
    return [x.to(torch.float64 if wide else torch.float32) for x in tensors]


def _per_head(x: Tensor, heads: int) -> Tensor:
    """[B, T, G, N] packed for each head as [B, T, heads N], a group serving those in its place."""
    groups = x.shape[2]
    if groups != heads:
        x = x[:, :, :, None].expand(-1, -1, -1, heads // groups, -1)
    return x.flatten(2)


def _refuse_states(given: Tensor | None, wanted: object) -> None:
    if given is not None or wanted:
        raise TypeError("it is asked for a state, which a graph in training form has not")


MIXERS: Mapping[str, Callable[..., Any]] = {
    "mamba_selective_scan": selective_scan,
    "mamba2_chunk_scan": chunk_scan,
    "torch_chunk_gated_delta_rule": gated_delta_rule,
    "chunk_kimi_delta_attention": kimi_delta_rule,
    "MiniMaxLightningAttention.forward": lightning_attention,
    "RecurrentGemmaRglru._rnn_scan": gated_linear_recurrence,
}
