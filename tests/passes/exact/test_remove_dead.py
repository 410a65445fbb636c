"""RemoveDead: what no output needs goes, what the outputs are called stays."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate
from intaglio.passes.base import Context
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


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("y = Neg (x)  z = Identity (w)", ["Neg", "Identity"]),
        ("y = Identity (x)  z = Neg (u)", ["Identity", "Neg"]),
        ("a = Identity (x)  y = Neg (a)  b = Neg (u)  z = Identity (b)", ["Neg", "Neg"]),
    ],
)
def test_an_output_keeps_its_name(
    apply: Callable[..., ir.Model], body: str, kept: list[str]
) -> None:
    """An Identity stays that makes an input or a weight an output."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 2] x, float[2] u) => (float[batch, time, 2] y, float[2] z)
        <float[2] w = {{1.0, 2.0}}> {{ {body} }}
    """
    model = apply(text, RemoveDead())

    assert [node.op_type for node in model.graph] == kept
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


@pytest.mark.parametrize("copied", ["y", "a"])
def test_one_value_stays_two_outputs(apply: Callable[..., ir.Model], copied: str) -> None:
    """Whichever of them is made of the other, or both of a third."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 2] x) => (float[batch, time, 2] y, float[batch, time, 2] z)
        {{ a = Neg (x)  y = Identity (a)  z = Identity ({copied}) }}
    """
    model = apply(text, RemoveDead())

    assert [node.op_type for node in model.graph] == ["Neg", "Identity"]
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_bodies_keep_the_outputs_that_they_make() -> None:
    """A state that is also what each turn gives, and a value from outside."""
    text = """
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[3] x, float[4, 3] xs) => (float[3] y, float[4, 3] ys, float[4, 3] zs)
        {
          c = Neg (x)
          y, ys, zs = Scan <num_scan_inputs = 1, body = b (float[3] s, float[3] t)
            => (float[3] n, float[3] o, float[3] p)
            { a = Add (s, t)  n = Identity (a)  o = Identity (n)  p = Identity (c) }> (x, xs)
        }
    """
    model = ir.from_onnx_text(text)
    feeds = {"x": np.ones(3, np.float32), "xs": np.ones((4, 3), np.float32)}
    before = evaluate.session(model.clone()).run(None, feeds)
    RemoveDead().run(model, Context())
    after = evaluate.session(model).run(None, feeds)

    (scan,) = (node for node in model.graph if node.op_type == "Scan")
    body = scan.attributes["body"].as_graph()
    assert [node.op_type for node in body] == ["Add", "Identity", "Identity"]
    assert [value.name for value in body.outputs] == ["n", "o", "p"]
    for found, expected in zip(after, before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_is_known_of_a_shape_is_kept() -> None:
    """Of either side of an Identity that goes."""
    text = """
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 2] x) => (float[batch, time, 2] y)
        { a = Neg (x)  c = Identity (a)  y = Abs (c) }
    """
    model = ir.from_onnx_text(text)
    model.graph[0].outputs[0].shape = ir.Shape(["batch", None, None])
    model.graph[1].outputs[0].shape = ir.Shape([None, "time", 2])
    RemoveDead().run(model, Context())

    assert str(model.graph[0].outputs[0].shape) == "[batch,time,2]"
