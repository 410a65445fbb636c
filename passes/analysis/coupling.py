"""Which entries of which weights belong together: permuted alike, no output changes.

The axes of every value are terms of `channels.py`; the rules of `coupling_rules.py` relate those
of each node.  By induction over the nodes, every value of the graph with permuted weights is the
permuted value of the graph: inputs and outputs are fixed, so these stay as they were.  Each leaf
that is left free and lies along a weight is a group, whose entries may be put in any order: hidden
channels of a feed-forward, the residual stream, heads, groups of heads, channels of keys in the
pairs that positions rotate.

The groups are what merging by permutations (Ainsworth et al. 2022, arXiv:2209.04836), adapters of
selected channels and structured compression stand on.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.graph_keys import FOLDED
from intaglio.passes.graph import attribute, captured, constant, dims, subgraphs, taken

from .channels import Channels, Index, fix, fixed, leaves, places, unify
from .coupling_rules import rule_of
from .coupling_shapes import Axes, UncoupledError, constant_axes

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Member:
    """An axis of a weight that a group lies along.

    `places[i]` are the places on the axis that belong to entry i of the group, [size, count]: one
    for a hidden channel, as many as a head has entries for a head, two for a rotated pair.
    """

    name: str
    axis: int
    length: int
    places: Index

    @property
    def block(self) -> int:
        """Entries of the axis that move together."""
        return int(self.places.shape[1])

    def order(self, permutation: Sequence[int] | Index) -> Index:
        """The axis in its new order: entry i of the group is what was entry ``permutation[i]``."""
        order = np.arange(self.length)
        order[self.places.reshape(-1)] = self.places[np.asarray(permutation)].reshape(-1)
        return order

    def rows(self, tensor: Array) -> Array:
        """A tensor as [size, rest]: what belongs to each entry of the group."""
        turned = np.moveaxis(tensor, self.axis, 0)[self.places]
        return turned.reshape(len(self.places), -1)


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """A group of `size` entries, in any order of which the model computes the same."""

    name: str
    size: int
    members: tuple[Member, ...]

    @property
    def block(self) -> int:
        """The most entries of one axis that move together."""
        return max(member.block for member in self.members)

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that it touches, each once."""
        return tuple(dict.fromkeys(member.name for member in self.members))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        members = [{"name": m.name, "axis": m.axis, "block": m.block} for m in self.members]
        return {"name": self.name, "size": self.size, "block": self.block, "members": members}


@dataclass
class _Reading:
    """The axes of every value that was met, by the value."""

    weights: Collection[str] | None
    axes: dict[ir.Value, Axes] = field(default_factory=dict)

    def of(self, value: ir.Value) -> Axes:
        if value not in self.axes:
            array = None if self.is_weight(value) else constant(value)
            if array is not None:  # its axes are of each use alone: what is alike, is in any order
                return constant_axes(array)
            self.axes[value] = self._start(value)
        return self.axes[value]

    def _start(self, value: ir.Value) -> Axes:
        tensor = value.const_value
        if tensor is not None and self.is_weight(value):
            return [Channels(size) for size in tensor.shape.numpy()]
        return _fixed_axes(value)

    def is_weight(self, value: ir.Value) -> bool:
        """Whether the entries of an initializer may be put in another order."""
        tensor = value.const_value
        if tensor is None or not value.is_initializer():
            return False
        if self.weights is not None:
            return value.name in self.weights and tensor.dtype.is_floating_point()
        if FOLDED in value.metadata_props:  # zeros that stand for absent biases are shared
            array = tensor.numpy()
            return tensor.dtype.is_floating_point() and bool((array != array.flat[:1]).any())
        return tensor.dtype.is_floating_point()

    def graph(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            self._node(node)

    def _node(self, node: ir.Node) -> None:
        if node.op_type == "Constant" and not node.domain:
            return
        try:
            made = self._apply(node)
            self._check(node, made)
        except UncoupledError:
            for value in (*taken(node), *captured(node)):
                for axis in self.of(value):
                    fix(axis)
            made = [_fixed_axes(value) for value in node.outputs]
        for value, axes in zip(node.outputs, made, strict=False):
            self.axes[value] = axes

    def _apply(self, node: ir.Node) -> list[Axes]:
        if node.op_type == "Scan" and not node.domain:
            return self._scan(node)
        rule = rule_of(node)
        if rule is None or subgraphs(node):
            raise UncoupledError
        return rule(node, self.of)

    def _check(self, node: ir.Node, made: Sequence[Axes]) -> None:
        """Refuse what a rule made where it does not fit the values."""
        for place, value in enumerate(node.outputs):
            if place >= len(made):
                if value.uses() or value.is_graph_output():
                    raise UncoupledError
                continue
            shape = dims(value)
            if shape is None:
                raise UncoupledError
            if len(shape) != len(made[place]) or any(
                axis.size is not None and isinstance(dim, int) and axis.size != dim
                for axis, dim in zip(made[place], shape, strict=True)
            ):
                raise UncoupledError

    def _scan(self, node: ir.Node) -> list[Axes]:
        """A loop over tokens: what its body makes of a state is permuted as the state was."""
        body: ir.Graph = attribute(node, "body")
        count = attribute(node, "num_scan_inputs")
        states = len(node.inputs) - count
        along = list(attribute(node, "scan_input_axes") or [0] * count)
        for place, (inner, outer) in enumerate(zip(body.inputs, node.inputs, strict=True)):
            if outer is None:
                raise UncoupledError
            axes = list(self.of(outer))
            if place >= states:
                fix(axes.pop(along[place - states] % len(axes)))
            self.axes[inner] = axes
        self.graph(body)
        made: list[Axes] = []
        given = attribute(node, "scan_output_axes")
        into = list(given) if given else [0] * (len(node.outputs) - states)
        for place, inner in enumerate(body.outputs):
            axes = list(self.of(inner))
            if place < states:
                for one, other in zip(axes, self.axes[body.inputs[place]], strict=True):
                    unify(one, other)
            else:
                at = into[place - states]
                dim = (dims(node.outputs[place]) or (None,) * (len(axes) + 1))[at]
                axes.insert(at % (len(axes) + 1), fixed(dim if isinstance(dim, int) else None))
            made.append(axes)
        return made


def _fixed_axes(value: ir.Value) -> Axes:
    return [fixed(dim if isinstance(dim, int) else None) for dim in dims(value) or ()]


def couplings(
    model: ir.Model,
    *,
    weights: Collection[str] | None = None,
    states: Sequence[tuple[str, str]] = (),
) -> list[Coupling]:
    """Every group of entries of weights that may be put in any order, all others as they are.

    Args:
        model: a graph with the shapes of its values; permutations are proven for this graph alone.
        weights: initializers that may be permuted, None: all of floats, folded tables included.
        states: names of an input and the output that becomes it in the next call.
    """
    reading = _Reading(weights)
    graph = model.graph
    named = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    carried = [(named[a], named[b]) for a, b in states]
    for value, _ in carried:
        reading.axes[value] = [
            Channels(dim if isinstance(dim, int) else None) for dim in dims(value) or ()
        ]
    reading.graph(graph)
    for before, after in carried:
        for one, other in zip(reading.of(before), reading.of(after), strict=True):
            unify(one, other)
    loose = {after for _, after in carried}
    for value in graph.outputs:
        for axis in () if value in loose else reading.of(value):
            fix(axis)
    return _groups(reading, graph)


def _groups(reading: _Reading, graph: ir.Graph) -> list[Coupling]:
    members: dict[Channels, list[Member]] = {}
    for name, value in graph.initializers.items():
        if value not in reading.axes or not reading.is_weight(value):
            continue
        for place, axis in enumerate(reading.axes[value]):
            for leaf in dict.fromkeys(leaves(axis)):
                if not leaf.fixed:
                    members.setdefault(leaf, []).append(
                        Member(
                            name=name,
                            axis=place,
                            length=axis.size or 0,
                            places=places(axis, leaf),
                        )
                    )
    found: list[Coupling] = []
    seen: dict[str, int] = {}
    for leaf, each in members.items():
        name = _name([member.name for member in each])
        seen[name] = seen.get(name, 0) + 1
        name = name if seen[name] == 1 else f"{name}#{seen[name]}"
        found.append(Coupling(name=name, size=leaf.size or 0, members=tuple(each)))
    return found


def _name(names: Sequence[str]) -> str:
    """The path that the names of weights begin with, "model" where there is none."""
    paths = [name.split(".")[:-1] if len(set(names)) > 1 else name.split(".") for name in names]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or "model"


def permuted(
    tensors: Mapping[str, Any],
    groups: Sequence[Coupling],
    permutations: Mapping[str, Sequence[int] | Index],
) -> dict[str, Any]:
    """`tensors` with the entries of groups in another order.

    Entry i of a group becomes what was entry ``permutations[name][i]``.

    Args:
        tensors: arrays, or tensors of PyTorch, by the names of weights: what a group touches.
        groups: those of `couplings`.
        permutations: by the name of the group; other groups stay as they are.
    """
    made = dict(tensors)
    for group in groups:
        if group.name not in permutations:
            continue
        for member in group.members:
            order = member.order(permutations[group.name])
            made[member.name] = made[member.name][(*[slice(None)] * member.axis, order)]
    return made


def permute(
    model: ir.Model,
    groups: Sequence[Coupling],
    permutations: Mapping[str, Sequence[int] | Index],
) -> None:
    """Put the entries of groups of `model` in another order, in place; see `permuted`."""
    wanted = [group for group in groups if group.name in permutations]
    initializers = model.graph.initializers
    names = dict.fromkeys(name for group in wanted for name in group.weights)
    arrays = {name: constant(initializers[name]) for name in names}
    for name, array in permuted(arrays, wanted, permutations).items():
        initializers[name].const_value = ir.tensor(np.ascontiguousarray(array), name=name)
