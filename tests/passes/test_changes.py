"""What a pass did is told by module: nodes added, removed and retyped."""

import onnx_ir as ir

from intaglio.graph_keys import MODULE
from intaglio.passes import pipeline
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.changes import changes, makers

BEFORE = """
    <ir_version: 10, opset_import: ["" : 24, "other" : 1]>
    g (float[2] x) => (float[2] y)
    { a = Relu (x) b = Exp (a) c = Relu (x) d = Exp (c) y = Add (b, d) }
"""
AFTER = """
    <ir_version: 10, opset_import: ["" : 24, "other" : 1]>
    g (float[2] x) => (float[2] y)
    { b = other.ReluExp (x) d = other.ReluExp (x) e = Neg (b) y = Add (e, d) }
"""
OWNERS = {"a": "layers.0", "b": "layers.0", "c": "layers.1", "d": "layers.1", "e": "head"}


def graph(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    for node in model.graph:
        owner = OWNERS.get(str(node.outputs[0].name))
        if owner is not None:
            node.metadata_props[MODULE] = owner
    return model


def test_modules_changed_alike_stand_together() -> None:
    """A value that keeps its name under another operator is retyped, in its domain."""
    assert changes(makers(graph(BEFORE)), makers(graph(AFTER))) == [
        {
            "modules": ["layers.0", "layers.1"],
            "removed": {"Relu": 1},
            "retyped": {"Exp -> other::ReluExp": 1},
        },
        {"modules": ["head"], "added": {"Neg": 1}},
    ]


def test_what_did_not_change_is_not_told() -> None:
    made = makers(graph(BEFORE))

    assert len(made) == 5
    assert changes(made, made) == []


class Rename(Exact):
    """Give a value another name, and so another meaning."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        model.graph[0].outputs[0].name += "_"  # type: ignore[operator]
        return PassResult(changed=True)


def test_each_record_tells_what_its_own_pass_did() -> None:
    """The graph that one pass left is where the next one starts."""
    for record in pipeline.run(graph(BEFORE), [Rename(), Rename()], Context()):
        assert record.to_json()["changes"] == [
            {"modules": ["layers.0"], "added": {"Relu": 1}, "removed": {"Relu": 1}}
        ]
