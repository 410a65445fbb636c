"""What nodes of a graph have to do at given sizes: bytes to move, operations to compute.

Together with what a device reaches at best, this bounds their time from below: the roofline of
Williams, Waterman and Patterson (2009, https://doi.org/10.1145/1498765.1498785).  Bytes are those
that have to cross the memory once: what nodes compute for each other counts for none of them when
an engine runs them as one.  A product of two numbers that is added counts as two operations.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from intaglio.operators import BY_TYPE
from intaglio.signature import Signature, UnknownSizeError, evaluate
from intaglio.state import CAPACITY, PAST, TIME

from .onnx_graph import Node, OnnxGraph
from .operation_counts import FREE, HOLDERS, LOOKUPS, PICKS, VIEWS, Shape, Sizes, operations

INT8 = 4  # accuracy_level of MatMulNBits: activations are rounded to 8 bits


@dataclass(frozen=True)
class NodeWork:
    """Bytes that are read and written, and arithmetic operations.

    `dtype` is what most of these are done in, "" where that is not told.
    """

    bytes: int
    operations: int
    dtype: str = field(default="", compare=False)

    def __add__(self, other: "NodeWork") -> "NodeWork":
        """Both, one after the other."""
        most = max(self, other, key=lambda each: each.operations)
        both = self.bytes + other.bytes, self.operations + other.operations
        return NodeWork(*both, most.dtype)


NOTHING = NodeWork(0, 0)


def added(*works: NodeWork | None) -> NodeWork | None:
    """All of it; None where one part is not known."""
    known = [work for work in works if work is not None]
    return sum(known, NOTHING) if len(known) == len(works) else None


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What a device reaches at best.

    Attributes:
        bytes: of its memory, read and written, a second.
        operations: of its largest matrix products, a second, by their dtype.
        device: what it is called.
    """

    bytes: float
    operations: Mapping[str, float]
    device: str

    def __str__(self) -> str:
        """As reports tell them."""
        rates = (f"{_rate(rate)} in products of {name}" for name, rate in self.operations.items())
        return f"{self.device}, {self.bytes / 1e9:.3g} GB/s of memory, {', '.join(rates)}"

    def least(self, work: NodeWork) -> float:
        """Milliseconds below which no kernel does `work`, caches aside.

        Operations of a dtype that was not measured are held to the fastest that was.
        """
        most = self.operations.get(work.dtype) or max(self.operations.values())
        return 1e3 * max(work.bytes / self.bytes, work.operations / most)


def _rate(operations: float) -> str:
    if operations < 1e12:
        return f"{operations / 1e9:.3g} Gop/s"
    return f"{operations / 1e12:.3g} Top/s"


class Works:
    """Work of nodes of one graph at one size of batch, time, past and capacity."""

    def __init__(self, graph: OnnxGraph, sizes: Sizes) -> None:
        self._graph = graph
        self._sizes = sizes
        self._nodes = {
            node.name: node
            for node in graph.nodes
            if node.name and node.name not in graph.inner  # those run as often as data say
        }
        self._users: dict[str, set[str]] = defaultdict(set)
        for node in graph.nodes:
            for name in node.inputs:
                self._users[name].add(node.name)

    def of(self, names: Iterable[str]) -> NodeWork | None:
        """Work of the nodes called `names`, run as one; None where sizes are not known."""
        nodes = [self._nodes[name] for name in names if name in self._nodes]
        if not nodes:
            return None
        reads: dict[str, int] = {}
        writes: dict[str, int] = {}
        computed = NodeWork(0, 0)
        try:
            for node in nodes:
                reads |= {n: max(reads.get(n, 0), size) for n, size in self._reads(node).items()}
                writes |= self._writes(node)
                computed += NodeWork(0, self._operations(node), _arithmetic(node, self._graph))
        except UnknownSizeError:
            return None
        inner = {node.name for node in nodes}
        seen = {n.outputs[0]: n.inputs[0] for n in nodes if _name(n) in VIEWS}  # views of what
        leaving = {
            _source(value, seen)
            for value in (*writes, *seen)
            if value in self._graph.outputs or not self._users[value] <= inner
        }
        read = sum(size for name, size in reads.items() if _source(name, seen) not in writes)
        written = sum(size for name, size in writes.items() if name in leaving)
        return computed + NodeWork(read + written, 0)

    def _reads(self, node: Node) -> dict[str, int]:
        op = _name(node)
        if op in VIEWS or op in HOLDERS:
            return {}
        names = [name for name in node.inputs if name]
        signature = BY_TYPE.get(node.op)
        if signature is not None and signature.tabled:
            return self._rows(node, signature)
        if op in LOOKUPS:  # of the table, the rows that are given
            return {names[1]: self._bytes(names[1]), names[0]: self._lookup(node)}
        if op in PICKS:  # as many entries as it gives
            return {names[1]: self._bytes(names[1]), names[0]: self._bytes(node.outputs[0])}
        sizes = self._sizes
        if op in _IN_PLACE:  # tokens beyond those consumed are neither read nor written
            sizes = self._with_room(PAST)
        if op in _WRITES_BEHIND:
            names = names[1:]
        return {name: self._bytes(name, sizes) for name in names}

    def _rows(self, node: Node, signature: Signature) -> dict[str, int]:
        """Of tables that an operator looks up rows of, the bytes of these."""
        sizes = signature.bind(self._declared(node, signature), node.integers)
        share = min(evaluate("rows", sizes) / max(evaluate("N", sizes), 1), 1.0)
        return {
            name: math.ceil(self._bytes(name) * (share if formal in signature.tabled else 1.0))
            for formal, name in zip(signature.names, node.inputs, strict=False)
            if name
        }

    def _writes(self, node: Node) -> dict[str, int]:
        if _name(node) in VIEWS or _name(node) in HOLDERS:
            return {}
        sizes = self._sizes
        if _name(node) in _IN_PLACE:
            sizes = self._with_room(TIME)
        if _name(node) in _WRITES_BEHIND:
            return {node.outputs[0]: self._bytes(node.inputs[1])}
        return {name: self._bytes(name, sizes) for name in node.outputs if name}

    def _with_room(self, tokens: str) -> Sizes:
        """The sizes, with caches of so many tokens."""
        if tokens not in self._sizes:  # of what a profiler saw
            raise UnknownSizeError
        return {**self._sizes, CAPACITY: self._sizes[tokens]}

    def _lookup(self, node: Node) -> int:
        """Bytes of the rows of a table that a look-up reads, packed ones for what they are."""
        table, rows = (self._shape(name) for name in node.inputs[:2])
        axis = int(node.integers.get("gather_axis", node.integers.get("axis", 0)))
        share = math.prod(rows) / max(table[axis], 1)
        return math.ceil(self._bytes(node.inputs[0]) * min(share, 1.0))

    def _operations(self, node: Node) -> int:
        if _name(node) in FREE:
            return 0
        signature = BY_TYPE.get(node.op)
        if signature is not None and signature.operations:
            shapes = self._declared(node, signature)
            return signature.work(
                signature.bind(shapes, {**node.integers, **node.texts}), list(shapes)
            )
        takes = [self._shape(name) if name else () for name in node.inputs]
        gives = [self._shape(name) if name else () for name in node.outputs]
        return operations(node, takes, gives, self._sizes)

    def _declared(self, node: Node, signature: Signature) -> dict[str, Shape]:
        """Shapes of the inputs that a node has, by their names in its signature."""
        formals = zip(signature.names, node.inputs, strict=False)
        return {formal: self._shape(name) for formal, name in formals if name}

    def _bytes(self, name: str, sizes: Sizes | None = None) -> int:
        if name in self._graph.tensors:
            return self._graph.tensors[name].nbytes
        value = self._graph.values.get(name)
        if value is None:
            raise UnknownSizeError
        return math.prod(self._shape(name, sizes)) * value.bits // 8

    def _shape(self, name: str, sizes: Sizes | None = None) -> Shape:
        if name in self._graph.tensors:
            return self._graph.tensors[name].shape
        value = self._graph.values.get(name)
        if value is None:
            raise UnknownSizeError
        known = sizes or self._sizes
        return tuple(dim if isinstance(dim, int) else evaluate(dim, known) for dim in value.shape)


def _source(value: str, views: Mapping[str, str]) -> str:
    """The value that `value` is a view of, or itself."""
    while value in views:
        value = views[value]
    return value


def _name(node: Node) -> str:
    return node.op.rpartition("::")[2]


_WRITES_BEHIND = {"TensorScatter"}  # into its first input: rows are bound in place
_IN_PLACE = {"GroupQueryAttention"}  # caches that a session binds as input and as output
_INTEGERS = {"DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul"}


def _arithmetic(node: Node, graph: OnnxGraph) -> str:
    """What the operations of a node are done in."""
    op = _name(node)
    if op in _INTEGERS or (op == "MatMulNBits" and node.integers.get("accuracy_level") == INT8):
        return "int8"
    value = graph.values.get(node.outputs[0]) if node.outputs else None
    return f"float{value.bits}" if value is not None and value.bits > 8 else ""
