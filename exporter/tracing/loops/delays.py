"""When each computation of a body runs, so that little is carried.

What a token makes computable may run with it, or with a later token that needs it: of
``h_t = f(x_t, U h_{t-1})`` either ``U h`` is carried or ``h``.  Registers are moved over one
computation at a time, from where values are used to where they are made, as in the retiming of
circuits (Leiserson and Saxe 1991), as long as they do not grow.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from .loop_streams import Edge, Flow, Stream
from .tidy import SELECT


class _Use(NamedTuple):
    """Who takes a stream, None being a list that the loop gives, and as what."""

    user: Stream | None
    flow: Flow


Uses = Mapping[Stream, Sequence[_Use]]


def delayed(edges: Sequence[Edge]) -> dict[Stream, int]:
    """By how many iterations each stream runs after the token that makes it computable."""
    uses = _uses(edges)
    soon = dict.fromkeys(uses, 0)
    late = _moved(uses, soon, lambda _stream, _later: True)

    def shrinks(stream: Stream, later: Mapping[Stream, int]) -> bool:
        return _growth(stream, uses, later) <= 0

    found = [_moved(uses, soon, shrinks), late]
    return min(reversed(found), key=lambda later: sum(_carried(s, uses, later) for s in uses))


def _moved(
    uses: Uses, later: Mapping[Stream, int], wanted: Callable[[Stream, Mapping[Stream, int]], bool]
) -> dict[Stream, int]:
    """`later` after all moves that may be made and are `wanted`."""
    found = dict(later)
    order = sorted(uses, key=lambda stream: -stream.sample.order)
    moved = True
    while moved:
        moved = False
        for stream in order:
            if _may_move(stream, uses, found) and wanted(stream, found):
                found[stream] += 1
                moved = True
    return found


def shared(edges: Sequence[Edge]) -> list[Edge]:
    """`edges` where all that take a stream agree on what it was at first, so that one is carried.

    What a user of a stream never takes, because it starts later, is what the others say it is.
    """
    known: dict[Stream, tuple[dict[int, Any], dict[int, Any]]] = {}
    uses = _uses(edges)
    for stream, users in uses.items():
        starts: dict[int, Any] = {}
        early: dict[int, Any] = {}
        for _, flow in users:
            told = {at - flow.delay: value for at, value in enumerate(flow.starts)}
            starts = {**{at: v for at, v in told.items() if v is not None}, **starts}
            early = {**dict(flow.early), **early}
        known[stream] = (starts, early)

    def agreed(edge: Edge) -> Edge:
        if not isinstance(edge, Flow):
            return edge
        starts, early = known[edge.stream]
        own = {at - edge.delay: value for at, value in enumerate(edge.starts)}
        if any(v is not None and v is not starts[at] and v != starts[at] for at, v in own.items()):
            return edge
        if any(value is not early[at] for at, value in edge.early):
            return edge
        return replace(
            edge,
            starts=tuple(starts.get(at) for at in range(-edge.delay, 0)),
            early=tuple(sorted(early.items())),
        )

    for stream in uses:
        stream.edges = [agreed(edge) for edge in stream.edges]
    return [agreed(edge) for edge in edges]


def _uses(edges: Sequence[Edge]) -> Uses:
    found: dict[Stream, list[_Use]] = defaultdict(list)
    waiting: list[tuple[Stream | None, Edge]] = [(None, edge) for edge in edges]
    seen: set[Stream] = set()
    while waiting:
        user, edge = waiting.pop()
        if isinstance(edge, Flow):
            found[edge.stream].append(_Use(user, edge))
            if edge.stream not in seen:
                seen.add(edge.stream)
                waiting += [(edge.stream, each) for each in edge.stream.edges]
    return found


def _may_move(stream: Stream, uses: Uses, later: Mapping[Stream, int]) -> bool:
    """Whether everyone takes `stream` later, and there is one for the first of these."""
    if stream.sample.op is SELECT:
        return False
    if any(use.flow.early or use.flow.here for use in uses[stream]):
        return False
    firsts = [(use.user.start if use.user else 0) - use.flow.delay for use in uses[stream]]
    return all(first in stream.members for first in firsts) and all(
        _delay(stream, use, later) > 0 for use in uses[stream]
    )


def _delay(stream: Stream, use: _Use, later: Mapping[Stream, int]) -> int:
    return use.flow.delay + (later[use.user] if use.user else 0) - later[stream]


def _growth(stream: Stream, uses: Uses, later: Mapping[Stream, int]) -> float:
    """By how much what is carried grows, in entries, if `stream` runs one iteration later."""
    after = {**later, stream: later[stream] + 1}
    taken = {edge.stream for edge in stream.edges if isinstance(edge, Flow)}
    return sum(_carried(s, uses, after) - _carried(s, uses, later) for s in {stream, *taken})


def _carried(stream: Stream, uses: Uses, later: Mapping[Stream, int]) -> float:
    """Entries of the registers of `stream`."""
    age = max(_delay(stream, use, later) for use in uses[stream])
    if not isinstance(stream.sample.value, Tensor):
        return math.inf if age else 0.0
    return age * math.prod(dim for dim in stream.sample.shape if isinstance(dim, int))
