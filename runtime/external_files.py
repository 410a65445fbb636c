"""Which files an ONNX graph reads its weights from, found in the graph itself.

A manifest lists the files of a graph as well, and may leave one out: what is to be hashed before a
graph is opened follows from the graph.  Tensors stand in initializers, sparse ones among them, and
in attributes of nodes, at any depth of subgraphs, in functions and in what is meant for training.
Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from collections.abc import Mapping

from .protobuf import DamagedError, fields, text

_WITHIN: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""The messages in each kind of message that may hold a tensor, by the number of their field."""

_LOCATION = "location"
_ADDRESS = "_ORT_MEM_ADDR_"  # what ONNX Runtime takes for an address in memory, not for a file


def external_files(content: bytes) -> tuple[str, ...]:
    """The files that the graph in the bytes of an ONNX file names, sorted.

    Raises:
        DamagedError: if the bytes are no graph, or one of its tensors lies at an address.
    """
    found: set[str] = set()
    left = [("model", memoryview(content))]
    while left:
        kind, message = left.pop()
        if kind == "entry":
            pair = {number: text(value) for number, value in fields(message)}
            if pair.get(1) == _LOCATION:
                found.add(pair.get(2, ""))
            continue
        inner = _WITHIN[kind]
        left += [
            (inner[number], value)
            for number, value in fields(message)
            if number in inner and not isinstance(value, int)
        ]
    if any(_ADDRESS in name for name in found):
        raise DamagedError("a tensor of it lies at an address in memory")
    return tuple(sorted(found))
