"""What nodes of a graph have to do at given sizes: bytes to move, operations to compute.

Together with what a device reaches at best, this bounds their time from below: the roofline of
Williams, Waterman and Patterson (2009, https://doi.org/10.1145/1498765.1498785).  Bytes are those
that have to cross the memory once: what nodes compute for each other counts for none of them when
an engine runs them as one.  A product of two numbers that is added counts as two operations.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from intaglio.operators import BY_TYPE
from intaglio.signature import Signature, UnknownSizeError, evaluate
from intaglio.state import CAPACITY, PAST, TIME

from .onnx_graph import Node, OnnxGraph

Sizes = Mapping[str, int]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class NodeWork:
    """Bytes that are read and written, and arithmetic operations."""

    bytes: int
    operations: int

    def __add__(self, other: "NodeWork") -> "NodeWork":
        """Both, one after the other."""
        return NodeWork(self.bytes + other.bytes, self.operations + other.operations)


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What a device reaches at best.

    Attributes:
        bytes: of its memory, read and written, a second.
        operations: of its largest matrix products, a second.
        dtype: of those products.
        device: what it is called.
    """

    bytes: float
    operations: float
    dtype: str
    device: str

    def __str__(self) -> str:
        """As reports tell them."""
        return (
            f"{self.device}, {self.bytes / 1e9:.0f} GB/s copied, "
            f"{self.operations / 1e12:.3g} Top/s in products of {self.dtype}"
        )

    def least(self, work: NodeWork) -> float:
        """Milliseconds below which no kernel does `work`, caches aside."""
        return 1e3 * max(work.bytes / self.bytes, work.operations / self.operations)


class Works:
    """Work of nodes of one graph at one size of batch, time, past and capacity."""

    def __init__(self, graph: OnnxGraph, sizes: Sizes) -> None:
        self._graph = graph
        self._sizes = sizes
        self._nodes = {node.name: node for node in graph.nodes if node.name}
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
        operations = 0
        try:
            for node in nodes:
                reads |= {n: max(reads.get(n, 0), size) for n, size in self._reads(node).items()}
                writes |= self._writes(node)
                operations += self._operations(node)
        except UnknownSizeError:
            return None
        inner = {node.name for node in nodes}
        seen = {n.outputs[0]: n.inputs[0] for n in nodes if _name(n) in _VIEWS}  # views of what
        leaving = {
            _source(value, seen)
            for value in (*writes, *seen)
            if value in self._graph.outputs or not self._users[value] <= inner
        }
        read = sum(size for name, size in reads.items() if _source(name, seen) not in writes)
        written = sum(size for name, size in writes.items() if name in leaving)
        return NodeWork(read + written, operations)

    def _reads(self, node: Node) -> dict[str, int]:
        op = _name(node)
        if op in _VIEWS:
            return {}
        names = [name for name in node.inputs if name]
        signature = BY_TYPE.get(node.op)
        if signature is not None and signature.tabled:
            return self._rows(node, signature)
        if op in _LOOKUPS:  # of the table, the rows that are given
            return {names[1]: self._bytes(names[1]), names[0]: self._lookup(node)}
        sizes = self._sizes
        if op in _IN_PLACE:  # tokens beyond those consumed are neither read nor written
            sizes = {**sizes, CAPACITY: sizes[PAST]}
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
        if _name(node) in _VIEWS:
            return {}
        sizes = self._sizes
        if _name(node) in _IN_PLACE:
            sizes = {**sizes, CAPACITY: sizes[TIME]}
        if _name(node) in _WRITES_BEHIND:
            return {node.outputs[0]: self._bytes(node.inputs[1])}
        return {name: self._bytes(name, sizes) for name in node.outputs if name}

    def _lookup(self, node: Node) -> int:
        """Bytes of the rows of a table that a look-up reads, packed ones for what they are."""
        table, rows = (self._shape(name) for name in node.inputs[:2])
        axis = int(node.integers.get("gather_axis", node.integers.get("axis", 0)))
        share = math.prod(rows) / max(table[axis], 1)
        return math.ceil(self._bytes(node.inputs[0]) * min(share, 1.0))

    def _operations(self, node: Node) -> int:
        op = _name(node)
        if op in _VIEWS or op in _MOVES or op in _LOOKUPS:
            return 0
        signature = BY_TYPE.get(node.op)
        if signature is not None and signature.operations:
            shapes = self._declared(node, signature)
            return signature.work(signature.bind(shapes, node.integers), list(shapes))
        takes = [self._shape(name) if name else () for name in node.inputs]
        gives = [self._shape(name) if name else () for name in node.outputs]
        rule = _OPERATIONS.get(op)
        if rule is not None:
            return rule(node, takes, gives, self._sizes)
        return _NORMS.get(op, 1) * max(map(math.prod, gives), default=0)

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


_VIEWS = {"Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"}
_WRITES_BEHIND = {"TensorScatter"}  # into its first input: rows are bound in place
_MOVES = {
    *("Cast", "Concat", "Expand", "Pad", "Slice", "Split", "Tile", "Transpose", "Where"),
    *_WRITES_BEHIND,
}
_LOOKUPS = {"Gather", "GatherBlockQuantized"}
_IN_PLACE = {"GroupQueryAttention"}  # caches that a session binds as input and as output
# Operations for each element of the output, where it is more than one.
_NORMS = {
    "GroupNormalization": 6,
    "LayerNormalization": 6,
    "RMSNormalization": 4,
    "SimplifiedLayerNormalization": 4,
    "SkipLayerNormalization": 7,
    "SkipSimplifiedLayerNormalization": 5,
    "Softmax": 4,
}

Shapes = Sequence[Shape]
_Rule = Callable[[Node, Shapes, Shapes, Sizes], int]


def _product(node: Node, takes: Shapes, gives: Shapes, sizes: Sizes) -> int:  # noqa: ARG001
    inner = -2 if node.integers.get("transA") else -1
    return 2 * math.prod(gives[0]) * takes[0][inner]


def _convolution(node: Node, takes: Shapes, gives: Shapes, sizes: Sizes) -> int:  # noqa: ARG001
    return 2 * math.prod(gives[0]) * math.prod(takes[1][1:])


def _attention(node: Node, takes: Shapes, gives: Shapes, sizes: Sizes) -> int:  # noqa: ARG001
    """Scores, and values weighted by them: a query meets every key there is."""
    keys = gives[1] if len(gives) > 1 and gives[1] else takes[1]
    length = keys[-2]  # [batch, heads, tokens, width], or [batch, tokens, width of all heads]
    return 2 * length * (math.prod(takes[0]) + math.prod(gives[0]))


def _cached_attention(node: Node, takes: Shapes, gives: Shapes, sizes: Sizes) -> int:  # noqa: ARG001
    return 4 * (sizes[PAST] + sizes[TIME]) * math.prod(gives[0])


def _recurrent_layer(node: Node, takes: Shapes, gives: Shapes, sizes: Sizes) -> int:  # noqa: ARG001
    """Of the standard: each token and each state times the weights of every gate."""
    _, gates, inputs = takes[1]
    return 2 * math.prod(takes[0][:2]) * gates * (inputs + takes[2][-1])


_OPERATIONS: dict[str, _Rule] = {
    **dict.fromkeys(("FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits"), _product),
    "Conv": _convolution,
    "Attention": _attention,
    "GroupQueryAttention": _cached_attention,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent_layer),
}
