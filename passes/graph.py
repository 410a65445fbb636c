"""Small tools that every pass needs: constants, shapes, module paths, emitting nodes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.graph_keys import MADE_OF, MODULE, PARTS, ROWS
from intaglio.operators import BY_TYPE
from intaglio.signature import Signature

END = 2**31 - 1  # how exporters write the end of an axis in a Slice, or more

Dim = int | str
Shape = Sequence[Dim]


def type_of(node: ir.Node) -> str:
    """The operator of `node`, its domain before it unless that is ONNX's own."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def signature_of(node: ir.Node) -> Signature | None:
    """What is declared of the operator of `node`, None where it is none of `operators.py`."""
    return BY_TYPE.get(type_of(node))


def module_of(node: ir.Node) -> str:
    """Path of the PyTorch module that `node` came from, empty for the root or unknown."""
    return node.metadata_props.get(MODULE, "")


def describe(node: ir.Node) -> str:
    """`node` in an error's words: its module path first, then its op and name."""
    return f"{module_of(node) or 'the model'}: {node.op_type} {node.name!r}"


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array that `value` always holds, from an initializer or a Constant node; else None."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain:
        return None
    for attribute in node.attributes.values():
        if attribute.name == "value":
            array: npt.NDArray[Any] = attribute.as_tensor().numpy()
            return array
        if attribute.name in ("value_int", "value_ints"):
            return np.array(attribute.value, np.int64)
        if attribute.name in ("value_float", "value_floats"):
            return np.array(attribute.value, np.float32)
    return None


def integers(value: ir.Value | None) -> list[int] | None:
    """The constant integers that `value` holds, flattened; None when it is not constant."""
    array = constant(value)
    if array is None or not np.issubdtype(array.dtype, np.integer):
        return None
    return [int(x) for x in array.reshape(-1)]


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Value of an attribute of `node`, `default` where it is not set."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """All attributes of `node` as plain values."""
    return {name: entry.value for name, entry in node.attributes.items()}


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index` of `node`, None where it is absent or left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """Shape of `value` as ints and symbol strings ("?" where a dimension is unknown)."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else (d.value or "?") for d in value.shape)


def captured(node: ir.Node) -> list[ir.Value]:
    """What the subgraphs of `node` take from the graph that it is in, without being given it."""
    inner = (n for graph in subgraphs(node) for n in graph.all_nodes())
    found = {v: None for n in inner for v in n.inputs if v is not None and v.graph is node.graph}
    for graph in subgraphs(node):
        found.update({v: None for v in graph.outputs if v.graph is node.graph})
    return list(found)


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs that `node` holds: the body of a loop, the branches of a choice."""
    found: list[ir.Graph] = []
    for entry in node.attributes.values():
        if entry.type == ir.AttributeType.GRAPH:
            found.append(entry.as_graph())
        elif entry.type == ir.AttributeType.GRAPHS:
            found += entry.as_graphs()
    return found


def set_dims(value: ir.Value, shape: Shape) -> None:
    """Give `value` the shape `shape`."""
    value.shape = ir.Shape(list(shape))


def producer(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node that computes `value`, if it is one of the standard operators `ops`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in ops and not node.domain else None


def taken(node: ir.Node) -> Iterator[ir.Value]:
    """The values that `node` takes, those that its subgraphs take from outside included."""
    yield from (value for value in node.inputs if value is not None)
    yield from captured(node)


def factors(value: ir.Value | None) -> list[tuple[ir.Value, ir.Value]]:
    """Both orders of the two factors of a product; nothing where `value` is none."""
    node = producer(value, "Mul")
    a, b = node.inputs if node else (None, None)
    return [] if a is None or b is None else [(a, b), (b, a)]


def _serial(graph: ir.Graph) -> int:
    """A number that no emitted name of `graph` ends with, so that no two names are equal."""
    key = "intaglio.emitted"
    if key not in graph.meta:
        ends = (node.name.rpartition("_")[2] for node in graph if node.name and "/" in node.name)
        graph.meta[key] = max((int(end) for end in ends if end.isdigit()), default=-1)
    graph.meta[key] += 1
    return int(graph.meta[key])


class Emitter:
    """Adds nodes before `anchor`: in its module and named after it, unless `prefix` is given."""

    def __init__(self, anchor: ir.Node, prefix: str | None = None) -> None:
        graph = anchor.graph
        if not isinstance(graph, ir.Graph):
            raise TypeError(f"{anchor.name!r} is not in a graph")
        self._anchor = anchor
        self._graph = graph
        self._prefix = anchor.name if prefix is None else prefix
        self._metadata = anchor.metadata_props if prefix is None else {}

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[tuple[ir.DataType | None, Shape | None]],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> tuple[ir.Value, ...]:
        """Emit one node; `outputs` gives the dtype and shape of each output."""
        name = f"{self._prefix}/{op}_{_serial(self._graph)}"
        values = [
            ir.Value(
                name=name if len(outputs) == 1 else f"{name}.{i}",
                type=None if dtype is None else ir.TensorType(dtype),
                shape=None if shape is None else ir.Shape(list(shape)),
            )
            for i, (dtype, shape) in enumerate(outputs)
        ]
        new = ir.node(op, inputs, dict(attributes or {}), domain=domain, outputs=values, name=name)
        new.metadata_props.update(self._metadata)
        self._graph.insert_before(self._anchor, new)
        return tuple(values)

    def __call__(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        dtype: ir.DataType | None,
        shape: Shape | None,
        **attributes: Any,
    ) -> ir.Value:
        """Emit a node with a single output in the standard domain."""
        return self.node(op, inputs, [(dtype, shape)], attributes)[0]

    def constant(self, array: Any, dtype: Any = np.int64) -> ir.Value:
        """Emit a Constant node."""
        tensor = ir.tensor(np.asarray(array, dtype))
        value = self("Constant", [], tensor.dtype, list(tensor.shape.numpy()), value=tensor)
        value.const_value = tensor
        return value


def add_initializer(
    graph: ir.Graph,
    name: str,
    array: npt.NDArray[Any],
    *,
    of: Sequence[str] = (),
    parts: Sequence[str] = (),
) -> ir.Value:
    """Register `array` as `name`, or return what is registered so with the same content.

    Args:
        graph: that gets it.
        name: of its own; what is made of a parameter is named after it, as `conv.weight.scaled`.
        array: its content.
        of: names of the initializers that it was computed from, so that whoever finds a fault in it
            can name the parameters behind it.
        parts: names of the initializers whose bytes it holds one after the other, which are then
            stored once; it is made of them as well.

    Raises:
        PassError: if an initializer of that name holds something else.
    """
    array = np.ascontiguousarray(array)
    known = graph.initializers.get(name)
    if known is not None:
        if not _holds(known, array):
            raise PassError(
                f"a weight {name!r} is to be made, and the model has another one of that name. "
                "Rename it in the source."
            )
        return known
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    sources = [graph.initializers.get(each, each) for each in (*of, *parts)]
    if sources:
        value.metadata_props[MADE_OF] = json.dumps(
            list(dict.fromkeys(root for source in sources for root in made_of(source)))
        )
    if len(parts) > 1:
        note_parts(value, {part: dims(graph.initializers.get(part)) for part in parts})
    graph.register_initializer(value)
    return value


def note_parts(value: ir.Value, parts: Mapping[str, Shape | None]) -> None:
    """Note in metadata that `value` holds the bytes of `parts`, one after the other, by shape."""
    value.metadata_props[PARTS] = json.dumps(list(parts))
    if all(parts.values()):
        value.metadata_props[ROWS] = json.dumps([shape[0] for shape in parts.values() if shape])


def made_of(value: ir.Value | str) -> list[str]:
    """Names of the parameters that an initializer was computed from; a parameter is its own."""
    if isinstance(value, str):
        return [value]
    return list(json.loads(value.metadata_props.get(MADE_OF, json.dumps([value.name]))))


def _holds(value: ir.Value, array: npt.NDArray[Any]) -> bool:
    """Whether an initializer holds the bytes of `array` in its shape and dtype."""
    known = constant(value)
    if known is None or known.shape != array.shape or known.dtype != array.dtype:
        return False
    return known.tobytes() == array.tobytes()


def replace_uses(old: ir.Value, new: ir.Value) -> None:
    """Let every consumer of `old` take `new`, which means the same and takes over its name.

    An input or a weight keeps its own, so that an output of the graph is made a copy of it.
    """
    maker = old.producer()
    if new.producer() is None and maker is not None and old.is_graph_output():
        new = Emitter(maker)("Identity", [new], new.dtype, dims(new))
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if new.producer() is not None:
        old.name = f"{name}.before"
        new.name = name


def load_graph(folder: Path, name: str) -> ir.Model:
    """Read the graph ``folder / name`` back; its weights are mapped from the files of `folder`."""
    model = ir.load(folder / name)
    ir.external_data.set_base_dir(model.graph, folder)
    return model
