"""SplitMemoryKeys: keys of no token are summed over by themselves, or cut off again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced import VOCABULARY, Traced, steps_exactly

from intaglio.errors import PassError
from intaglio.passes import evaluate, pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.split_memory_keys import SplitMemoryKeys

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 1] x) => (float[batch, time, time] y)
      <float[batch, led, 1] z, float[batch, led, led] w, float[batch, led, led] t,
       float[batch, led, led] d, float[batch, time, led] c,
       int64[6] pads = {0, 1, 0, 0, 0, 0}, int64[1] zero = {0}, int64[1] one = {1},
       int64[1] two = {2}, int64[1] end = {9223372036854775807}>
    {
      size = Shape (x)
      tokens = Slice (size, one, two)
      more = Add (tokens, one)
      wide = Concat <axis = 0> (one, one, more)
      z = Pad (x, pads)
      w = Expand (z, wide)
      t = Transpose <perm = [0, 2, 1]> (w)
      d = Sub (w, t)
      c = Slice (d, one, end, one, one)
      y = Slice (c, one, end, two, one)
    }
"""


def led(text: str) -> ir.Model:
    """The graph, in which `led` is one entry more than tokens."""
    model = ir.from_onnx_text(text)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                dims = ["time + 1" if str(dim) == "led" else dim for dim in value.shape]
                value.shape = ir.Shape(dims)
    return model


def behind(model: ir.Model) -> set[str]:
    """The operators that the result is computed with."""
    kept, pending = set[str](), [model.graph.outputs[0].producer()]
    while pending:
        node = pending.pop()
        if node is not None:
            kept.add(node.op_type)
            pending += [value.producer() for value in node.inputs if value is not None]
    return kept


def test_differences_of_led_sums_are_those_of_the_sums() -> None:
    model = led(TEXT)
    x = np.random.default_rng(0).normal(size=(2, 5, 1)).astype(np.float32)
    wanted = evaluate.run(model, {"x": x})["y"]

    assert SplitMemoryKeys().run(model, Context()).changed
    assert "Pad" not in behind(model)
    np.testing.assert_array_equal(evaluate.run(model, {"x": x})["y"], wanted)


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("{0, 1, 0, 0, 0, 0}", "{0, 0, 0, 0, 1, 0}"),  # put behind
        ("d = Sub (w, t)", "d = MatMul (w, t)"),
        ("Slice (d, one, end, one, one)", "Slice (d, zero, tokens, one, one)"),  # the last cut
        ("t = Transpose <perm = [0, 2, 1]> (w)", "t = CumSum (w, two)"),
    ],
)
def test_a_cut_of_anything_else_stays(part: str, instead: str) -> None:
    model = led(TEXT.replace(part, instead))
    SplitMemoryKeys().run(model, Context())
    assert {"Pad", "Slice"} <= behind(model)


HEADS, SIZE, MEMORY = 2, 4, 3
Weigh = Callable[["Remembering", Tensor, Tensor, Tensor], Tensor]


class Remembering(nn.Module):
    """Attention [B, H, T, D] to learned keys and values beside those of tokens, as `weigh` does."""

    def __init__(self, weigh: Weigh) -> None:
        super().__init__()
        width = HEADS * SIZE
        self.weigh, self.embed = weigh, nn.Embedding(VOCABULARY, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, VOCABULARY)
        self.keys = nn.Parameter(torch.randn(HEADS, MEMORY, SIZE))
        self.values = nn.Parameter(torch.randn(HEADS, MEMORY, SIZE))
        self.norm = nn.LayerNorm(SIZE)
        self.attention = nn.MultiheadAttention(
            width, HEADS, batch_first=True, add_bias_kv=True, add_zero_attn=True
        )
        for bias in (self.attention.bias_k, self.attention.bias_v):
            nn.init.normal_(bias)  # type: ignore[arg-type]

    def by_head(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (HEADS, SIZE)).transpose(1, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        qkv = self.qkv(self.embed(input_ids)).chunk(3, -1)
        q, k, v = (self.by_head(x) for x in qkv)
        y: Tensor = self.out(self.weigh(self, q, k, v).transpose(1, 2).flatten(2))
        return y


def in_front(m: Remembering, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    own = (x.expand(k.shape[0], -1, -1, -1) for x in (m.keys, m.values))
    first, second = (torch.cat(pair, -2) for pair in zip(own, (k, v), strict=True))
    return first, second


def causal(q: Tensor) -> Tensor:
    return torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).tril()


def padded_mask(m: Remembering, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = in_front(m, k, v)
    mask = F.pad(causal(q), (MEMORY, 0), value=True)
    return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v


def normed_and_fused(m: Remembering, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = in_front(m, k, v)
    mask = torch.cat((torch.ones(q.shape[-2], MEMORY, dtype=torch.bool), causal(q)), 1)
    return F.scaled_dot_product_attention(q, m.norm(k), v, attn_mask=mask)


def shared_by_heads(m: Remembering, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One key-value head, a triangle that starts behind what is remembered."""
    k, v = (x[:, 0] for x in in_front(m, k, v))
    scores = torch.einsum("bhid,bjd->bhij", q, k)
    i, j = scores.shape[-2:]
    hidden = torch.ones(i, j, dtype=torch.bool).triu(j - i + 1)
    weights = scores.masked_fill(hidden, -torch.finfo(scores.dtype).max).softmax(-1)
    return torch.einsum("bhij,bjd->bhid", weights, v)


def window_by_places(m: Remembering, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = in_front(m, k, v)
    i, j = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])[None] - MEMORY
    mask = ((j <= i) & (i - j < 4)) | ((j < 0) & (j + MEMORY <= i))
    return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v


def repeated_heads(m: Remembering, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x[:, :1].repeat_interleave(HEADS, 1) for x in in_front(m, k, v))
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(MEMORY)
    return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v


def with_a_column_of_zeros(_: Remembering, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights that need not add up to 1."""
    scores = (q @ k.mT).masked_fill(~causal(q), -torch.inf)
    return torch.cat((torch.zeros_like(scores[..., :1]), scores), -1).softmax(-1)[..., 1:] @ v


def how_much_is_remembered(m: Remembering, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = in_front(m, k, v)
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(MEMORY)
    weights = (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1)
    return weights @ v + weights[..., :MEMORY].sum(-1, keepdim=True)


def torch_layer(m: Remembering, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = (q + k + v).transpose(1, 2).flatten(2)
    y: Tensor = m.attention(x, x, x, attn_mask=~causal(q), need_weights=False)[0]
    return m.by_head(y)


@pytest.mark.parametrize(
    "weigh",
    [
        padded_mask,
        normed_and_fused,
        shared_by_heads,
        window_by_places,
        repeated_heads,
        with_a_column_of_zeros,
        how_much_is_remembered,
        torch_layer,
    ],
)
def test_keys_of_no_token_step_exactly(weigh: Weigh, traced: Traced) -> None:
    torch.manual_seed(0)
    steps_exactly(Remembering(weigh), traced)


def one_too_many(m: Remembering, q: Tensor, k: Tensor, v: Tensor) -> Any:
    k, v = in_front(m, k, v)
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(MEMORY + 1)
    return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v


def summed_along_the_keys(m: Remembering, q: Tensor, k: Tensor, v: Tensor) -> Any:
    """A sum that goes on from keys of no token to those of tokens."""
    k, v = in_front(m, k, v)
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(MEMORY)
    return (q @ k.cumsum(-2).mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("weigh", [one_too_many, summed_along_the_keys])
def test_what_sees_later_tokens_or_mixes_keys_is_refused(weigh: Weigh, traced: Traced) -> None:
    model, context = traced(Remembering(weigh).eval())
    with pytest.raises(PassError):
        pipeline.run(model, pipeline.standard(), context)
