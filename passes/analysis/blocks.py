"""Masks in which tokens see later ones of their own block: found by computing all of their entries.

A mask of positions alone, whose tables end after so many tokens, is a matrix that can be computed.
A sequence may be cut after token e if no token before e sees one from e on; between two such places
lies a block.  A call that takes whole blocks needs nothing later.  Where no token sees an earlier
block either, and all of its own, a call needs nothing of what came before: there is no cache.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes.evaluate import part, run
from intaglio.passes.graph import dims
from intaglio.state import BATCH, TIME

from .bounding import MARGIN
from .bounds import SCORE
from .pairs import Axes, PairTerm, leaves

LARGEST = 4096  # tokens of a mask that is computed whole
OTHER = 2  # of a size that is neither batch nor time


@dataclass(frozen=True)
class Blocks:
    """Calls may end after each of `ends` tokens, the last of which is the most that a mask allows.

    `alone` says that each token sees its whole block and nothing else.
    """

    ends: tuple[int, ...]
    alone: bool

    @property
    def limit(self) -> int:
        """The most tokens that the mask holds."""
        return self.ends[-1]


def blocks(graph: ir.Graph, term: PairTerm, limit: int | None) -> Blocks | None:
    """The blocks of a mask that holds `limit` tokens; None where it is no such mask.

    None too where only the whole sequence is a block.
    """
    if limit is None or limit > LARGEST or leaves(term):
        return None
    seen = _seen(graph, term.value, term.axes, limit)
    reach = np.maximum.accumulate(_farthest(seen))
    ends = [int(e) for e in np.flatnonzero(reach < np.arange(limit) + 1) + 1]
    if len(ends) < 2 or ends[-1] != limit:
        return None
    block = np.searchsorted(ends, np.arange(limit), side="right")
    return Blocks(tuple(ends), bool(np.array_equal(seen, block[:, None] == block[None])))


def _farthest(seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The last token that each one sees; itself where it sees none."""
    size = len(seen)
    last = size - 1 - seen[:, ::-1].argmax(axis=1)
    return np.where(seen.any(axis=1), last, np.arange(size))


def _seen(graph: ir.Graph, mask: ir.Value, axes: Axes, tokens: int) -> npt.NDArray[np.bool_]:
    """Which token sees which, in any row and head: bool [tokens, tokens]."""
    made = part(ir.Model(graph, ir_version=10), [mask])
    sizes = {BATCH: 1, TIME: tokens}
    feeds = {
        str(value.name): np.zeros(
            [d if isinstance(d, int) else sizes.get(d, OTHER) for d in dims(value) or ()],
            (value.dtype or ir.DataType.FLOAT).numpy(),
        )
        for value in made.graph.inputs
    }
    (found,) = run(made, feeds).values()
    least = -(2 * SCORE + MARGIN)
    allowed = np.asarray(found if found.dtype == np.bool_ else found > least)
    query, key = axes.query, axes.key
    assert query is not None
    assert key is not None
    both = np.moveaxis(allowed, (query, key), (-2, -1))
    return np.asarray(both.reshape(-1, tokens, tokens).any(axis=0))
