"""The body of a Scan over tokens: what it carries, what depends on what, and in which order."""

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from intaglio.passes.graph import attribute, dims, subgraphs
from intaglio.state import BATCH

from ._all_tokens import UnliftedError


class LoopBody:
    """Names for the parts of the body of `node`, and which values depend on which states."""

    def __init__(self, node: ir.Node) -> None:
        """Read it.

        Raises:
            UnliftedError: it runs backwards, holds loops, or hands values on in a way not known.
        """
        directions = ("scan_input_directions", "scan_output_directions")
        if any(any(attribute(node, name) or ()) for name in directions):
            raise UnliftedError
        self.node = node
        # a copy, to which factors of states are added
        self.graph: ir.Graph = attribute(node, "body").clone(allow_outer_scope_values=True)
        if any(subgraphs(inner) for inner in self.graph):
            raise UnliftedError
        self.count = len(node.inputs) - attribute(node, "num_scan_inputs")
        given = len(node.outputs) - self.count
        taken = len(node.inputs) - self.count
        self.input_axes = attribute(node, "scan_input_axes") or [0] * taken
        self.output_axes = attribute(node, "scan_output_axes") or [0] * given
        self.states = list(self.graph.inputs[: self.count])
        self.tokens = list(self.graph.inputs[self.count :])
        self._sized_by_tokens()
        results = [same(value) for value in self.graph.outputs]
        self.following, self.results = results[: self.count], results[self.count :]
        if len(set(self.following)) < self.count:
            raise UnliftedError
        self._needs: dict[ir.Value, frozenset[int]] = {}
        for index, state in enumerate(self.states):
            self._needs[state] = frozenset({index})
        for inner in self.graph:
            found = frozenset().union(*(self.needs(value) for value in inner.inputs))
            self._needs.update(dict.fromkeys(inner.outputs, found))

    def _sized_by_tokens(self) -> None:
        """Let the batch be read off a token, whose rows are as many as those of a state."""
        rows = [value for value in self.tokens if (dims(value) or ())[:1] == (BATCH,)]
        for inner in self.graph:
            first = inner.op_type == "Shape" and not attribute(inner, "start", 0)
            if not rows or not first or attribute(inner, "end") != 1:
                continue
            if inner.inputs[0] in self.states and (dims(inner.inputs[0]) or ())[:1] == (BATCH,):
                inner.replace_input_with(0, rows[0])

    def close(self) -> None:
        """Let go of what the copy takes from outside."""
        for inner in self.graph:
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)

    def needs(self, value: ir.Value | None) -> frozenset[int]:
        """The states before a token of which `value` is computed, also by way of new ones."""
        return frozenset() if value is None else self._needs.get(value, frozenset())

    def within(self, group: Sequence[int]) -> set[ir.Value]:
        """Values computed from the states of `group`, not by way of new states of other groups."""
        others = {value for i, value in enumerate(self.following) if i not in group}
        found = {self.states[index] for index in group}
        for inner in self.graph:
            if any(value in found for value in inner.inputs):
                found |= set(inner.outputs) - others
        return found

    def depends(self, index: int) -> set[ir.Value]:
        """Values computed from the state `index`."""
        return {value for value, needs in self._needs.items() if index in needs}

    def after(self, value: ir.Value) -> set[ir.Value]:
        """`value` and what is computed from it."""
        found = {value}
        for inner in self.graph:
            if any(x in found for x in inner.inputs):
                found |= set(inner.outputs)
        return found

    def groups(self) -> Iterator[list[int]]:
        """States that depend on each other, those first on which others depend."""
        reach = [set(self.needs(value)) | {i} for i, value in enumerate(self.following)]
        for _ in reach:
            reach = [set().union(*(reach[j] for j in each)) for each in reach]
        left = set(range(self.count))
        while left:
            group = [i for i in left if reach[i] & left <= {j for j in reach[i] if i in reach[j]}]
            first = min(group)
            found = [i for i in sorted(left) if i in reach[first] and first in reach[i]]
            left -= set(found)
            yield found


def same(value: ir.Value) -> ir.Value:
    """What `value` is another name of."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and not node.domain:
        assert node.inputs[0] is not None
        value, node = node.inputs[0], node.inputs[0].producer()
    return value


def entries(value: ir.Value | None) -> int:
    """How many entries a row of `value` has; those without known sizes count as none."""
    total = 1
    for dim in (value.shape or ()) if value is not None else ():
        total *= dim if isinstance(dim, int) else 1
    return total
