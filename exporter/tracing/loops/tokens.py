"""A loop over chunks of C tokens as one over tokens, whatever it computes within a chunk.

Carried are what the loop carries from chunk to chunk, and the tokens of the chunk at hand.  Each
token computes the chunk anew, itself standing in the places of later ones, and takes the entry at
its own place; the last token of a chunk passes on what is carried.  So a token's result must not
depend on later ones of its chunk: `roll` compares at every length that a last chunk can have.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .body import IterationGraph
from .lifted import batch_axis, is_batched
from .loop_streams import PartedError
from .terms import Term, aten

WHOLE: dict[str, Any] = {"memory_format": torch.contiguous_format}


class PerToken:
    """The body of a loop over tokens, made of one over chunks of `chunk` tokens.

    Its holders are what is carried, then the tokens of the chunk for each read, then one token of
    each, the position, the places within a chunk, and what is fixed.
    """

    def __init__(
        self, body: IterationGraph, chunk: int, results: Sequence[tuple[Term, int]]
    ) -> None:
        """Make it; `results` are an entry of each list, and its axis of tokens."""
        self.graph = fx.Graph()
        self._chunk, self._registers = chunk, list(body.registers.values())
        hold = self.graph.placeholder
        reads = [(read.bases[0], read.axis) for read in body.reads]
        registers = [hold(f"carried_{i}") for i in range(len(body.registers))]
        buffers = [hold(f"chunk_{i}") for i in range(len(reads))]
        tokens = [hold(f"token_{i}") for i in range(len(reads))]
        position, places = hold("position"), hold("places")
        fixed = [hold(f"fixed_{i}") for i in range(len(body.fixed))]
        self._place = self._call(aten.remainder.Scalar, position, chunk)
        later = self._call(
            aten.ge.Tensor, places, self._call(aten.unsqueeze.default, self._place, 1)
        )
        known = dict(zip((r.holder for r in body.registers.values()), registers, strict=True))
        filled = []
        for (base, axis), buffer, token, holder in zip(
            reads, buffers, tokens, body.reads.values(), strict=True
        ):
            rows, rest = layout(base, axis)
            now = self._call(aten.movedim.int, token, rows, 0) if rows else token
            mask = self._call(aten.view.default, later, [-1, chunk, *[1] * len(rest)])
            one = self._call(aten.unsqueeze.default, now, 1)
            whole = self._call(aten.where.self, mask, one, buffer)
            filled.append(whole)
            at = axis if is_batched(base) else axis + 1
            known[holder] = self._unpacked(whole, rows, at)
        if body.position is not None:
            known[body.position] = self._call(
                aten.div.Tensor_mode, position, chunk, rounding_mode="floor"
            )
        known |= dict(zip(body.fixed.values(), fixed, strict=True))
        given = self.graph.graph_copy(body.graph, known)
        assert isinstance(given, tuple)
        self._close(registers, given[: len(registers)], filled, given[len(registers) :], results)

    def _call(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(op, args, kwargs)

    def _unpacked(self, whole: fx.Node, rows: int, at: int) -> fx.Node:
        """[batch, chunk, ...] as the loop over chunks takes it: rows and tokens where they were."""
        node = self._call(aten.movedim.int, whole, 1, -1)
        if rows:
            node = self._call(aten.movedim.int, node, 0, rows)
        return self._call(aten.movedim.int, node, -1, at)

    def _close(
        self,
        registers: Sequence[fx.Node],
        carried: Sequence[Any],
        filled: Sequence[fx.Node],
        given: Sequence[Any],
        results: Sequence[tuple[Term, int]],
    ) -> None:
        done = self._call(aten.eq.Scalar, self._place, self._chunk - 1)
        kept = []
        for before, after, register in zip(registers, carried, self._registers, strict=True):
            beside = len(register.like.shape) - is_batched(register.like)
            mask = self._call(aten.view.default, done, [-1, *[1] * beside])
            kept.append(self._call(aten.where.self, mask, after, before))
        picked = [
            self._picked(node, entry, axis)
            for node, (entry, axis) in zip(given, results, strict=True)
        ]
        every = [*kept, *filled, *picked]
        self.graph.output(tuple(self._call(aten.clone.default, node, **WHOLE) for node in every))

    def _picked(self, node: fx.Node, entry: Term, axis: int) -> fx.Node:
        """The entry of the token at hand, of those of a chunk."""
        rows = batch_axis(entry)
        rest = [dim for at, dim in enumerate(entry.shape) if at not in (rows, axis)]
        packed = self._call(aten.movedim.intlist, node, [rows, axis], [0, 1])
        index = self._call(aten.view.default, self._place, [-1, 1, *[1] * len(rest)])
        index = self._call(aten.expand.default, index, [-1, 1, *rest])
        one = self._call(aten.squeeze.dim, self._call(aten.gather.default, packed, 1, index), 1)
        to = rows if rows < axis else rows - 1
        return self._call(aten.movedim.int, one, 0, to) if to else one


def layout(base: Term, axis: int) -> tuple[int, list[int]]:
    """Where a token of `base`, which is in chunks along `axis`, has its rows, and its other sizes.

    Raises:
        PartedError: if rows are merged with something else.
    """
    entry = [dim for at, dim in enumerate(base.shape) if at not in (axis, axis + 1)]
    free = [dim for dim in entry if not isinstance(dim, int)]
    if any(not dim.node.expr.is_symbol for dim in free) or len(free) > 1:
        raise PartedError(f"goes over chunks of rows that are merged with others: {free}")
    rows = next((at for at, dim in enumerate(entry) if not isinstance(dim, int)), 0)
    return rows, [dim for dim in entry if isinstance(dim, int)]
