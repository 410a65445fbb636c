"""Kernels without data, read as sums of exponentials of the lag.

What a diagonal state-space model computes in advance, for the lags l = 0 .. L-1, is

    k_l = Re sum over m of weight_m ratio_m^l,

however it is written: ``exp(dt A l)`` summed against C (Gu et al. 2022, arXiv:2206.11893, section
3.3), powers of a decay (Ma et al. 2022, arXiv:2209.10655, equation 2), waves that die away.  Each
operator on the way from ``arange(L)`` to the kernel has its rule; weights are known numbers, in
float64.  A kernel that is cut from a weight of fixed length is known as a table.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from . import kernel_axes, kernel_entries
from .causal_convolution import ATEN
from .kernel_forms import LagLine, LagTable, Read, Reading, UnreadError, number, of_rank
from .program_nodes import argument, cuts_nothing, is_fixed, shape_of, term

ARANGES = (ATEN.arange.default, ATEN.arange.start, ATEN.arange.start_step)
KEPT = frozenset(
    (
        *(ATEN.to.dtype, ATEN._to_copy.default, ATEN.clone.default, ATEN.contiguous.default),  # noqa: SLF001
        *(ATEN.alias.default, ATEN.detach.default, ATEN.to.dtype_layout, ATEN.to.device),
        *(ATEN.lift_fresh_copy.default, ATEN.resolve_conj.default, ATEN.resolve_neg.default),
    )
)


class LagReader:
    """Reads values of `program` that have an axis of lags, as long as `length`.

    `value` gives the value of a node that is fixed, in float64.
    """

    def __init__(
        self, program: ExportedProgram, length: Any, value: Callable[[fx.Node], Tensor]
    ) -> None:
        self._program, self._length, self._number = program, length, value
        self._read: dict[fx.Node, Read] = {}
        self.end: Any = None  # of the first entries of tables: how many there are, in the program

    def of(self, node: Any) -> Read:
        """What `node` is at each lag.

        Raises:
            UnreadError: nothing that is known here.
        """
        if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
            raise UnreadError
        if node not in self._read:
            self._read[node] = self._rule(node)
        return self._read[node]

    def _rule(self, node: Any) -> Read:
        if node.op != "call_function":
            raise UnreadError
        target = node.target
        if target in ARANGES:
            return self._arange(node)
        if target is ATEN.slice.Tensor and is_fixed(self._program, node.args[0]):
            return self._table(node)
        if target in KEPT or (target is ATEN.slice.Tensor and cuts_nothing(node)):
            return self.of(node.args[0])
        try:
            return RULES.get(target, kernel_entries.each_entry)(self, node)
        except UnreadError:
            if not isinstance(target, OpOverload):
                raise
            return kernel_entries.each_entry(self, node)

    def _is_length(self, size: Any) -> bool:
        return bool(term(size) == term(self._length))

    def _arange(self, node: Any) -> LagLine:
        first = node.args[0] if node.target is not ATEN.arange.default else 0
        step = node.args[2] if len(node.args) > 2 else 1
        numbers = isinstance(first, int | float) and isinstance(step, int | float)
        if not numbers or not self._is_length(shape_of(node)[0]):
            raise UnreadError
        return LagLine(number(first).reshape(1), number(step).reshape(1), -1)

    def _table(self, node: Any) -> LagTable:
        dim = argument(node, 1, "dim", 0) % len(shape_of(node))
        start, step = argument(node, 2, "start"), argument(node, 4, "step", 1)
        if start not in (None, 0) or step != 1 or not self._is_length(shape_of(node)[dim]):
            raise UnreadError
        values = self._number(node.args[0])
        self.end = argument(node, 3, "end")
        return LagTable(values, dim - values.dim())

    def given(self, value: Any) -> Tensor | Read:
        """An operand: a number, or something with lags."""
        if isinstance(value, int | float | complex):
            return number(value)
        if is_fixed(self._program, value):
            return self._number(value)
        return self.of(value)

    def operands(self, node: Any) -> list[Tensor | Read]:
        """The operands of a node of two, of one rank, with lags along one axis."""
        if node.kwargs.keys() - {"alpha"} or node.kwargs.get("alpha", 1) != 1:
            raise UnreadError
        rank = len(shape_of(node))
        found = [of_rank(self.given(each), rank) for each in node.args[:2]]
        if len({each.axis for each in found if not isinstance(each, Tensor)}) != 1:
            raise UnreadError
        return found


RULES: dict[Any, Callable[[Reading, Any], Read]] = {
    ATEN.add.Tensor: kernel_entries.plus,
    ATEN.sub.Tensor: lambda reader, node: kernel_entries.plus(reader, node, -1),
    ATEN.rsub.Scalar: kernel_entries.less_from,
    ATEN.mul.Tensor: kernel_entries.times,
    ATEN.mul.Scalar: kernel_entries.times,
    ATEN.div.Tensor: kernel_entries.divided,
    ATEN.neg.default: kernel_entries.negated,
    ATEN.real.default: kernel_entries.real_part,
    ATEN.imag.default: kernel_entries.imaginary_part,
    ATEN.complex.default: kernel_entries.complex_pair,
    ATEN.exp.default: kernel_entries.exponential,
    ATEN.cos.default: kernel_entries.wave,
    ATEN.sin.default: kernel_entries.wave,
    ATEN.polar.default: kernel_entries.polar,
    ATEN.pow.Tensor_Tensor: kernel_entries.power,
    ATEN.pow.Scalar: kernel_entries.power,
    ATEN.unsqueeze.default: kernel_axes.unsqueezed,
    ATEN.squeeze.dim: kernel_axes.dropped,
    ATEN.select.int: kernel_axes.dropped,
    ATEN.transpose.int: kernel_axes.permuted,
    ATEN.mT.default: kernel_axes.permuted,
    ATEN.numpy_T.default: kernel_axes.permuted,
    ATEN.t.default: kernel_axes.permuted,
    ATEN.permute.default: kernel_axes.permuted,
    ATEN.view.default: kernel_axes.reshaped,
    ATEN.reshape.default: kernel_axes.reshaped,
    ATEN.sum.dim_IntList: kernel_axes.summed,
    ATEN.einsum.default: kernel_axes.einsum,
    ATEN.matmul.default: kernel_axes.matrix_product,
}
