"""Statefulize: values of pairs of tokens as papers compute them step exactly, or are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from traced import VOCABULARY, Traced, steps_exactly

from intaglio.errors import PassError
from intaglio.passes import pipeline

WIDTH, HEADS = 8, 2
Weigh = Callable[["Pairs", Tensor, Tensor, Tensor], Tensor]


class Pairs(nn.Module):
    """What `weigh` makes of queries, keys and values of [batch, heads, time, size]."""

    def __init__(self, weigh: Weigh) -> None:
        super().__init__()
        self.weigh = weigh
        self.embed, self.qkv = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.near, self.seen = nn.Embedding(7, WIDTH // HEADS), nn.Embedding(7, WIDTH // HEADS)
        self.heads, self.out = nn.Linear(HEADS, HEADS), nn.Linear(WIDTH, VOCABULARY)
        self.mixed = nn.Conv2d(HEADS, HEADS, 1)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.qkv(self.embed(input_ids)).unflatten(-1, (3, HEADS, -1))
        q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)
        y: Tensor = self.out(self.weigh(self, q, k, v).transpose(1, 2).flatten(2))
        return y


def causal(scores: Tensor) -> Tensor:
    time = scores.shape[-1]
    return scores.masked_fill(torch.ones(time, time).triu(1).bool(), -torch.inf)


def distance(q: Tensor) -> Tensor:
    place = torch.arange(q.shape[-2])
    return (place[:, None] - place).clamp(-3, 3) + 3


def relative(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Shaw et al. 2018, arXiv:1803.02155, equations 3 and 4."""
    far = distance(q)
    scores = q @ k.mT + torch.einsum("bhid,ijd->bhij", q, m.near(far))
    weights = causal(scores).softmax(-1)
    return weights @ v + torch.einsum("bhij,ijd->bhid", weights, m.seen(far))


def disentangled(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """He et al. 2020, arXiv:2006.03654, equation 3."""
    far = distance(q).expand(*q.shape[:2], -1, -1)
    to_place = torch.gather(q @ m.near.weight.mT, -1, far)
    from_place = torch.gather(k @ m.seen.weight.mT, -1, far).mT
    return causal(q @ k.mT + to_place + from_place).softmax(-1) @ v


def talking(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Shazeer et al. 2020, arXiv:2003.02436."""
    scores = torch.einsum("hg,bgij->bhij", m.heads.weight, m.mixed(q @ k.mT))
    weights = causal(scores).softmax(-1)
    return torch.einsum("hg,bgij->bhij", m.heads.weight, weights) @ v


def stick_breaking(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Tan et al. 2024, arXiv:2410.17980, equation 5."""
    del m
    left = nn.functional.logsigmoid(-(q @ k.mT)).tril(-1)
    rest = left.flip(-1).cumsum(-1).flip(-1) - left
    return (nn.functional.logsigmoid(q @ k.mT) + rest).exp().tril(-1) @ v


def toeplitz(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights of each head by distance alone."""
    del k
    place = torch.arange(q.shape[-2])
    by_head = m.heads.weight[0].sigmoid()[:, None, None] ** (place[:, None] - place).clamp(min=0)
    return torch.einsum("hij,bhjd->bhid", by_head.tril(), v)


def kernel(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same for all heads joined, gathered from what is computed for each distance."""
    del k
    place = torch.arange(q.shape[-2])
    far = (place[:, None] - place).clamp(min=0)
    weights = torch.exp(-m.heads.weight[0, 0].exp() * place)[far].tril()
    joined = torch.einsum("ij,bjd->bid", weights, v.transpose(1, 2).flatten(2))
    return torch.unflatten(joined, -1, (HEADS, -1)).transpose(1, 2)


def decays(k: Tensor) -> Tensor:
    """A factor for each pair of tokens and channel: how far sums of the keys are apart."""
    total = nn.functional.logsigmoid(k).cumsum(-2)
    apart: Tensor = (total[..., :, None, :] - total[..., None, :, :]).exp()
    return apart


def by_channel(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Yang et al. 2024, arXiv:2312.06635, equation 4 without its quotient."""
    del m
    later = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
    decay = decays(k).masked_fill(later[:, :, None], 0)
    return torch.einsum("bhid,bhjd,bhijd->bhij", q, k, decay) @ v


@pytest.mark.parametrize(
    "weigh", [relative, disentangled, talking, stick_breaking, toeplitz, kernel, by_channel]
)
def test_weights_of_pairs_step_exactly(weigh: Weigh, traced: Traced) -> None:
    torch.manual_seed(0)
    context = steps_exactly(Pairs(weigh), traced)
    caches = [state for state in context.states if state.axis is not None]
    assert {(len(state.shape), state.axis) for state in caches} == {(4, 2)}
    assert (len(caches) < len(context.states)) is (weigh is by_channel)  # what decays is summed


def all_later(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sums from the last key on, of keys after the query too."""
    del m
    after = (q @ k.mT).sigmoid().flip(-1).cumsum(-1).flip(-1)
    return causal(q @ k.mT - after).softmax(-1) @ v


def mixed_after(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads mixed with an offset, which gives later tokens a weight."""
    weights = causal(q @ k.mT).softmax(-1)
    mixed: Tensor = m.heads(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return mixed @ v


def channels_after(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Factors of channels, of which those of the first leave later tokens."""
    del m
    later = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
    some = torch.arange(q.shape[-1]) > 0
    decay = decays(k).clamp(max=1).masked_fill(later[:, :, None] & some, 0)
    return (q[..., :, None, :] * k[..., None, :, :] * decay).sum(-1) @ v


def from_the_end(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Places before the first, which are counted from the last token back."""
    del m, k
    place = torch.arange(q.shape[-2])
    return (place * 0.1).cos()[place[:, None] - place].tril() @ v


def of_tokens(m: Pairs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Values of tokens, at places that are computed."""
    del m
    place = torch.arange(q.shape[-2])
    return k.sum(-1)[..., (place[:, None] - place).clamp(min=0)].tril() @ v


@pytest.mark.parametrize(
    ("weigh", "reason"),
    [
        (all_later, "later tokens a weight"),
        (mixed_after, "later tokens a weight"),
        (channels_after, "later tokens a weight"),
        (from_the_end, "from the last token back"),
        (of_tokens, "not known to act on each pair|places that are computed"),
    ],
)
def test_what_is_no_weight_of_earlier_tokens_is_refused(
    weigh: Weigh, reason: str, traced: Traced
) -> None:
    model, context = traced(Pairs(weigh).eval())
    with pytest.raises(PassError, match=reason):
        pipeline.run(model, pipeline.standard(), context)
