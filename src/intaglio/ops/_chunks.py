"""Products of tokens within a chunk, with the decay between them; whole chunks of a sequence.

No exponent is a difference of sums: the decay over (s, t] is split at a point between s and t into
two factors, each the exponential of a sum of its own, at the levels of a binary tree.  Both are
at most 1, so nothing overflows, and a decay of -30 or -inf is as exact as none.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def cut(packed: Tensor, heads: int, length: int) -> Tensor:
    """Cut [B, T, heads * D] into [B, heads, chunks, length, D], zeros after the last token."""
    batch, time, width = packed.shape
    padded = F.pad(packed, (0, 0, 0, -time % length))
    return padded.view(batch, -1, length, heads, width // heads).permute(0, 3, 1, 2, 4)


def sums_to_end(g: Tensor) -> Tensor:
    """Sum `g` over (t, end] for each t."""
    return F.pad(g[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def scores(x: Tensor, k: Tensor, g: Tensor | None) -> Tensor:
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


def power_of_two(n: int) -> int:
    """Round `n` up to a power of two, at least 1."""
    return 1 << max(n - 1, 0).bit_length()
