"""What a graph of a bundle holds: nodes with their modules, and weights; read without onnx.

Only what reports need is read, by the field numbers of onnx.proto
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).  Weights stay in their files until asked.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import BundleError
from intaglio.graph_keys import MODULE
from intaglio.runtime.bundle import Bundle, BundleGraph

from .protobuf import DamagedError, fields, text, varints

Dim = int | str


# TensorProto.DataType: name and bits of an element, by its number.
_TYPES = dict(
    enumerate(
        "undefined:0 float32:32 uint8:8 int8:8 uint16:16 int16:16 int32:32 int64:64 string:0 "
        "bool:8 float16:16 float64:64 uint32:32 uint64:64 complex64:64 complex128:128 "
        "bfloat16:16 float8e4m3fn:8 float8e4m3fnuz:8 float8e5m2:8 float8e5m2fnuz:8 uint4:4 "
        "int4:4 float4e2m1:4 float8e8m0:8 uint2:2 int2:2".split()
    )
)
_NUMPY = {
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node; `op` has its domain unless that is ONNX's own.

    Its attributes are in `integers`, `lists` of integers and `texts`, as far as they are any.
    """

    name: str
    op: str
    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, int]
    lists: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One initializer: in the graph (`raw`), or at `offset` of the bundle's file `location`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    location: str | None = None
    offset: int = 0
    raw: memoryview | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def floats(self) -> bool:
        """Whether it holds floating-point numbers."""
        return "float" in self.dtype

    def content(self, bundle: Bundle) -> npt.NDArray[np.uint8] | None:
        """Its bytes, mapped from their file; None where the graph spells them out as numbers.

        Raises:
            BundleError: if the file is not in the bundle or too short.
        """
        if self.location is None:
            held = self.raw is not None and len(self.raw) == self.nbytes
            return np.frombuffer(self.raw, np.uint8) if held and self.raw is not None else None
        path = bundle.locate(self.location)
        try:
            if self.nbytes == 0:
                return np.empty(0, np.uint8)
            return np.memmap(path, np.uint8, "r", self.offset, (self.nbytes,))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} does not hold the weight {self.name!r}: {error}.") from error

    def values(self, bundle: Bundle) -> npt.NDArray[Any] | None:
        """Its elements, bfloat16 widened; None where numpy has no such type."""
        content = self.content(bundle)
        if content is None:
            return None
        if self.dtype == "bfloat16":
            return (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        if self.dtype not in _NUMPY:  # what another package may have taught it counts as unknown
            return None
        return content.view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Value:
    """Type of a value that nodes compute or take: bits of an element, and its dimensions.

    A dimension is a number, or a symbol or a term of symbols: ``batch``, ``past + time``; "" where
    the graph does not say.
    """

    bits: int
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class OnnxGraph:
    """What a graph holds.

    Attributes:
        nodes: those of subgraphs after the one that holds them.
        tensors: initializers, by name.
        values: inputs, outputs, and other values whose type the graph tells, by name.
        outputs: names of its outputs, and of those of its branches.
        metadata: what is noted of values, by their names: keys and texts.
        inner: names of nodes of loops, which run as often as what holds them says.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Value] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    inner: frozenset[str] = frozenset()


def read_graph(graph: BundleGraph, target: str) -> OnnxGraph:
    """What `target` runs of a graph of a bundle.

    Raises:
        BundleError: if there is none for it, or the file is absent, changed or no graph.
    """
    path, bundle = graph.target(target).path, graph.bundle
    try:
        return parse_graph(bundle.read(path))
    except DamagedError as error:
        raise BundleError(
            f"{bundle.root / path} is no ONNX graph: {error}. Export the bundle again."
        ) from error


def parse_graph(content: bytes) -> OnnxGraph:
    """The graph in the bytes of an ONNX file.

    Raises:
        DamagedError: if they are none.
    """
    nodes: list[Node] = []
    tensors: dict[str, Tensor] = {}
    values: dict[str, Value] = {}
    outputs: list[str] = []
    inner: set[str] = set()
    metadata: dict[str, Mapping[str, str]] = {}
    for number, message in fields(memoryview(content)):
        if number == 7 and not isinstance(message, int):
            outputs += _read(message, nodes, tensors, values, metadata, inner)
    ends, within = frozenset(outputs), frozenset(inner)
    return OnnxGraph(tuple(nodes), tensors, values, ends, metadata, within)


def _read(
    graph: memoryview,
    nodes: list[Node],
    tensors: dict[str, Tensor],
    values: dict[str, Value],
    metadata: dict[str, Mapping[str, str]],
    inner: set[str],
) -> list[str]:
    """The names of its outputs and its branches'; what else it holds is put where it belongs."""
    outputs = []
    for number, value in fields(graph):
        if isinstance(value, int):
            continue
        if number == 1:
            subgraphs: list[memoryview] = []
            nodes.append(_node(value, subgraphs))
            first = len(nodes)
            for subgraph in subgraphs:
                found = _read(subgraph, nodes, tensors, values, metadata, inner)
                outputs += found if nodes[first - 1].op == "If" else []
            if nodes[first - 1].op != "If":  # whose branches run once or not at all
                inner.update(node.name for node in nodes[first:])
        elif number == 5:
            tensor = _tensor(value)
            tensors[tensor.name] = tensor
        elif number in (11, 12, 13):
            name, values[name] = _value(value)
            noted = dict(_notes(value))
            if noted:
                metadata[name] = noted
            outputs += [name] * (number == 12)
    return outputs


def _node(message: memoryview, subgraphs: list[memoryview]) -> Node:
    names: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    module = ""
    integers: dict[str, int] = {}
    lists: dict[str, tuple[int, ...]] = {}
    texts: dict[str, str] = {}
    for number, value in fields(message):
        if isinstance(value, int):
            continue
        if number in names:
            names[number].append(text(value))
        elif number == 5:
            called, found = _attribute(value, subgraphs)
            if isinstance(found, int):
                integers[called] = found
            elif isinstance(found, str):
                texts[called] = found
            elif found:
                lists[called] = found
        elif number == 9:
            entry = {n: text(v) for n, v in fields(value)}
            module = entry.get(2, "") if entry.get(1) == MODULE else module
    domain, op = "".join(names[7]), "".join(names[4])
    return Node(
        name="".join(names[3]),
        op=op if domain in ("", "ai.onnx") else f"{domain}::{op}",
        module=module,
        inputs=tuple(names[1]),
        outputs=tuple(names[2]),
        integers=integers,
        lists=lists,
        texts=texts,
    )


def _attribute(
    message: memoryview, subgraphs: list[memoryview]
) -> tuple[str, int | str | tuple[int, ...]]:
    """Its name, and what it is if that is an integer, several, or a text; `()` otherwise."""
    name = ""
    single: int | str | None = None
    several: list[int] = []
    for number, value in fields(message):
        if number == 1:
            name = text(value)
        elif number == 3 and isinstance(value, int):
            single = value
        elif number == 4 and not isinstance(value, int):
            single = text(value)
        elif number == 8:
            several += varints(value)
        elif number in (6, 11) and not isinstance(value, int):
            subgraphs.append(value)
    return name, tuple(several) if single is None else single


def _tensor(message: memoryview) -> Tensor:
    shape: list[int] = []
    name, kind, external, raw = "", 0, {}, None
    for number, value in fields(message):
        if number == 1:
            shape += varints(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = text(value)
        elif number == 9 and not isinstance(value, int):
            raw = value
        elif number == 13 and not isinstance(value, int):
            entry = {n: text(v) for n, v in fields(value)}
            external[entry.get(1, "")] = entry.get(2, "")
    dtype, _, bits = _TYPES.get(kind, f"type {kind}:0").partition(":")
    offset = external.get("offset", "0")
    if not offset.isdecimal():
        raise DamagedError(f"the weight {name!r} lies at {offset!r}")
    return Tensor(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        nbytes=-(-math.prod(shape) * int(bits) // 8),
        location=external.get("location"),
        offset=int(offset),
        raw=raw,
    )


def _value(message: memoryview) -> tuple[str, Value]:
    """Name and type of a ValueInfoProto; what is no tensor has no bits."""
    name, kind = "", 0
    shape: list[Dim] = []
    for number, value in fields(message):
        if number == 1:
            name = text(value)
        for part in _within(value, 1) if number == 2 else ():  # the tensor of a type
            for place, found in fields(part):
                if place == 1 and isinstance(found, int):
                    kind = found
                shape += [_dim(each) for each in _within(found, 1)] if place == 2 else []
    bits = _TYPES.get(kind, ":0").partition(":")[2]
    return name, Value(int(bits), tuple(shape))


def _notes(message: memoryview) -> Iterator[tuple[str, str]]:
    """Metadata of a ValueInfoProto."""
    for entry in _within(message, 4):
        texts = {number: text(value) for number, value in fields(entry)}
        yield texts.get(1, ""), texts.get(2, "")


def _dim(message: memoryview) -> Dim:
    for number, value in fields(message):
        if number == 1 and isinstance(value, int):
            return value
        if number == 2:
            return text(value)
    return ""


def _within(message: memoryview | int, number: int) -> Iterator[memoryview]:
    """The messages in one field of another."""
    if not isinstance(message, int):
        yield from (v for n, v in fields(message) if n == number and not isinstance(v, int))
