"""Where projections read one value, and how the next such value follows from what they yield.

Between two layers of a perceptron stands h = phi(z_1, ..., z_m) with z_i = W_i x + b_i, an entry
of h from the entries of the z_i at its place.  Its derivative by x at one token is then
J = sum_i diag(d_i) W_i with d_i = dh / dz_i, which needs no backward pass of the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio.passes.analysis.projections import Projection, projections
from intaglio.passes.graph import attribute, constant, dims

from ._narrow import vector_of, weight_of

Array = npt.NDArray[Any]


def _gelu(node: ir.Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=attribute(node, "approximate", "none"))


def _swish(node: ir.Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(attribute(node, "alpha", 1.0) * x)


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda _, *operands: function(*operands)


RULES: Mapping[str, Callable[..., Tensor]] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "Div": _plain(torch.div),
    "Elu": lambda node, x: F.elu(x, attribute(node, "alpha", 1.0)),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Gelu": _gelu,
    "HardSwish": _plain(F.hardswish),
    "Identity": _plain(lambda x: x),
    "LeakyRelu": lambda node, x: F.leaky_relu(x, attribute(node, "alpha", 0.01)),
    "Mish": _plain(F.mish),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Pow": _plain(torch.pow),
    "Relu": _plain(torch.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "Softplus": _plain(F.softplus),
    "Sub": _plain(torch.sub),
    "Swish": _swish,
    "Tanh": _plain(torch.tanh),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Between:
    """`h`, which `nodes` compute in this order, entry by entry, from what `readers` yield."""

    h: ir.Value
    nodes: Sequence[ir.Node]
    readers: Sequence[Projection]

    def derivatives(self, x: Array) -> Array:
        """The derivatives of the entries of h by those of each reader, of x [tokens, K].

        In float64, [tokens, m N].
        """
        known: dict[ir.Value, Tensor] = {}
        for reader in self.readers:
            z = torch.from_numpy(yielded(reader, x)).requires_grad_()
            known[reader.node.outputs[0]] = z
        for node in self.nodes:
            operands = [_operand(value, known) for value in node.inputs]
            known[node.outputs[0]] = RULES[node.op_type](node, *operands)
        leaves = [known[reader.node.outputs[0]] for reader in self.readers]
        found = torch.autograd.grad(known[self.h].sum(), leaves)
        joined: Array = torch.cat(found, 1).numpy()
        return joined


@dataclass(frozen=True, kw_only=True, eq=False)
class Junction:
    """A value `x` that projections read, and the values `between` which and others they lead to.

    What `ends` yield goes elsewhere, perhaps as well.  `alone`: nothing else reads x.
    """

    x: ir.Value
    readers: Sequence[Projection]
    alone: bool
    between: list[Between] = field(default_factory=list)
    ends: list[Projection] = field(default_factory=list)


def yielded(reader: Projection, x: Array) -> Array:
    """What a projection makes of x [tokens, K], its own bias added."""
    z: Array = x @ weight_of(reader).T
    bias = vector_of(reader.bias)
    return z if bias is None else z + bias


def junctions(graph: ir.Graph) -> list[Junction]:
    """Every value that projections read, in the order in which it is first read."""
    readers: dict[ir.Value, list[Projection]] = {}
    for each in projections(graph):
        if constant(each.x) is None:
            readers.setdefault(each.x, []).append(each)
    found = {
        x: Junction(
            x=x,
            readers=layers,
            alone=not x.is_graph_output() and {n for n, _ in x.uses()} == {p.node for p in layers},
        )
        for x, layers in readers.items()
    }
    by_output = {p.node.outputs[0]: p for layers in readers.values() for p in layers}
    for h in found:
        between = _between(h, by_output)
        if between is not None:
            found[between.readers[0].x].between.append(between)
    for junction in found.values():
        junction.ends.extend(_ends(junction))
    return list(found.values())


def _between(h: ir.Value, by_output: Mapping[ir.Value, Projection]) -> Between | None:
    """How h follows from projections of one value; None where it does not."""
    shape = dims(h)
    if shape is None or "?" in shape:
        return None
    nodes: set[ir.Node] = set()
    readers: dict[ir.Value, Projection] = {}
    waiting = [h]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in by_output:
            readers[value] = by_output[value]
        elif node is None or node.domain or node.op_type not in RULES:
            return None
        elif node not in nodes:
            nodes.add(node)
            for operand in node.inputs:
                if not _fits(operand, h):
                    if operand is None or dims(operand) != shape:
                        return None
                    waiting.append(operand)
    if len({reader.x for reader in readers.values()}) != 1:
        return None
    ordered = [node for node in h.graph or () if node in nodes]
    return Between(h=h, nodes=ordered, readers=list(readers.values()))


def _fits(value: ir.Value | None, h: ir.Value) -> bool:
    """Whether a value is a constant that gives every entry of h at most one number."""
    array = constant(value)
    return array is not None and (
        array.size == 1 or array.shape == (*(1,) * (array.ndim - 1), (dims(h) or (0,))[-1])
    )


def _operand(value: ir.Value | None, known: Mapping[ir.Value, Tensor]) -> Tensor:
    if value is not None and value in known:
        return known[value]
    array = constant(value)
    assert array is not None
    return torch.from_numpy(np.array(array.reshape(-1), np.float64))


def _ends(junction: Junction) -> Iterator[Projection]:
    """Readers whose results, or what is made of them on the way, something else reads."""
    for reader in junction.readers:
        inside = [b for b in junction.between if reader in b.readers]
        nodes = {node for b in inside for node in b.nodes}
        targets = {b.h for b in inside}
        values = {reader.node.outputs[0], *(v for n in nodes for v in n.outputs)} - targets
        escapes = any(
            v.is_graph_output() or any(node not in nodes for node, _ in v.uses()) for v in values
        )
        if not inside or escapes:
            yield reader
