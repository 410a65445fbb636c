"""RelativeShifts: scores by distance are gathered where later tokens are masked."""

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
from intaglio.passes.exact.relative_shifts import RelativeShifts

WIDTH, ROWS = 4, 9  # of the table of distances

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 4] q, float[time, 4] far) => (float[batch, time, time] y)
      <float[4, time] turned, float[batch, time, time] x, float[batch, {led}] z,
       float[batch, {view}] v, float[batch, time, time] s,
       int64[6] pads = {{0, 0, {pad}}}, int64[1] one = {{1}},
       int64[1] end = {{9223372036854775807}}, int64 k = {{0}}>
    {{
      size = Shape (q)
      tokens = Slice (size, one, two)
      more = Add (tokens, one)
      rows = Slice (size, zero, one)
      shape = Concat <axis = 0> (rows, more, tokens)
      back = Slice (far, minus, least, zero, minus)
      turned = Transpose <perm = [1, 0]> ({far})
      x = MatMul (q, turned)
      z = Pad (x, pads)
      v = Reshape (z, shape)
      s = Slice (v, one, end, one, one)
      y = Trilu <upper = 0> (s, k)
    }}
"""
PARTS = {"led": "time, time + 1", "view": "time + 1, time", "pad": "1, 0, 0, 0", "far": "back"}


def text(**other: str) -> str:
    """The graph; symbols of sums are spelled in the model, since text has none."""
    return (
        TEXT.format(**{**PARTS, **other})
        .replace("time + 1", "led")
        .replace(
            "int64 k = {0}>",
            "int64 k = {0}, int64[1] two = {2}, int64[1] zero = {0}, int64[1] minus = {-1},"
            " int64[1] least = {-9223372036854775807}, float[time, 4] back>",
        )
    )


def rewritten(model: ir.Model) -> bool:
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape(
                    ["time + 1" if str(dim) == "led" else dim for dim in value.shape]
                )
    return RelativeShifts().run(model, Context()).changed


def test_scores_by_distance_are_gathered() -> None:
    model = ir.from_onnx_text(text())
    random = np.random.default_rng(0)
    given = {"q": random.normal(size=(2, 5, 4)), "far": random.normal(size=(5, 4))}
    given = {name: array.astype(np.float32) for name, array in given.items()}
    wanted = evaluate.run(model, given)["y"]

    assert rewritten(model)
    assert "GatherElements" in [node.op_type for node in model.graph]
    np.testing.assert_allclose(evaluate.run(model, given)["y"], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        {"pad": "0, 0, 0, 1"},  # put behind
        {"pad": "2, 0, 0, -1"},
        {"far": "far"},  # of which nobody knows the turned order
    ],
)
def test_other_shifts_stay(other: dict[str, str]) -> None:
    assert not rewritten(ir.from_onnx_text(text(**other)))


class Distances(nn.Module):
    """Attention with learned scores by distance, `cut` in the words of each paper."""

    def __init__(self, cut: Callable[["Distances", int], Tensor], *, masked: bool = True) -> None:
        super().__init__()
        self.cut, self.masked = cut, masked
        self.embed, self.qkv = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.table, self.far = nn.Embedding(ROWS, WIDTH), nn.Linear(2, WIDTH)
        self.out = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(input_ids)).chunk(3, -1)
        time = input_ids.shape[1]
        shifted = F.pad(q @ self.cut(self, time).mT, (1, 0)).view(-1, time + 1, time)[:, 1:]
        scores = q @ k.mT + shifted
        if self.masked:
            scores = scores + torch.full((time, time), -torch.inf).triu(1)
        y: Tensor = self.out(scores.softmax(-1) @ v)
        return y


def waves(m: Distances, time: int) -> Any:
    """As Transformer-XL has it."""
    place = torch.arange(time - 1, -1, -1.0)
    return m.far(torch.stack([(place * 0.3).sin(), (place * 0.1).cos()], -1))


def last_rows(m: Distances, time: int) -> Any:
    """As Music Transformer has it."""
    return m.table.weight[-time:]


def clamped(m: Distances, time: int) -> Any:
    return m.table(torch.arange(time - 1, -1, -1).clamp(max=3))


@pytest.mark.parametrize("cut", [waves, last_rows, clamped])
def test_shifted_scores_step_exactly(cut: Callable[..., Tensor], traced: Traced) -> None:
    torch.manual_seed(0)
    context = steps_exactly(Distances(cut), traced)
    assert context.max_context == (ROWS if cut is last_rows else None)


def test_shifted_scores_of_later_tokens_are_not_taken(traced: Traced) -> None:
    """What stands there after the rewrite is not what the source has."""
    model, context = traced(Distances(waves, masked=False).eval())
    with pytest.raises(PassError, match="attend to later ones"):
        pipeline.run(model, pipeline.standard(), context)
