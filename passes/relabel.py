"""Move a graph from one opset of the ONNX standard to another, and prove that nothing changes.

Between the two opsets most ops stay as they are and some are widened: new types, optional inputs
or attributes.  A node may keep its meaning under the other label when the schemas of both labels
agree on all that the node uses: its inputs by position and name, its attributes and the defaults
of those it leaves out, the number of its outputs, the types of its values.  That is proven per
node.  The proof reads signatures; a change of meaning under one signature escapes it, so
`REDEFINED` lists those that the standard's text tells of, and numeric checks stand behind.
"""

from collections.abc import Iterator
from typing import Any

import onnx.defs
import onnx_ir as ir

from intaglio.errors import PassError

from .graph import describe

STANDARD = ""

_FLOAT8 = {
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
}
# (op, opset that gave it another meaning) -> output types concerned.
# Cast-24 turned the infinities of a saturating cast from NaN into the largest number.
REDEFINED = {("Cast", 24): _FLOAT8, ("CastLike", 24): _FLOAT8}

SPLIT = 18  # from which on Split without sizes has to say into how many parts


def relabel(model: ir.Model, to: int) -> None:
    """Label `model` and its functions with opset `to` of the standard, up or down.

    Raises:
        PassError: if a node uses what its op does not have, or means otherwise, at opset `to`;
            the model is left as it was.
    """
    scopes = [(model.opset_imports, model.graph.all_nodes())]
    scopes += [(f.opset_imports, f.all_nodes()) for f in model.functions.values()]
    for imports, nodes in scopes:
        was = imports.get(STANDARD)
        for node in nodes:
            if was is not None and node.domain == STANDARD:
                _prove(node, was, to)
    for imports, _ in scopes:
        if STANDARD in imports:
            imports[STANDARD] = to


def _prove(node: ir.Node, was: int, to: int) -> None:
    old, new = _schema(node, was), _schema(node, to)
    if old.since_version == new.since_version:
        return
    for difference in _differences(node, old, new):
        raise PassError(
            f"{describe(node)} cannot go from opset {was} to {to}: {difference}. "
            "Remove what the other opset lacks, or keep the opset."
        )


def _schema(node: ir.Node, version: int) -> onnx.defs.OpSchema:
    try:
        return onnx.defs.get_schema(node.op_type, version, STANDARD)
    except onnx.defs.SchemaError:
        raise PassError(
            f"{describe(node)} is not an op of ONNX opset {version}. Either the graph carries a "
            "label that is not its own, or the op needs another form at that opset."
        ) from None


def _differences(node: ir.Node, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> Iterator[str]:
    yield from _inputs(node, old, new)
    if len(node.outputs) > new.max_output:
        yield f"it gives {len(node.outputs)} outputs of at most {new.max_output}"
    yield from _attributes(node, old, new)
    yield from _types(node, new)
    lower, upper = sorted((old.since_version, new.since_version))
    if node.op_type == "Split" and lower < SPLIT <= upper and len(node.inputs) < 2:
        yield "it leaves the sizes out, which num_outputs has to say there"
    for (op, version), dtypes in REDEFINED.items():
        if op == node.op_type and lower < version <= upper and _cast_types(node) & dtypes:
            yield f"opset {version} changed its meaning for 8-bit floats"


def _cast_types(node: ir.Node) -> set[ir.DataType]:
    target = node.attributes.get("to")
    known = {value.dtype for value in node.outputs if value.dtype is not None}
    return known | ({ir.DataType(target.as_int())} if target is not None else set())


def _inputs(node: ir.Node, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> Iterator[str]:
    used = [value is not None for value in node.inputs]
    for index, is_used in enumerate(used):
        before, after = _formal(old, index), _formal(new, index)
        if is_used and (after is None or before is None or after.name != before.name):
            yield f"input {index} ({before.name if before else '?'}) is not the same there"
    if sum(used) < new.min_input:
        yield f"it gives {sum(used)} inputs of at least {new.min_input}"


def _formal(schema: onnx.defs.OpSchema, index: int) -> onnx.defs.OpSchema.FormalParameter | None:
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    if index < len(schema.inputs):
        return schema.inputs[index]
    if schema.inputs and schema.inputs[-1].option == variadic:
        return schema.inputs[-1]
    return None


def _attributes(node: ir.Node, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> Iterator[str]:
    for name in node.attributes:
        if name not in new.attributes:
            yield f"attribute {name!r} does not exist there"
        elif name in old.attributes and old.attributes[name].type != new.attributes[name].type:
            yield f"attribute {name!r} has another type there"
    for name, attribute in new.attributes.items():
        if name in node.attributes:
            continue
        if attribute.required:
            yield f"attribute {name!r} is required there"
        elif name in old.attributes and _default(old, name) != _default(new, name):
            yield f"attribute {name!r}, which it leaves out, has another default there"


def _default(schema: onnx.defs.OpSchema, name: str) -> Any:
    proto = schema.attributes[name].default_value
    return onnx.helper.get_attribute_value(proto) if proto.name else None


def _types(node: ir.Node, new: onnx.defs.OpSchema) -> Iterator[str]:
    values = [(_formal(new, i), v) for i, v in enumerate(node.inputs)]
    values += list(zip(new.outputs, node.outputs, strict=False))
    for formal, value in values:
        if formal is None or value is None or not isinstance(value.type, ir.TensorType):
            continue
        name = f"tensor({value.type.dtype.name.lower()})"
        if name not in formal.types:
            yield f"{formal.name} has the type {name}, which the op does not take there"
