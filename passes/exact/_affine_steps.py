"""The next state as ``a * state + b``, entry by entry, where it is that for all data.

Read from the body of a loop by the rules of its operators, so that every spelling gives the same:
``h + z * (c - h)``, ``z * c + (1 - z) * h``, a choice between two such forms.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from intaglio.passes.graph import Emitter, dims

Part = ir.Value | None


@dataclass(frozen=True)
class Affine:
    """Factor and addend, values of the body that do not depend on the state; None is zero."""

    factor: ir.Value | None
    addend: ir.Value | None


class Steps:
    """Affine forms in `state`; `depends` are the values of the body that are computed from it."""

    def __init__(self, emit: Emitter, state: ir.Value, depends: set[ir.Value]) -> None:
        self._emit = emit
        self._depends = depends
        self._shape, self._dtype = dims(state), state.dtype
        assert state.dtype is not None
        self._one = emit.constant(1.0, state.dtype.numpy())
        self._found: dict[ir.Value | None, Affine | None] = {state: Affine(self._one, None)}

    def of(self, value: ir.Value | None) -> Affine | None:
        """The form of `value`, None where it is not affine entry by entry."""
        if value not in self._found:
            self._found[value] = self._read(value)
        return self._found[value]

    def _read(self, value: ir.Value | None) -> Affine | None:
        if value not in self._depends:
            return Affine(None, value)
        node = None if value is None else value.producer()
        if node is None or node.domain or dims(value) != self._shape:
            return None
        if node.op_type == "Identity":
            return self.of(node.inputs[0])
        if node.op_type == "Where":
            return self._where(node)
        forms = [self.of(x) for x in node.inputs]
        if node.op_type == "Neg" and forms[0] is not None:
            return Affine(self._neg(forms[0].factor), self._neg(forms[0].addend))
        left, right = forms if len(forms) == 2 else (None, None)
        if left is None or right is None:
            return None
        if node.op_type == "Add":
            return self._both(self._add, left, right)
        if node.op_type == "Sub":
            return self._both(self._sub, left, right)
        if node.op_type == "Mul":
            if left.factor is not None:
                left, right = right, left
            if left.factor is not None or left.addend is None:
                return None
            by = left.addend
            return Affine(self._mul(right.factor, by), self._mul(right.addend, by))
        if node.op_type == "Div" and right.factor is None and right.addend is not None:
            by = right.addend
            return Affine(self._mul(left.factor, by, "Div"), self._mul(left.addend, by, "Div"))
        return None

    def _where(self, node: ir.Node) -> Affine | None:
        choice = node.inputs[0]
        forms = [self.of(x) for x in node.inputs[1:]]
        if choice in self._depends or forms[0] is None or forms[1] is None:
            return None
        assert self._dtype is not None
        zero = self._emit.constant(0.0, self._dtype.numpy())
        sides = [
            (forms[0].factor or zero, forms[1].factor or zero),
            (forms[0].addend or zero, forms[1].addend or zero),
        ]
        factor, addend = (self._make("Where", choice, *side) for side in sides)
        return Affine(factor, addend)

    @staticmethod
    def _both(how: Callable[[Part, Part], Part], left: Affine, right: Affine) -> Affine:
        return Affine(how(left.factor, right.factor), how(left.addend, right.addend))

    def _make(self, op: str, *inputs: ir.Value | None) -> ir.Value:
        return self._emit(op, inputs, self._dtype, _together(*inputs))

    def _neg(self, value: ir.Value | None) -> ir.Value | None:
        return None if value is None else self._make("Neg", value)

    def _mul(self, value: ir.Value | None, by: ir.Value, op: str = "Mul") -> ir.Value | None:
        if value is self._one and op == "Mul":
            return by
        return None if value is None else self._make(op, value, by)

    def _add(self, left: ir.Value | None, right: ir.Value | None) -> ir.Value | None:
        if left is None or right is None:
            return right if left is None else left
        return self._make("Add", left, right)

    def _sub(self, left: ir.Value | None, right: ir.Value | None) -> ir.Value | None:
        if left is None or right is None:
            return self._neg(right) if left is None else left
        return self._make("Sub", left, right)


def _together(*values: ir.Value | None) -> tuple[int | str, ...]:
    """The shape that values of these shapes have beside each other."""
    shapes = [dims(value) or () for value in values]
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((d for d in axis if d != 1), 1) for axis in zip(*padded, strict=True))
