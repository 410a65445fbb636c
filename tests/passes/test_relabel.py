"""Relabelling: allowed where both opsets give a node one meaning, refused by name elsewhere."""

import onnx_ir as ir
import pytest

from intaglio.errors import PassError
from intaglio.graph_keys import MODULE
from intaglio.passes.relabel import relabel


def model(opset: int, body: str, outputs: str = "float[N] y") -> ir.Model:
    text = (
        f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[N] x) => ({outputs}) {{ {body} }}'
    )
    graph = ir.from_onnx_text(text)
    for node in graph.graph.all_nodes():
        node.metadata_props[MODULE] = "layers.3.attn"
    return graph


SHAPES = "float[B, 2, T, 4] q, float[B, 2, S, 4] k"


def attention(
    opset: int, attributes: str = "is_causal: int = 1", inputs: str = "q, k, k"
) -> ir.Model:
    text = (
        f'<ir_version: 10, opset_import: ["" : {opset}]> '
        f"g ({SHAPES}, int64[B] n) => (float[B, 2, T, 4] y) "
        f"{{ y = Attention <{attributes}> ({inputs}) }}"
    )
    graph = ir.from_onnx_text(text)
    next(iter(graph.graph)).metadata_props[MODULE] = "layers.3.attn"
    return graph


@pytest.mark.parametrize(("was", "to"), [(23, 27), (27, 24), (24, 24)])
def test_a_node_that_means_the_same_is_relabelled(was: int, to: int) -> None:
    """Attention only gained inputs and attributes, which this node does not use."""
    graph = attention(was)
    relabel(graph, to)

    assert graph.opset_imports[""] == to


@pytest.mark.parametrize(
    ("attributes", "inputs", "to", "words"),
    [
        ("left_window_size: int = 4", "q, k, k", 24, "'left_window_size' does not exist"),
        ("is_causal: int = 1", "q, k, k, , , , n", 23, r"input 6 \(nonpad_kv_seqlen\)"),
    ],
)
def test_what_the_older_opset_lacks_is_refused(
    attributes: str, inputs: str, to: int, words: str
) -> None:
    """The error names module, op, node and both opsets, and the model keeps its label."""
    graph = attention(27, attributes, inputs)
    node = next(iter(graph.graph))
    node.name = "attend"

    with pytest.raises(PassError, match=words) as caught:
        relabel(graph, to)
    assert f"layers.3.attn: Attention 'attend' cannot go from opset 27 to {to}" in str(caught.value)
    assert graph.opset_imports[""] == 27


def test_an_op_of_a_newer_opset_is_refused() -> None:
    """A label older than the op itself is a lie, in whichever direction the graph goes."""
    for was, to in ((27, 22), (18, 27)):
        with pytest.raises(PassError, match=r"Attention .* is not an op of ONNX opset"):
            relabel(attention(was), to)


def test_a_changed_default_is_refused() -> None:
    """Softmax-11 works along axis 1 where none is said, Softmax-13 along the last."""
    with pytest.raises(PassError, match="'axis', which it leaves out, has another default"):
        relabel(model(11, "y = Softmax (x)"), 13)
    relabel(model(11, "y = Softmax <axis: int = 1> (x)"), 13)


def test_a_type_that_the_older_opset_lacks_is_refused() -> None:
    """Range takes float16 from opset 27 on only."""
    text = (
        '<ir_version: 10, opset_import: ["" : 27]> g (float16 a) => (float16[N] y) '
        "{ y = Range (a, a, a) }"
    )
    with pytest.raises(PassError, match=r"tensor\(float16\)"):
        relabel(ir.from_onnx_text(text), 26)


def test_a_changed_meaning_under_one_signature_is_refused() -> None:
    """Cast-24 saturates an infinity to the largest 8-bit float, Cast-23 made it NaN."""
    narrow = "y = Cast <to: int = 17> (x)"
    with pytest.raises(PassError, match="changed its meaning for 8-bit floats"):
        relabel(model(23, narrow, "float8e4m3fn[N] y"), 27)
    relabel(model(23, "y = Cast <to: int = 1> (x)"), 27)


def test_nodes_in_subgraphs_and_functions_are_proven_too() -> None:
    """A branch of If and the body of a function carry the same label."""
    inner = attention(27, "left_window_size: int = 4")
    node = next(iter(inner.graph))
    body = ir.Function("custom", "F", "", graph=inner.graph, attributes=[])
    outer = model(27, "y = Identity (x)")
    outer.functions[body.identifier()] = body
    body.opset_imports[""] = 27

    with pytest.raises(PassError, match="left_window_size"):
        relabel(outer, 24)
    node.attributes.pop("left_window_size")
    relabel(outer, 24)
    assert body.opset_imports[""] == outer.opset_imports[""] == 24


def test_other_domains_are_left_alone() -> None:
    """A node of com.microsoft has no schema in the standard and needs no proof."""
    graph = model(27, "y = Relu (x)")
    next(iter(graph.graph)).domain = "com.microsoft"
    graph.opset_imports["com.microsoft"] = 1
    relabel(graph, 24)

    assert dict(graph.opset_imports) == {"": 24, "com.microsoft": 1}
