"""How many weights a graph holds, and how many bits each takes, scales and offsets included.

Every floating-point initializer is a weight, biases, norms and tables of constants among them.
A packed weight of few bits counts the weights that it stands for; the scales and offsets that it is
unpacked with are no weights, but their bytes are its own: inputs of the operator, and what intaglio
calls ``NAME.scale`` and ``NAME.offset`` beside ``NAME.codes`` (`passes/low_bit.py`), since offsets
that an operator cannot take are added by others.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .onnx_graph import Node, OnnxGraph, Tensor


@dataclass(frozen=True)
class _Packing:
    """Inputs of an operator: the packed codes, and what they are unpacked with."""

    codes: int
    others: tuple[int, ...]


_PACKINGS: Mapping[str, _Packing] = {
    "com.microsoft::MatMulNBits": _Packing(1, (2, 3)),
    "com.microsoft::GatherBlockQuantized": _Packing(0, (2, 3)),
    "intaglio::AffineLowBitMatMul": _Packing(1, (2, 3)),
    "intaglio::AffineLowBitGather": _Packing(1, (2, 3)),
}
_PART = re.compile(r"(.+?)\.(codes|scale|offset)(?:\||\.ort\.|$)")


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Weights that are stored together: `kind` is their dtype, or bits and operator if packed."""

    name: str
    module: str
    kind: str
    count: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Total:
    """Some weights together."""

    tensors: int
    count: int
    bytes: int

    @property
    def bits(self) -> float | None:
        """Mean bits of a weight, None without any."""
        return 8 * self.bytes / self.count if self.count else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "tensors": self.tensors,
            "weights": self.count,
            "bytes": self.bytes,
            "bits_per_weight": self.bits,
        }


def weights_of(graph: OnnxGraph) -> list[Weight]:
    """The weights of a graph, in the order in which it lists them."""
    owners: dict[str, str] = {}
    packed: dict[str, Weight] = {}
    parts: set[str] = set()
    for node in graph.nodes:
        for name in node.inputs:
            owners.setdefault(name, node.module)
        if node.op in _PACKINGS:
            weight, used = _packed(node, graph.tensors)
            if weight is not None:
                packed.setdefault(weight.name, weight)
                parts |= used
    names = {part[1]: name for name in packed if (part := _PART.match(name))}
    for tensor in graph.tensors.values():
        whole = _whole(tensor.name, names)
        if whole is not None and tensor.name not in parts:
            parts.add(tensor.name)
            packed[whole] = replace(packed[whole], bytes=packed[whole].bytes + tensor.nbytes)
    found = []
    for tensor in graph.tensors.values():
        if tensor.name in packed:
            found.append(packed[tensor.name])
        elif tensor.floats and tensor.name not in parts:
            found.append(
                Weight(
                    name=tensor.name,
                    module=owners.get(tensor.name, ""),
                    kind=tensor.dtype,
                    count=tensor.size,
                    bytes=tensor.nbytes,
                )
            )
    return found


def total(weights: Sequence[Weight]) -> Total:
    """All of them together."""
    return Total(
        tensors=len(weights),
        count=sum(weight.count for weight in weights),
        bytes=sum(weight.bytes for weight in weights),
    )


def by_kind(weights: Sequence[Weight]) -> dict[str, Total]:
    """Together with those of their kind, the most bytes first."""
    return _grouped(weights, "kind")


def by_module(weights: Sequence[Weight]) -> dict[str, Total]:
    """Together with those of their module, the most bytes first."""
    return _grouped(weights, "module")


def _grouped(weights: Sequence[Weight], key: str) -> dict[str, Total]:
    groups: dict[str, list[Weight]] = defaultdict(list)
    for weight in weights:
        groups[getattr(weight, key)].append(weight)
    totals = {name: total(group) for name, group in groups.items()}
    return dict(sorted(totals.items(), key=lambda entry: -entry[1].bytes))


def _packed(node: Node, tensors: Mapping[str, Tensor]) -> tuple[Weight | None, set[str]]:
    """The packed weight that `node` unpacks, and the initializers that it takes for that."""
    packing = _PACKINGS[node.op]
    names = [node.inputs[i] for i in packing.others if i < len(node.inputs)]
    codes = tensors.get(node.inputs[packing.codes])
    if codes is None:
        return None, set()
    used = {name for name in names if name in tensors}
    bits = node.integers.get("bits", 4)
    count = node.integers.get("K", 0) * node.integers.get("N", 0)
    weight = Weight(
        name=codes.name,
        module=node.module,
        kind=f"{bits} bits, {node.op.rpartition('::')[2]}",
        count=count or 8 * codes.nbytes // bits,
        bytes=codes.nbytes + sum(tensors[name].nbytes for name in used),
    )
    return weight, used


def _whole(name: str, codes: Mapping[str, str]) -> str | None:
    """The packed weight whose scale or offset the initializer `name` is, by its name."""
    part = _PART.match(name)
    return None if part is None or part[2] == "codes" else codes.get(part[1])
