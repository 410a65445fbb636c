"""FuseAttention: attention as people write it becomes one node, and is then given a cache."""

import math
from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from traced import VOCABULARY, Traced

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.fuse_attention import FuseAttention

WIDTH, HEADS, CONTEXT = 8, 2, 20
Attend = Callable[["Net", Tensor, Tensor, Tensor], Tensor]


class Net(nn.Module):
    """One layer of attention with `heads` heads, none as an axis of its own if there is one."""

    def __init__(self, attend: Attend, heads: int) -> None:
        super().__init__()
        self._attend, self._heads = attend, heads
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.register_buffer("bias", torch.tril(torch.ones(CONTEXT, CONTEXT)))
        self.bias: Tensor

    def forward(self, input_ids: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(input_ids)).chunk(3, -1)
        if self._heads > 1:
            q, k, v = (x.unflatten(-1, (self._heads, -1)).transpose(1, 2) for x in (q, k, v))
        y = self._attend(self, q, k, v)
        return y.transpose(1, 2).flatten(2) if self._heads > 1 else y


def table(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A slice of a lower triangle, as in nanoGPT and in most of its descendants."""
    t = q.shape[-2]
    scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.shape[-1]))
    scores = scores.masked_fill(net.bias[:t, :t] == 0, float("-inf"))
    return scores.softmax(-1) @ v


def added(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A finite mask is added, queries are scaled first, as in GPT-2."""
    del net
    mask = torch.full((q.shape[-2], q.shape[-2]), -1e4).triu(1)
    return ((q * 0.5) @ k.mT + mask).softmax(-1) @ v


def chosen(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch.where, division, and a window beside the causal mask."""
    del net
    i = torch.arange(q.shape[-2])
    causal, near = i[:, None] >= i, i[:, None] - i < 4
    scores = torch.where(causal & near, q @ k.mT / 2, torch.finfo(q.dtype).min)
    return torch.softmax(scores, -1) @ v


def bare(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No mask at all."""
    del net
    return (q @ k.mT).softmax(-1) @ v


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize(("attend", "window"), [(table, None), (added, None), (chosen, 4)])
def test_attention_written_out_is_stepped(
    traced: Traced, attend: Attend, window: int | None, heads: int
) -> None:
    """With its mask, scale and heads; a table that the mask is cut from limits the context."""
    torch.manual_seed(0)
    model, context = traced(Net(attend, heads))

    pipeline.run(model, pipeline.standard(), context, check=True)

    assert [state.window for state in context.states] == [window] * 2
    assert context.max_context == (CONTEXT if attend is table else None)
    assert "Softmax" not in {node.op_type for node in model.graph}


def test_attention_to_later_tokens_is_refused_as_such(traced: Traced) -> None:
    """The message speaks of the mask, not of the way attention is written."""
    model, context = traced(Net(bare, HEADS))

    with pytest.raises(Exception, match="lets each token attend to later ones"):
        pipeline.run(model, pipeline.standard(), context)


def test_a_product_with_a_softmax_of_no_scores_is_left_alone() -> None:
    """A mixture of experts weighs in the same way, but compares no tokens."""
    text = """
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 4] x) => (float[batch, time, 4] y)
        <float[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
        { a = MatMul (x, w)  p = Softmax (a)  y = MatMul (p, w) }
    """
    model = ir.from_onnx_text(text)
    assert not FuseAttention().run(model, Context()).changed
