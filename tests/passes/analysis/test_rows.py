"""Rows of a batch are shown to stay apart, or the node that mixes them is named."""

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common
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
    "divided by their number": (lambda y: y / y.shape[0], "Div"),
    "numbered": (lambda y: y + torch.arange(y.shape[0])[:, None, None], "Add"),
    "numbered by a sum": (
        lambda y: y + torch.ones(y.shape[0]).cumsum(0)[:, None, None], "Add",
    ),
    "numbered beside": (
        lambda y: torch.cat(
            [y, torch.arange(y.shape[0])[:, None, None].expand(-1, y.shape[1], 1).float()], -1
        ),
        "Concat",
    ),
    "picked from what differs": (
        lambda y: y + torch.arange(64.0)[torch.arange(y.shape[0])][:, None, None], "Add",
    ),
    "picked from fewer of what is merged": (
        lambda y: y + torch.zeros(3 * y.shape[0])[torch.arange(y.shape[0])][:, None, None], "Add",
    ),
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
    "picked from as many numbers": lambda y: (
        y + torch.zeros(y.shape[0])[torch.arange(y.shape[0])][:, None, None]
    ),
    "picked from as many of what is merged": lambda y: (
        y + torch.zeros(2 * y.shape[0])[torch.arange(2 * y.shape[0])].reshape(-1, 1, 2)[..., :1]
    ),
    "beside as many numbers": lambda y: y * torch.full((y.shape[0], 1, 1), 2.0),
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


PICKS = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time] x) => (float[batch, 1, time] y)
    <int64 zero = {0}, int64 one = {1}, int64 first = {%s}, int64[1] last = {-1},
     int64[2] behind = {1, 2}, int64[1] mid = {1}, int64[3] ones = {1, 1, 1}>
    {
      b = Shape <start = 0, end = 1> (x)  t = Shape <start = 1, end = 2> (x)
      rows = Squeeze (b)  tokens = Squeeze (t)  end = Add (rows, first)
      r = Range (first, end, one)  c = Range (zero, tokens, one)
      r3 = Unsqueeze (r, behind)  shape = Concat <axis = 0> (b, mid, t)
      rr = Expand (r3, shape)  cc = Expand (c, shape)
      r4 = Unsqueeze (rr, last)  c4 = Unsqueeze (cc, last)
      places = Concat <axis = -1> (%s)  y = GatherND (x, places)
    }
"""


@pytest.mark.parametrize(
    ("first", "places", "apart"),
    [("0", "r4, c4", True), ("1", "r4, c4", False), ("0", "c4, r4", False)],
)
def test_a_row_may_be_picked_by_its_own_number(first: str, places: str, apart: bool) -> None:
    """As masks of libraries index rows; one after it, or by the number of a token, it is not."""
    model = ir.from_onnx_text(PICKS % (first, places))
    common.ShapeInferencePass(strict_mode=False)(model)
    graph = model.graph
    for node in graph:
        if node.op_type == "Range":
            symbol = "batch" if node.outputs[0].name == "r" else "time"
            node.outputs[0].shape = ir.Shape([symbol])
        for value in node.outputs:
            if value.name in SHAPES:
                value.shape = ir.Shape(SHAPES[value.name])
    if apart:
        check_rows(graph)
        return
    with pytest.raises(PassError, match="picks along their axis"):
        check_rows(graph)


SHAPES: dict[str, tuple[int | str, ...]] = {
    "r3": ("batch", 1, 1),
    **dict.fromkeys(("rr", "cc", "y"), ("batch", 1, "time")),
    **dict.fromkeys(("r4", "c4"), ("batch", 1, "time", 1)),
    "places": ("batch", 1, "time", 2),
}
