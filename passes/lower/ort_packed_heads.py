"""Queries, keys and values go to GroupQueryAttention as projections give them: heads side by side.

    reshape(transpose(transpose(reshape(p))))          ->  p
    reshape(transpose(rotary(transpose(reshape(p)))))  ->  rotary(p, num_heads)

PyTorch turns projections [batch, time, heads * size] to [batch, heads, time, size] before attention
and its result back; GroupQueryAttention takes and gives them as they were, and so does the branch
that it stands in.  RotaryEmbedding rotates both forms.  Reshapes keep the order of entries, so that
two that meet are one, or none.
"""

import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    attributes_of,
    describe,
    dims,
    producer,
    replace_uses,
)

TURN = (0, 2, 1, 3)  # its own inverse
GIVEN = 3  # the first inputs: query, key, value


class OrtPackedHeads(Lower):
    """Spare fused attention the turning of heads and tokens before and after it."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite what goes into and comes out of every GroupQueryAttention."""
        notes = []
        for node in list(model.graph):
            fused = _fused(node)
            if fused is None:
                continue
            taken = [_take(value) for value in fused.inputs[:GIVEN]]
            if any(taken) | _give(node):
                notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _fused(node: ir.Node) -> ir.Node | None:
    """The attention that a node is, or that it takes where its kernel can."""
    if node.op_type == "If":
        branch = list(node.attributes["then_branch"].as_graph())
        node = branch[0] if len(branch) == 1 else node
    return node if node.op_type == "GroupQueryAttention" else None


def _turned(value: ir.Value | None) -> ir.Value | None:
    """What `value` is with its two middle axes exchanged, if a node does that."""
    node = producer(value, "Transpose")
    return node.inputs[0] if node and tuple(attribute(node, "perm") or ()) == TURN else None


def _take(packed: ir.Value | None) -> bool:
    """Put the projection behind what attention reads in its place; False where there is none."""
    apart = producer(packed, "Reshape")
    by_head = _turned(apart.inputs[0]) if apart else None
    rotary = producer(by_head, "RotaryEmbedding")
    source = _turned(rotary.inputs[0] if rotary else by_head)
    heads = (dims(source) or (0, 0, ""))[2]
    if source is None or packed is None or apart is None or not isinstance(heads, int):
        return False
    emit = Emitter(rotary or apart)  # others than attention may take it, and before that
    value = _side_by_side(source, packed, emit)
    if rotary is not None:
        attributes = {**attributes_of(rotary), "num_heads": heads}
        inputs = [value, *rotary.inputs[1:]]
        outputs = [(packed.dtype, dims(packed))]
        [value] = emit.node("RotaryEmbedding", inputs, outputs, attributes)
    ir.convenience.replace_all_uses_with(packed, value)
    return True


def _side_by_side(source: ir.Value, packed: ir.Value, emit: Emitter) -> ir.Value:
    """`source` [batch, time, heads, size] in the shape of `packed`."""
    node = producer(source, "Reshape")
    whole = node.inputs[0] if node else None
    if whole is not None and dims(whole) == dims(packed):
        return whole
    shape = emit.constant([0, 0, (dims(packed) or ())[2]])
    return emit("Reshape", [source, shape], packed.dtype, dims(packed))


def _give(node: ir.Node) -> bool:
    """Let those who turn the result of `node` back take it as it comes."""
    packed, changed = node.outputs[0], False
    for apart in [user for user, _ in packed.uses() if user.op_type == "Reshape"]:
        for by_head in _users(apart.outputs[0], "Transpose"):
            for back in _users(by_head.outputs[0], "Transpose"):
                if _turned(by_head.outputs[0]) is None or _turned(back.outputs[0]) is None:
                    continue
                for user in _users(back.outputs[0], "Reshape"):
                    if dims(user.outputs[0]) == dims(packed):
                        replace_uses(user.outputs[0], packed)
                        changed = True
                if back.outputs[0].uses():
                    replace_uses(back.outputs[0], apart.outputs[0])
                    changed = True
    return changed


def _users(value: ir.Value, op: str) -> list[ir.Node]:
    return [node for node, _ in value.uses() if node.op_type == op and not node.domain]
