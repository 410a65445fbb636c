"""OrtPackedProducts: one product where several weights meet one input."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.exporter.writing.graph_files import save_graphs
from intaglio.graph_keys import MODULE
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.remove_dead import RemoveDead
from intaglio.passes.graph import load_graph
from intaglio.passes.lower.ort_packed_products import OrtPackedProducts

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 16] x) => (float[batch, time, 40] ya, float[batch, time, 24] yb)
      <float[40, 16] a, float[24, 16] b, float[16, 40] at, float[16, 24] bt,
       float[batch, time, 40] za, float[batch, time, 24] zb>
    {
      at = Transpose <perm = [1, 0]> (a)
      za = MatMul (x, at)
      ya = Relu (za)
      bt = Transpose <perm = [1, 0]> (b)
      zb = MatMul (x, bt)
      yb = Neg (zb)
    }
"""


def build(text: str = TEXT, **shapes: tuple[int, ...]) -> ir.Model:
    """The graph of `text`, its free values random initializers of the given shapes."""
    model = ir.from_onnx_text(text)
    values = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    generator = np.random.default_rng(0)
    for name, shape in ({"a": (40, 16), "b": (24, 16)} | shapes).items():
        array = generator.standard_normal(shape).astype(np.float32)
        value = values[name]
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(shape), ir.DataType.FLOAT
        model.graph.register_initializer(value)
    return model


def packed(model: ir.Model) -> bool:
    [record] = pipeline.run(model, [OrtPackedProducts()], Context(), check=True)
    assert not OrtPackedProducts().run(model, Context()).changed
    return record.result.changed


def test_products_of_one_input_become_one() -> None:
    model = build()

    assert packed(model)
    kinds = sorted(node.op_type for node in model.graph)
    assert kinds == ["Constant", "MatMul", "Neg", "Relu", "Split", "Transpose"]


def test_a_bundle_holds_the_weights_once(tmp_path: Path) -> None:
    """The stack of a lowered graph is the bytes that the portable graph holds one by one."""
    portable = build()
    lowered = portable.clone()
    packed(lowered)
    pipeline.run(lowered, [RemoveDead()], Context())
    save_graphs(tmp_path, {"model.onnx": portable, "ort.onnx": lowered})
    stack = load_graph(tmp_path, "ort.onnx").graph.initializers["a|b"]

    assert (tmp_path / "model.onnx.data").stat().st_size == 4 * (40 + 24) * 16
    assert not (tmp_path / "ort.onnx.data").exists()
    parts = [portable.graph.initializers[n].const_value for n in ("a", "b")]
    assert stack.const_value is not None
    np.testing.assert_array_equal(
        stack.const_value.numpy(), np.concatenate([p.numpy() for p in parts if p is not None])
    )


def test_the_stack_is_not_in_memory_before_it_is_written() -> None:
    """Weights may be gigabytes: nothing is copied while passes run."""
    model = build()
    OrtPackedProducts().run(model, Context())
    stack = model.graph.initializers["a|b"]

    assert isinstance(stack.const_value, ir.LazyTensor)
    assert json.loads(stack.metadata_props["intaglio.parts"]) == ["a", "b"]


def test_the_product_belongs_to_the_module_around_its_parts() -> None:
    model = build()
    for node in model.graph:
        if node.op_type in ("MatMul", "Transpose"):
            names = {value.name for value in node.inputs if value is not None}
            part = "q_proj" if names & {"a", "at"} else "k_proj"
            node.metadata_props[MODULE] = f"layers.0.attention.{part}"
    OrtPackedProducts().run(model, Context())
    [product] = [node for node in model.graph if node.op_type == "MatMul"]

    assert product.metadata_props[MODULE] == "layers.0.attention"


@pytest.mark.parametrize(
    ("old", "new", "shapes"),
    [
        ("MatMul (x, bt)", "MatMul (ya, bt)", {"b": (24, 40)}),  # another input
        ("b = Neg (zb)", "b = Neg (zb) c = Relu (b)", {}),  # a weight that others take
        ("yb = Neg (zb)", "yb = Neg (zb) c = Relu (bt)", {}),
        ("Neg (zb)", "Neg (zb)", {"b": (8, 16)}),  # a weight that stands inside the graph
    ],
)
def test_what_cannot_be_packed_for_nothing_is_left(
    old: str, new: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    text = TEXT.replace(old, new)
    for name, shape in shapes.items():
        text = text.replace("float[24, 16] b, ", "").replace(f"float[16, 24] {name}t, ", "")
        text = text.replace("float[batch, time, 24]", f"float[batch, time, {shape[0]}]")
    assert not packed(build(text, **shapes))


def test_a_product_that_is_an_output_of_the_graph_keeps_its_node() -> None:
    text = TEXT.replace(
        "yb = Neg (zb)", "yb = Neg (zb)\n ct = Transpose <perm = [1, 0]> (c)\n yc = MatMul (x, ct)"
    ).replace("24] yb)\n", "24] yb, float[batch, time, 32] yc)\n")
    model = build(text, c=(32, 16))

    assert packed(model)
    assert [node.op_type for node in model.graph].count("MatMul") == 2
