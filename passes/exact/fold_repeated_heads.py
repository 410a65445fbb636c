"""Attention(q, repeat(k), repeat(v)) -> Attention(q, k, v), for keys and values repeated by head.

Likewise LinearAttention, whose decays and rates have to be repeated with them: the heads of a group
then share one state (`_shared_states`).

Holds where head j of the repeated value is head j // r of the original (repeat-interleave), which
is what grouped-query attention computes anyway (Ainslie et al. 2023, arXiv:2305.13245).  Whether
the nodes in between do that is found by running them; the cache then holds the real heads only.
"""

import numpy as np
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import describe, dims
from intaglio.state import BATCH, TIME

from ._shared_states import MOVERS, share_states


class FoldRepeatedHeads(Exact):
    """Let attention share key-value heads, and linear attention states, that are repeated."""

    for_tokens = True

    def rewrite(self, model: ir.Model) -> PassResult:
        """Fold each repetition whose key and value come from equally many fewer heads."""
        notes = []
        for node in model.graph:
            if node.op_type == "LinearAttention" and not node.domain:
                shared = share_states(model, node)
                if shared is not None:
                    notes.append(f"{describe(node)} keeps {shared[0]} of {shared[1]} states")
                continue
            if node.op_type != "Attention" or node.domain:
                continue
            key, value = (_unrepeated(model, node.inputs[index]) for index in (1, 2))
            if key is None or value is None or _heads(key) != _heads(value):
                continue
            was = _heads(node.inputs[1])
            node.replace_input_with(1, key)
            node.replace_input_with(2, value)
            notes.append(f"{describe(node)} keeps {_heads(key)} of {was} key-value heads")
        return PassResult(changed=bool(notes), notes=notes)


def _heads(value: ir.Value | None) -> int | None:
    shape = None if value is None else dims(value)
    return shape[1] if shape and len(shape) == 4 and isinstance(shape[1], int) else None


def _unrepeated(model: ir.Model, value: ir.Value | None) -> ir.Value | None:
    """The value of fewer heads that `value` repeats, found by walking back and trying."""
    heads = _heads(value)
    origin = value
    while origin is not None and heads is not None:
        node = origin.producer()
        if node is None or node.op_type not in MOVERS or node.domain:
            return None
        origin = node.inputs[0]
        fewer = _heads(origin)
        if origin is not None and fewer is not None and fewer < heads and heads % fewer == 0:
            assert value is not None
            return origin if _repeats(model, origin, value) else None
    return None


def _repeats(model: ir.Model, origin: ir.Value, value: ir.Value) -> bool:
    """Whether `value` is `origin` with each head repeated in place, by running it."""
    probe = evaluate.part(model, [value], given=[origin])
    sizes = {BATCH: 2, TIME: 3}
    random = np.random.default_rng(0)
    feeds = {}
    for entry in probe.graph.inputs:
        shape = [d if isinstance(d, int) else sizes.get(str(d.value), 1) for d in entry.shape or ()]
        dtype = (entry.dtype or ir.DataType.FLOAT).numpy()
        feeds[str(entry.name)] = random.integers(0, 9, shape).astype(dtype)
    result = next(iter(evaluate.run(probe, feeds).values()))
    base = feeds[str(origin.name)]
    return bool(np.array_equal(result, np.repeat(base, result.shape[1] // base.shape[1], axis=1)))
