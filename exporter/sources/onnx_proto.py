"""An ONNX file held to what it claims, before its graph is built: functions, weights, nesting.

Field meanings are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from intaglio.errors import SourceError

NODES = 200_000  # that functions may come to where they are written out, for a graph of few
EXPANDED = 100  # times as many nodes as the file holds
LEVELS = 16  # of branches within branches
ENTRIES = 1 << 25  # of one input, save along free axes: it is drawn, in float64 as well
SPARSE = 1 << 28  # bytes of a sparse weight that is written out

Key = tuple[str, str, str]


def check_functions(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that call each other in a circle, or double without end.

    Raises:
        SourceError: if written out they come to far more nodes than the file holds.
    """
    functions = {_key(f): f for f in proto.functions}
    twice = [key[1] for key, count in Counter(map(_key, proto.functions)).items() if count > 1]
    if twice:
        raise SourceError(f"{path} holds the function {twice[0]!r} more than once.")
    own = sum(1 for nodes in (proto.graph.node, *(f.node for f in functions.values()))
              for _ in _nodes(nodes))  # fmt: skip
    most = max(NODES, EXPANDED * own)
    sizes: dict[Key, int] = {}
    for key in functions:
        _count(key, functions, sizes, path)
    called = sum(sizes.get(_callee(node), 1) for node in _nodes(proto.graph.node))
    total = max(called, *sizes.values()) if sizes else called  # functions that none calls, too
    if total > most:
        raise SourceError(
            f"{path} has {own} nodes, which come to {total} once its functions are written out: "
            "that is more than a graph of its size can need. Export it again without functions."
        )


def _count(start: Key, functions: Mapping[Key, onnx.FunctionProto], sizes: dict[Key, int],
           path: Path) -> None:  # fmt: skip
    """Put the nodes that `start` comes to into `sizes`, and those of all that it calls."""
    pending, above = [start], {start}
    while pending:
        key = pending[-1]
        calls = [_callee(node) for node in _nodes(functions[key].node)]
        missing = [call for call in calls if call in functions and call not in sizes]
        if key in sizes:
            pending.pop()
        elif not missing:
            sizes[key] = sum(sizes.get(call, 1) for call in calls)
            above.discard(key)
            pending.pop()
        elif any(call in above for call in missing):
            raise SourceError(f"{path}: the function {key[1]!r} calls itself, which none may.")
        else:
            pending.append(missing[0])
            above.add(missing[0])


def _key(function: onnx.FunctionProto) -> Key:
    return _domain(function.domain), function.name, getattr(function, "overload", "")


def _callee(node: onnx.NodeProto) -> Key:
    return _domain(node.domain), node.op_type, getattr(node, "overload", "")


def _domain(name: str) -> str:
    """Of the two names that the standard's domain has, the empty one."""
    return "" if name == "ai.onnx" else name


def _nodes(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def check_names(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse inputs or outputs without names of their own, or of impossible sizes.

    Raises:
        SourceError: if there are some.
    """
    own = {tensor.name for tensor in proto.graph.initializer}
    for what, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        names = Counter(value.name for value in values)
        for name, count in names.items():
            if count > 1 or not name:
                raise SourceError(f"{path}: {count} {what}s of the graph are called {name!r}.")
    _check_given(proto.graph, frozenset(), path)
    for value in proto.graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
        if value.name not in own and (min(dims, default=0) < 0 or math.prod(dims) > ENTRIES):
            raise SourceError(
                f"{path}: the input {value.name!r} has the sizes {dims}. Examples of inputs are "
                f"drawn, and may have {ENTRIES} numbers. Export it at a smaller size, or with free "
                "axes."
            )


def _check_given(graph: onnx.GraphProto, outer: frozenset[str], path: Path) -> None:
    """Refuse values that a node reads, or the graph returns, and that nothing gives."""
    known = {value.name for value in (*graph.input, *graph.initializer)}
    known |= {sparse.values.name for sparse in graph.sparse_initializer}
    known |= {name for node in graph.node for name in node.output}
    scope = outer | known
    reads = [(name, f"the node {n.name or n.op_type!r}") for n in graph.node for name in n.input]
    reads += [(value.name, "the graph") for value in graph.output]
    for name, reader in reads:
        if name and name not in scope:
            raise SourceError(f"{path}: {reader} takes the value {name!r}, which nothing gives.")
    places = {name: place for place, node in enumerate(graph.node) for name in node.output}
    for place, node in enumerate(graph.node):
        hidden = [name for name in node.input if name in outer and places.get(name, -1) >= place]
        if hidden:
            raise SourceError(
                f"{path}: the node {node.name or node.op_type!r} of a branch or loop takes "
                f"{hidden[0]!r} from around it, where another value of that name is made. Names "
                "have to be different."
            )
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _check_given(inner, scope, path)


def check_attributes(proto: onnx.ModelProto, path: Path) -> None:
    """Hold every attribute to its own type, and to the one that its operator gives it.

    ONNX Runtime reads some without asking, and ends the process where another field is set.

    Raises:
        SourceError: if one has another.
    """
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for nodes in (proto.graph.node, *(f.node for f in proto.functions)):
        for node in _nodes(nodes):
            wanted = _attribute_types(node, versions.get(node.domain, 0))
            for attribute in node.attribute:
                kind = _KINDS.get(attribute.type)
                held = {f.name for f, _ in attribute.ListFields()} & {*_KINDS.values()}
                single = kind is not None and not kind.endswith("s")
                fits = kind is not None and held <= {kind} and (held or not single or _zero(kind))
                if attribute.ref_attr_name and not held:
                    fits = True
                if not fits or wanted.get(attribute.name, attribute.type) != attribute.type:
                    raise SourceError(
                        f"{path}: the attribute {attribute.name!r} of the node "
                        f"{node.name or node.op_type!r} is of another type than it says, or than "
                        "its operator takes. Copy the file again, or export it again."
                    )


_KINDS = {
    1: "f",
    2: "i",
    3: "s",
    4: "t",
    5: "g",
    6: "floats",
    7: "ints",
    8: "strings",
    9: "tensors",
    10: "graphs",
    11: "sparse_tensor",
    12: "sparse_tensors",
    13: "tp",
    14: "type_protos",
}
"""The field that holds an attribute, by its type."""


def _zero(kind: str) -> bool:
    """Whether what is not set stands for zero or nothing, which some writers leave out."""
    return kind in ("f", "i", "s")


@cache
def _types_of(operator: str, version: int) -> Mapping[str, int]:
    try:
        schema = onnx.defs.get_schema(operator, version, "")
    except onnx.defs.SchemaError:
        return {}
    return {
        name: int(each.type)  # type: ignore[call-overload]
        for name, each in schema.attributes.items()
    }


def _attribute_types(node: onnx.NodeProto, version: int) -> Mapping[str, int]:
    """The types of the attributes of a node of the standard."""
    return {} if node.domain else _types_of(node.op_type, version)


def check_nesting(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse branches within branches beyond what anyone writes: each level is read anew for each.

    Raises:
        SourceError: if there are so many.
    """
    work, pending = 0, [(proto.graph.node, 0), *((f.node, 0) for f in proto.functions)]
    while pending:
        nodes, depth = pending.pop()
        work += len(nodes) << min(depth, LEVELS)
        if depth > LEVELS or (depth > 1 and work > NODES):
            raise SourceError(
                f"{path} nests loops and branches {depth} deep, over more nodes than can be "
                "followed. Export it again without branches."
            )
        graphs = [g for n in nodes for a in n.attribute for g in (a.g, *a.graphs) if g.node]
        pending += [(graph.node, depth + 1) for graph in graphs]


def check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Hold every weight and constant to its own shape and type; write sparse weights out.

    Raises:
        SourceError: if one has another number of entries than it says, or a type that is none.
    """
    for graph in _graphs(proto):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, path))
        del graph.sparse_initializer[:]
        for tensor in graph.initializer:
            _check(tensor, path)
    for nodes in (proto.graph.node, *(f.node for f in proto.functions)):
        for node in _nodes(nodes):
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors):
                    if attribute.HasField("t") or tensor is not attribute.t:
                        _check(tensor, path)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield proto.graph
    for nodes in (proto.graph.node, *(f.node for f in proto.functions)):
        for node in _nodes(nodes):
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield attribute.g
                yield from attribute.graphs


def _check(tensor: onnx.TensorProto, path: Path) -> None:
    name = tensor.name or "a constant"
    try:
        dtype = ir.DataType(tensor.data_type)
        bits = 0 if dtype == ir.DataType.STRING else _bits(dtype)
    except (ValueError, TypeError) as error:
        raise SourceError(
            f"{path}: the weight {name!r} has the type {tensor.data_type}, which is none of ONNX."
        ) from error
    count = math.prod(tensor.dims)
    wrong = any(dim < 0 for dim in tensor.dims) or dtype == ir.DataType.UNDEFINED
    if not wrong and tensor.data_location != onnx.TensorProto.EXTERNAL:
        size = math.ceil(count * bits / 8)
        wrong = _held(tensor) != size if not tensor.HasField("raw_data") else (
            len(tensor.raw_data) != size or dtype == ir.DataType.STRING
        )  # fmt: skip
    if wrong:
        raise SourceError(
            f"{path}: the weight {name!r} says that it is {dtype.name} {list(tensor.dims)}, which "
            "is not what it holds. Copy the file again, or export it again."
        )


def _held(tensor: onnx.TensorProto) -> int:
    """The bytes that the typed fields of a tensor hold, as if they were packed."""
    dtype = ir.DataType(tensor.data_type)
    if dtype == ir.DataType.STRING:
        return 0 if len(tensor.string_data) == math.prod(tensor.dims) else -1
    count = math.prod(tensor.dims)
    fields = {
        "FLOAT": tensor.float_data, "COMPLEX64": tensor.float_data,
        "DOUBLE": tensor.double_data, "COMPLEX128": tensor.double_data,
        "INT64": tensor.int64_data, "UINT64": tensor.uint64_data, "UINT32": tensor.uint64_data,
    }  # fmt: skip
    given = len(fields.get(dtype.name, tensor.int32_data))
    each = 2 if dtype.name.startswith("COMPLEX") else 1
    packed = 8 // _bits(dtype) if _bits(dtype) < 8 else 1
    fits = given == count * each if packed == 1 else given in (count, math.ceil(count / packed))
    return math.ceil(count * _bits(dtype) / 8) if fits else -1


def _bits(dtype: ir.DataType) -> int:
    return round(8 * dtype.itemsize)


def _dense(sparse: onnx.SparseTensorProto, path: Path) -> onnx.TensorProto:
    """A sparse weight written out: its values at their indices, zero elsewhere."""
    name, dims = sparse.values.name, list(sparse.dims)
    for tensor in (sparse.values, sparse.indices):
        _check(tensor, path)
    said = f"{path}: the sparse weight {name!r} of {dims}"
    try:
        values = onnx.numpy_helper.to_array(sparse.values).reshape(-1)
        places = onnx.numpy_helper.to_array(sparse.indices).astype(np.int64)
        size = math.prod(dims) * values.itemsize
        if places.ndim == 2:
            places = np.ravel_multi_index(tuple(places.T), tuple(dims))
    except Exception as error:
        raise SourceError(f"{said} cannot be written out: {error}.") from error
    outside = ((places < 0) | (places >= math.prod(dims))).any()
    if any(dim < 0 for dim in dims) or size > SPARSE:
        raise SourceError(f"{said} would take {size} bytes written out; {SPARSE} are the most.")
    if places.shape != values.shape or outside:
        raise SourceError(f"{said} has indices that are not those of its values.")
    dense = np.zeros(math.prod(dims), values.dtype)
    dense[places] = values
    return onnx.numpy_helper.from_array(dense.reshape(dims), name)
