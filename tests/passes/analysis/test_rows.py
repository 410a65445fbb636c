"""Rows of a batch are shown to stay apart, or the node that mixes them is named."""

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced import VOCABULARY, Traced

from intaglio.errors import PassError
from intaglio.passes import pipeline
from intaglio.passes.analysis.rows import check_rows

WIDTH = 8
Use = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """`use` of [B, T, 8]."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.embed, self.use = nn.Embedding(VOCABULARY, WIDTH), use

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.use(self.embed(input_ids))


MIXED: dict[str, tuple[Use, str]] = {
    "mean": (lambda y: y - y.mean(0, keepdim=True), "ReduceMean"),
    "all of it": (lambda y: y / (1 + y.std()), "ReduceMean"),
    "shifted": (lambda y: y.roll(1, 0), "Slice"),
    "turned round": (lambda y: y + y.flip(0), "Slice"),
    "normalised": (lambda y: y.softmax(0), "Softmax"),
    "summed up": (lambda y: y.cumsum(0), "CumSum"),
    "the first": (lambda y: y - y[:1], "Slice"),
    "compared": (lambda y: (y[:, None] - y[None]).amax(1), "Sub"),
    "in another order": (
        lambda y: y.reshape(y.shape[1], y.shape[0], WIDTH).transpose(0, 1), "Reshape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_a_node_that_mixes_rows_is_named(name: str, traced: Traced) -> None:
    use, node = MIXED[name]
    graph = tidied(Net(use), traced)

    with pytest.raises(PassError, match=f"{node} .* mixes the rows of a batch"):
        check_rows(graph)


def tidied(module: nn.Module, traced: Traced) -> ir.Graph:
    """The graph as it is when rows are looked at."""
    model, context = traced(module)
    pipeline.run(model, pipeline.standard()[:5], context)
    return model.graph


def among_rows(y: Tensor) -> Tensor:
    heads = y.transpose(0, 1)[:, None]
    mixed: Tensor = F.scaled_dot_product_attention(heads, heads, heads)
    return mixed[:, 0].transpose(0, 1)


def test_attention_among_rows_is_refused(traced: Traced) -> None:
    graph = tidied(Net(among_rows), traced)

    with pytest.raises(PassError, match="mixes the rows of a batch"):
        check_rows(graph)


APART: dict[str, Use] = {
    "merged with time": lambda y: F.gelu(y.flatten(0, 1)).reshape(y.shape),
    "time first": lambda y: y.transpose(0, 1).softmax(-1).transpose(0, 1),
    "time first and merged": lambda y: y.transpose(0, 1).flatten(0, 1).tanh()
    .reshape(y.shape[1], y.shape[0], WIDTH).transpose(0, 1),
    "merged with heads": lambda y: y.reshape(*y.shape[:2], 2, 4).transpose(1, 2).flatten(0, 1)
    .tanh().reshape(-1, 2, y.shape[1], 4).transpose(1, 2).flatten(2),
    "joined and cut": lambda y: torch.cat([y, y * 2], -1)[..., 3:11],
    "scaled by their number": lambda y: y * y.shape[0],
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_rows_that_stay_apart_pass(name: str, traced: Traced) -> None:
    check_rows(tidied(Net(APART[name]), traced))


def test_an_operator_that_nobody_knows_is_refused() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 27, "mine" : 1]>
        g (float[batch, time, 4] x) => (float[batch, time, 4] y) { y = mine.Any (x) }
    """)

    with pytest.raises(PassError, match=r"Any .* is not known to keep them apart"):
        check_rows(model.graph)


def test_statistics_of_training_are_refused() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 27]>
        g (float[batch, 4, time] x, float[4] s, float[4] b, float[4] m, float[4] v)
            => (float[batch, 4, time] y)
        { y, n, w = BatchNormalization <training_mode = 1> (x, s, b, m, v) }
    """)

    with pytest.raises(PassError, match=r"BatchNormalization .* works along their axis"):
        check_rows(model.graph)
