"""The chunk-parallel form of linear attention: matrix products within chunks, a loop over chunks.

With G the sum of log decays and S_0 the state before a chunk (Yang et al. 2023, arXiv:2312.06635;
2024, arXiv:2406.06484 and arXiv:2412.06464):

    o_t = sum_{s<=t} (q_t . e^{G_t-G_s} k_s) u_s + (e^{G_t} q_t) S_0
    S_L = e^{G_L} S_0 + sum_s (e^{G_L-G_s} k_s) u_s^T

where u = v, or, for the delta rules, u = W_v - W_k S_0 with the solution of the triangular system
(I + M) [W_v, W_k] = [b v, b e^G k],  M_ts = b_t (k_t . e^{G_t-G_s} k_s) for s < t.

No exponent is a difference of sums: the decay over (s, t] is split at a point between s and t into
two factors, each the exponential of a sum of its own, at the levels of a binary tree.  Both are
at most 1, so nothing overflows, and a decay of -30 or -inf is as exact as none.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

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
    length = min(_power_of_two(chunk_size), _power_of_two(time))

    def chunks(packed: Tensor, heads: int) -> Tensor:
        """Cut [B, T, heads * D] into [B, heads, chunks, length, D]."""
        padded = F.pad(packed.to(state_dtype(query)), (0, 0, 0, -time % length))
        cut = padded.view(batch, -1, length, heads, packed.shape[-1] // heads)
        return cut.permute(0, 3, 1, 2, 4)

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
        k_start, k_end = k * g.cumsum(-2).exp(), k * _sums_to_end(g).exp()
        q_start = q * g.cumsum(-2).exp()[..., None, :, :]
        kept = g.sum(-2).exp()[..., None].unbind(2)
    if b is None:
        scores, new, old = _scores(q, k, g), v, None
    else:
        both = _scores(torch.cat((q, k[..., None, :, :]), -3), k, g)
        scores = both[..., :-1, :, :]
        new, carried = _solve_delta(b * both[..., -1, :, :], b * v, b * k_start)
        old = carried.unbind(2)
    states, updates = [], []
    for n, (k_n, update) in enumerate(zip(k_end.mT.unbind(2), new.unbind(2), strict=True)):
        states.append(state)
        updates.append(update if old is None else update - old[n] @ state)
        state = (state if kept is None else state * kept[n]) + k_n @ updates[-1]
    u, before = (torch.stack(x, 2)[..., None, :, :] for x in (updates, states))
    return scores @ u + q_start @ before, state


def _solve_delta(m: Tensor, v: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (I + M) [new, old] = [v, k], M being `m` below its diagonal."""
    rhs = torch.cat((v, k), -1)
    solved = torch.linalg.solve_triangular(m, rhs, upper=False, unitriangular=True)
    new, old = solved.split((v.shape[-1], k.shape[-1]), -1)
    return new, old


def _sums_to_end(g: Tensor) -> Tensor:
    """Sum `g` over (t, end] for each t."""
    return F.pad(g[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def _scores(x: Tensor, k: Tensor, g: Tensor | None) -> Tensor:
    """Return x_t . (decay over (s, t]) k_s for s <= t, and 0 for s > t.

    Args:
        x: [..., group, length, dk].
        k: [..., length, dk].
        g: [..., length, 1 or dk], or None.

    Returns:
        [..., group, length, length]
    """
    k = k[..., None, :, :]
    if g is None:
        return (x @ k.mT).tril()
    g = g[..., None, :, :]
    if g.shape[-1] > 1:
        return _decayed_scores(x, k, g)
    ones = torch.ones_like(g)
    return x @ k.mT * _decayed_scores(ones, ones, g)


def _decayed_scores(x: Tensor, k: Tensor, g: Tensor) -> Tensor:
    """Build the scores of blocks of one token, then of blocks twice as long, until one is left.

    `since` sums the log decays from the start of a block to each token, the token's own included;
    `until` sums those after each token to the end of the block.
    """
    scores = (x * k).sum(-1)[..., None, None]  # [..., blocks, size, size]
    since, until = g[..., None, :], torch.zeros_like(g)[..., None, :]  # [..., blocks, size, dk]
    while (size := scores.shape[-1]) < x.shape[-2]:
        first, second = _halves(scores)
        since1, since2 = _halves(since)
        until1, until2 = _halves(until)
        early, late = (torch.unflatten(y, -2, (-1, 2, size)).unbind(-3) for y in (k, x))
        across = (late[1] * since2.exp()) @ (early[0] * until1.exp()).mT
        scores = torch.cat(
            (
                torch.cat((first, torch.zeros_like(first)), -1),
                torch.cat((across, second), -1),
            ),
            -2,
        )
        until = torch.cat((until1 + since2[..., -1:, :], until2), -2)
        since = torch.cat((since1, since2 + since1[..., -1:, :]), -2)
    return scores.squeeze(-3)


def _halves(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Split [..., 2n, size, D] into the first and the second block of each pair."""
    first, second = torch.unflatten(blocks, -3, (-1, 2)).unbind(-3)
    return first, second


def _power_of_two(n: int) -> int:
    """Round `n` up to a power of two, at least 1."""
    return 1 << max(n - 1, 0).bit_length()
