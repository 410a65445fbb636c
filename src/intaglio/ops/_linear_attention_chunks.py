"""The chunk-parallel form of linear attention: matrix products within chunks, a loop over chunks.

With G the sum of log decays and S_0 the state before a chunk (Yang et al. 2023, arXiv:2312.06635;
2024, arXiv:2406.06484 and arXiv:2412.06464):

    o_t = sum_{s<=t} (q_t . e^{G_t-G_s} k_s) u_s + (e^{G_t} q_t) S_0
    S_L = e^{G_L} S_0 + sum_s (e^{G_L-G_s} k_s) u_s^T

where u = v, or, for the delta rules, u = W_v - W_k S_0 with the solution of the triangular system
(I + M) [W_v, W_k] = [b v, b e^G k],  M_ts = b_t (k_t . e^{G_t-G_s} k_s) for s < t.
"""

import torch
from torch import Tensor

from ._chunks import cut, power_of_two, scores, sums_to_end
from ._linear_attention_check import check, state_dtype


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    update_rule: str,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Compute `linear_attention` by chunks, in differentiable operations of PyTorch.

    Whole chunks are made by padding with tokens of key 0, decay 0 and beta 0, which leave the
    state alone.
    """
    check(query, key, value, past_state, decay, beta, update_rule, q_num_heads, kv_num_heads)
    batch, time, _ = query.shape
    length = min(power_of_two(chunk_size), power_of_two(time))

    def chunks(packed: Tensor, heads: int) -> Tensor:
        return cut(packed.to(state_dtype(query)), heads, length)

    k, v = chunks(key, kv_num_heads), chunks(value, kv_num_heads)
    state = past_state
    if state is None:
        state = k.new_zeros(batch, kv_num_heads, k.shape[-1], v.shape[-1])
    if time == 0:
        return query.new_empty(batch, 0, q_num_heads * v.shape[-1]), state.clone()
    q = chunks(query, q_num_heads) * (scale or k.shape[-1] ** -0.5)
    output, state = _run_chunks(
        torch.unflatten(q, 1, (kv_num_heads, -1)).transpose(2, 3),
        k,
        v,
        None if decay is None else chunks(decay, kv_num_heads),
        None if beta is None else chunks(beta, beta.shape[-1]),
        state,
    )
    output = output.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, q_num_heads * v.shape[-1])
    return output[:, :time].to(query.dtype).contiguous(), state


def _run_chunks(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, b: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run linear attention over chunks of equal length, a power of two.

    Args:
        q: scaled query [batch, heads, chunks, group, length, dk].
        k: key [batch, heads, chunks, length, dk].
        v: value [batch, heads, chunks, length, dv].
        g: log decay [batch, heads, chunks, length, 1 or dk], or None.
        b: update rate [batch, heads or 1, chunks, length, 1] of the delta rules, or None.
        state: [batch, heads, dk, dv].

    Returns:
        The output [batch, heads, chunks, group, length, dv] and the state after the last chunk.
    """
    k_start, k_end, q_start, kept = k, k, q, None
    if g is not None:
        k_start, k_end = k * g.cumsum(-2).exp(), k * sums_to_end(g).exp()
        q_start = q * g.cumsum(-2).exp()[..., None, :, :]
        kept = g.sum(-2).exp()[..., None].unbind(2)
    if b is None:
        products, new, old = scores(q, k, g), v, None
    else:
        both = scores(torch.cat((q, k[..., None, :, :]), -3), k, g)
        products = both[..., :-1, :, :]
        new, carried = _solve_delta(b * both[..., -1, :, :], b * v, b * k_start)
        old = carried.unbind(2)
    states, updates = [], []
    for n, (k_n, update) in enumerate(zip(k_end.mT.unbind(2), new.unbind(2), strict=True)):
        states.append(state)
        updates.append(update if old is None else update - old[n] @ state)
        state = (state if kept is None else state * kept[n]) + k_n @ updates[-1]
    u, before = (torch.stack(x, 2)[..., None, :, :] for x in (updates, states))
    return products @ u + q_start @ before, state


def _solve_delta(m: Tensor, v: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (I + M) [new, old] = [v, k], M being `m` below its diagonal."""
    rhs = torch.cat((v, k), -1)
    solved = torch.linalg.solve_triangular(m, rhs, upper=False, unitriangular=True)
    new, old = solved.split((v.shape[-1], k.shape[-1]), -1)
    return new, old
