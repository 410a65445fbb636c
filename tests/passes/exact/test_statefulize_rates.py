"""Statefulize: attention and positions of what has several entries for each token."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced import VOCABULARY, Traced, steps_exactly

from intaglio.errors import PassError
from intaglio.passes import pipeline

WIDTH, HEADS, EACH, ROWS = 8, 2, 3, 40
Attend = Callable[["Interleaved", Tensor, Tensor, Tensor], Tensor]


class Interleaved(nn.Module):
    """Three entries for each token, as returns, states and actions are in a Decision Transformer.

    Chen et al. 2021, arXiv:2106.01345, section 3.
    """

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend, self.embed = attend, nn.Embedding(VOCABULARY, EACH * WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.places = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.register_buffer("seen", torch.ones(ROWS, ROWS).tril())

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x = x.reshape(x.shape[0], EACH * x.shape[1], WIDTH)
        if self.attend is with_places:
            x = x + self.places[: x.shape[1]]
        q, k, v = (self.by_head(part) for part in self.qkv(x).chunk(3, -1))
        x = x + self.attend(self, q, k, v).transpose(1, 2).flatten(2)
        y: Tensor = self.out(x.reshape(x.shape[0], -1, EACH, WIDTH)[:, :, 1])
        return y

    def by_head(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (HEADS, -1)).transpose(1, 2)


def fused(_: Interleaved, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def with_places(m: Interleaved, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return fused(m, q, k, v)


def rotated(m: Interleaved, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    turn = torch.arange(q.shape[-2])[:, None] * torch.tensor([1.0, 0.1])
    cos, sin = turn.cos(), turn.sin()

    def rotary(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    return fused(m, rotary(q), rotary(k), v)


def masked_by_table(m: Interleaved, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    time = q.shape[-2]
    mask = m.get_buffer("seen")[:time, :time]
    return (q @ k.mT).masked_fill(mask == 0, -torch.inf).softmax(-1) @ v


def apart(q: Tensor) -> Tensor:
    place = torch.arange(q.shape[-2])
    return place[:, None] - place


def windowed(_: Interleaved, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = (apart(q) >= 0) & (apart(q) < 5)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def by_distance(_: Interleaved, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.where(apart(q) >= 0, -0.3 * apart(q), -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def squared(_: Interleaved, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).square().tril() @ v


def beside_memory(_: Interleaved, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (F.pad(x, (0, 0, 1, 0)) for x in (k, v))
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("kv", ["static", "grow"])
@pytest.mark.parametrize(
    "attend",
    [
        fused,
        with_places,
        rotated,
        masked_by_table,
        windowed,
        by_distance,
        squared,
        beside_memory,
    ],
)
def test_attention_over_several_entries_of_a_token_steps_exactly(
    attend: Attend, kv: Literal["static", "grow"], traced: Traced
) -> None:
    torch.manual_seed(0)
    context = steps_exactly(Interleaved(attend), traced, kv=kv)
    tables = (with_places, masked_by_table)
    assert context.max_context == (ROWS // EACH if attend in tables else None)


def of_all(_: Interleaved, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def one_ahead(_: Interleaved, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=apart(q) >= -1)


@pytest.mark.parametrize("attend", [of_all, one_ahead])
def test_entries_of_later_tokens_are_refused(attend: Attend, traced: Traced) -> None:
    model, context = traced(Interleaved(attend).eval())
    with pytest.raises(PassError, match="later ones"):
        pipeline.run(model, pipeline.standard(), context)
