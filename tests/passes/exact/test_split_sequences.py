"""SplitSequences: parts by a number or a list of sizes, without a sequence."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.exact.split_sequences import SplitSequences

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[n, 2] x, int64%s sizes) => (float[a, 2] y, float[b, 2] z)
    <int64 first = {0}, int64 second = {1}>
    {
      parts = SplitToSequence <axis = 0> (x, sizes)
      y = SequenceAt (parts, first)
      z = SequenceAt (parts, second)
    }
"""


@pytest.mark.parametrize(("rank", "sizes"), [("", 3), ("[2]", [2, 3])])
def test_parts_are_slices(rank: str, sizes: object) -> None:
    """The last part of a number is what is left."""
    model = ir.from_onnx_text(TEXT % rank)
    feeds = {"x": np.arange(10, dtype=np.float32).reshape(5, 2), "sizes": np.array(sizes)}
    wanted = evaluate.run(model, feeds)
    assert SplitSequences().run(model, Context()).changed
    assert not {node.op_type for node in model.graph} & {"SplitToSequence", "SequenceAt"}
    found = evaluate.run(model, feeds)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
