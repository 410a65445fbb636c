"""RemoveDead: what no output needs goes, what the outputs are called stays."""

from collections.abc import Callable

import onnx_ir as ir

from intaglio.passes.exact.remove_dead import RemoveDead

TEXT = """
    <ir_version: 10, opset_import: ["" : 24, "unused" : 1]>
    g (float[batch, time, 2] x) => (float[batch, time, 2] y)
    <float[2] used = {1.0, 2.0}, float[2] spare = {1.0, 1.0}>
    {
      a = Identity (x)
      dead = Mul (a, spare)
      b = Mul (a, used)
      y = Identity (b)
    }
"""


def test_dead_nodes_initializers_and_imports_go(apply: Callable[..., ir.Model]) -> None:
    """One Mul is left, and the output keeps its name."""
    model = apply(TEXT, RemoveDead())
    assert [node.op_type for node in model.graph] == ["Mul"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert list(model.graph.initializers) == ["used"]
    assert set(model.graph.opset_imports) == {""}
