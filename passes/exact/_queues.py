"""Attention to the last active tokens carries these alone (`analysis.active_keys`).

The keys of a call are those of the queue and the new ones behind it.  What is carried of each,
whether it is active among it, is gathered anew from both: the last active ones, in their order.
Free places are those of tokens that are not active, as the zeros are that a row starts from.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from intaglio.passes.analysis.active_keys import Queue
from intaglio.passes.analysis.meetings import MASK, Meeting
from intaglio.passes.graph import Emitter, attributes_of, dims
from intaglio.state import BATCH, TIME, Layout

from ._pairs import Pairs
from ._stateful_ops import Carried
from ._step_values import FLAT, INT64, StepValues

OP = "queue"  # `StateSpec.op` of its states


class Queued(Pairs):
    """Emits what one node takes of pairs over a queue and the tokens behind it."""

    def __init__(self, step: StepValues, found: Queue) -> None:
        super().__init__(step, grow=False)
        self.length, self.layout, self.kept = (
            found.length,
            Layout.WINDOW,
            f"{TIME} + {found.length}",
        )
        self._size, self._active = found.length, found.active

    def begin(self, node: ir.Node, past: ir.Value | None) -> None:
        """Emit before `node`, which has no cache beside the queue."""
        del past
        super().begin(node, None)
        self.count = self.at("Add", [self.step.count, self.at.constant([self._size])], INT64, [1])

    def queries(self) -> ir.Value:
        """Int64 [batch*time]: the places of the queries among the keys."""
        return self.at("Add", [self.step.flat_indices, self.at.constant(self._size)], INT64, [FLAT])

    def made(self, meeting: Meeting) -> ir.Value:
        """The result of the node."""
        node = meeting.node
        if node.op_type != "Attention":
            return self.result(node, meeting.terms[0])
        key = node.inputs[1]
        assert key is not None
        mask = self.mask(meeting.terms[0], node, key)
        held = [
            self.hold(given, 2, OP, port)
            for port, given in zip(("key", "value"), node.inputs[1:MASK], strict=True)
            if given is not None
        ]
        kept = {name: x for name, x in attributes_of(node).items() if name in ("scale", "softcap")}
        result = node.outputs[0]
        inputs = [node.inputs[0], *held, mask]
        return self.at("Attention", inputs, result.dtype, dims(result), **kept)

    def after(self) -> list[Carried]:
        """What is carried, with what it is after the step."""
        places = self._last_active()
        return [
            replace(
                state,
                op=OP,
                window=self._size + 1,
                present=_gathered(self.at, state, places),
            )
            for state in self.carried
        ]

    def _last_active(self) -> ir.Value:
        """Int64 [batch, length, 1]: where the last active keys stand, the last one last.

        Places that are left over are of keys that are not active.
        """
        emit, size = self.at, self._size
        whole: list[int | str] = [BATCH, self.kept]
        active = emit("Reshape", [self._cached(self._active), emit.constant([0, -1])],
                      ir.DataType.BOOL, whole)  # fmt: skip
        later = emit("Add", [self.keys(), emit.constant(1)], INT64, [self.kept])
        rank = emit("Where", [active, later, emit.constant(0)], INT64, whole)
        kept: list[int | str] = [BATCH, size]
        _, found = emit.node(
            "TopK", [rank, emit.constant([size])], [(INT64, kept)] * 2, {"axis": 1}
        )
        turned = emit("Gather", [found, emit.constant(np.arange(size)[::-1])], INT64, kept, axis=1)
        return emit("Unsqueeze", [turned, emit.constant([2])], INT64, [*kept, 1])


def _gathered(emit: Emitter, state: Carried, places: ir.Value) -> ir.Value:
    """What `state` is of the keys at `places`: its present value holds that of all."""
    whole, dtype, kept = state.present, state.past.dtype, list(dims(state.past) or ())
    shape, axis = list(dims(whole) or ()), state.axis
    assert axis is not None
    before, behind = kept[1:axis], kept[axis + 1 :]
    if all(dim == 1 for dim in before):  # a view does where a transpose would copy
        plain = emit("Reshape", [whole, emit.constant([0, -1, *behind])], dtype,
                     [BATCH, shape[axis], *behind])  # fmt: skip
        rows = [BATCH, kept[axis], *behind]
        found = emit("GatherND", [plain, places], dtype, rows, batch_dims=1)
        return emit("Reshape", [found, emit.constant([0, *kept[1:]])], dtype, kept)
    perm = [0, axis, *(at for at in range(1, len(shape)) if at != axis)]
    turned = emit("Transpose", [whole], dtype, [shape[at] for at in perm], perm=perm)
    rows = [kept[at] for at in perm]
    found = emit("GatherND", [turned, places], dtype, rows, batch_dims=1)
    back = [perm.index(at) for at in range(len(perm))]
    return emit("Transpose", [found], dtype, kept, perm=back)
