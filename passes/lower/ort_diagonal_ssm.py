"""DiagonalSSM -> com.microsoft::LinearAttention, each channel a head.

    h[d, n] <- e^{dt[d] A[d, n]} h[d, n] + B[n] (dt[d]) u[d],   y[d] = sum_n C[n] h[d, n]

is gated linear attention with D heads, keys of size N and values of size 1: key B, value u (times
dt), log decay dt A, query C.  ONNX Runtime has a kernel for that, and runs the body of DiagonalSSM
as a loop with a node for each operation of each token.  What a token decays is written out for it,
[batch, time, D, N]; the kernel goes from token to token, so no decay is divided by and none
overflows, however strong it is.

It takes states one by one.  Where there are more than `MOST` of them, or where they are free, the
operator stays, and what computes it goes by blocks of tokens, all states of a token at once
(`_diagonal_blocks`): the faster form then, for one token and for many (`benchmarks/lowering.py`).
A system that is the same for all tokens stays the loop: what it keeps of a token is then at hand in
the processor's cache, where blocks write it out for every token.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from intaglio.ops import DIAGONAL_SSM
from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import (
    Dim,
    Emitter,
    attribute,
    constant,
    describe,
    dims,
    input_of,
    replace_uses,
)
from intaglio.passes.own_ops import define
from intaglio.state import BATCH, TIME

from . import _diagonal_blocks

DOMAIN = "com.microsoft"
INT64 = ir.DataType.INT64
MOST = 256  # numbers of a state, D N


class OrtDiagonalSsm(Lower):
    """Run diagonal state-space models in the kernel of linear attention, or by blocks of tokens."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every DiagonalSSM of fp32 that is small, and the meaning of the others."""
        notes = []
        for node in [n for n in model.graph if n.op_type == DIAGONAL_SSM.onnx_type]:
            sizes = _sizes(node)
            if sizes is None or prod(sizes) > MOST:
                if not _same(attribute(node, "lti", 0), input_of(node, 4)):
                    notes.append(f"{describe(node)} goes by blocks of tokens")
                continue
            _rewrite(node, *sizes)
            model.graph.opset_imports[DOMAIN] = 1
            notes.append(describe(node))
        if notes:
            define(model, instead=replace(DIAGONAL_SSM, body=_body))
        return PassResult(changed=bool(notes), notes=notes)


def _same(lti: int, delta: object) -> bool:
    """Whether all tokens decay alike."""
    return bool(lti) and delta is None


def _body(present: Collection[str], attributes: Mapping[str, Any]) -> str:
    """What computes the operator where it stays."""
    same = _same(attributes["lti"], "delta" if "delta" in present else None)
    body = DIAGONAL_SSM.body if same else _diagonal_blocks.body
    assert body is not None
    return body(present, attributes)


def _sizes(node: ir.Node) -> tuple[int, int] | None:
    """Channels, and states of each; None where they are free, or not computed in fp32."""
    u, shape = node.inputs[0], dims(node.inputs[1])
    if u is None or u.dtype != ir.DataType.FLOAT or shape is None:
        return None
    channels, states = shape
    if not isinstance(channels, int) or not isinstance(states, int):
        return None
    return channels, states


def _rewrite(node: ir.Node, channels: int, states: int) -> None:
    emit = _Emit(node, channels, states)
    u, a, b, c = node.inputs[:4]
    delta, past = input_of(node, 4), input_of(node, 5)
    assert u is not None
    scaled = attribute(node, "discretization", "mamba") == "mamba" and delta is not None
    value = emit("Mul", [delta, u], u.dtype, dims(u)) if scaled else u
    lti = bool(attribute(node, "lti", 0))
    state = (BATCH, channels, states)
    one = emit.constant([3])
    start = None
    if past is not None:
        start = emit("Unsqueeze", [past, one], past.dtype, (*state, 1))
    output, present = emit.node(
        "LinearAttention",
        [
            emit.packed(c, u, lti=lti),
            emit.packed(b, u, lti=lti),
            value,
            start,
            emit.decay(a, u, delta),
        ],
        [(u.dtype, dims(u)), (ir.DataType.FLOAT, (*state, 1))],
        {"update_rule": "gated", "q_num_heads": channels, "kv_num_heads": channels, "scale": 1.0},
        DOMAIN,
    )
    after = emit("Squeeze", [present, one], ir.DataType.FLOAT, state)
    replace_uses(node.outputs[0], output)
    if len(node.outputs) > 1:
        replace_uses(node.outputs[1], after)
    graph = node.graph
    assert graph is not None
    graph.remove(node, safe=True)


class _Emit(Emitter):
    """Emits what the kernel takes, heads of [batch, time, channels, states] packed."""

    def __init__(self, anchor: ir.Node, channels: int, states: int) -> None:
        super().__init__(anchor)
        self._channels, self._states = channels, states
        self._sizes: ir.Value | None = None

    def packed(self, value: ir.Value | None, like: ir.Value, *, lti: bool) -> ir.Value:
        """B or C of each token and channel."""
        assert value is not None
        if not lti:
            row = self._laid(value, [0, 0, 1, self._states], (BATCH, TIME, 1, self._states))
            many = self.constant([1, 1, self._channels, 1])
            shape = (BATCH, TIME, self._channels, self._states)
            return self._flat(self("Expand", [row, many], value.dtype, shape))
        array = constant(value)
        if array is not None and array.size and (array == array.flat[0]).all():
            return self._filled(float(array.flat[0]), like)
        return self._expanded(value, like)

    def decay(self, a: ir.Value | None, like: ir.Value, delta: ir.Value | None) -> ir.Value:
        """The logarithm of what each token keeps."""
        assert a is not None
        if delta is None:
            return self._expanded(a, like)
        array = constant(a)
        if self._states == 1:
            if array is not None and (array == -1.0).all():
                return self._negative(delta)
            row = self._laid(a, [self._channels], (self._channels,))
            return self("Mul", [delta, row], delta.dtype, dims(delta))
        wide = self._laid(delta, [0, 0, self._channels, 1], (BATCH, TIME, self._channels, 1))
        shape = (BATCH, TIME, self._channels, self._states)
        return self._flat(self("Mul", [wide, a], delta.dtype, shape))

    def _negative(self, delta: ir.Value) -> ir.Value:
        before = delta.producer()
        if before is not None and before.op_type == "Neg" and before.inputs[0] is not None:
            return before.inputs[0]
        return self("Neg", [delta], delta.dtype, dims(delta))

    def _laid(self, value: ir.Value, target: list[int], shape: tuple[Dim, ...]) -> ir.Value:
        return self("Reshape", [value, self.constant(target)], value.dtype, shape)

    def _flat(self, value: ir.Value) -> ir.Value:
        size = self._channels * self._states
        return self._laid(value, [0, 0, size], (BATCH, TIME, size))

    def _expanded(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """What is the same for all tokens, for each of them."""
        size = self._channels * self._states
        row = self._laid(value, [size], (size,))
        target = self._per_token(like)
        return self("Expand", [row, target], value.dtype, (BATCH, TIME, size))

    def _filled(self, number: float, like: ir.Value) -> ir.Value:
        target = self._per_token(like)
        size = self._channels * self._states
        fill = ir.tensor(np.array([number], np.float32))
        return self("ConstantOfShape", [target], ir.DataType.FLOAT, (BATCH, TIME, size), value=fill)

    def _per_token(self, like: ir.Value) -> ir.Value:
        """[batch, time, channels * states] as a value."""
        if self._sizes is None:
            if self._states == 1:
                self._sizes = self("Shape", [like], INT64, [3])
            else:
                sizes = self("Shape", [like], INT64, [2], start=0, end=2)
                rest = self.constant([self._channels * self._states])
                self._sizes = self("Concat", [sizes, rest], INT64, [3], axis=0)
        return self._sizes
