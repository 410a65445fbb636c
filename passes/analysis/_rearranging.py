"""Rules for operators that move, cut or join entries: time must come through in one piece."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from intaglio.passes.graph import END, Dim, attribute, constant, dims, input_of, integers
from intaglio.state import BATCH, TIME

from . import windows
from .time_facts import (
    LAST,
    Along,
    Fact,
    Timing,
    batchless,
    length,
    moved,
    normal,
    only,
    refuse,
    shifted,
)


def transpose(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = only(node, timing)
    rank = len(dims(node.inputs[0]) or ())
    perm = list(attribute(node, "perm") or reversed(range(rank)))
    return [moved(fact, perm.index(fact.axis))]


def unsqueeze(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact, added = only(node, timing), integers(node.inputs[1])
    if added is None:
        raise refuse(node, "adds axes that are not constant.")
    rank = len(dims(node.inputs[0]) or ()) + len(added)
    new = {normal(axis, rank) for axis in added}
    kept = [axis for axis in range(rank) if axis not in new]
    return [moved(fact, kept[fact.axis])]


def squeeze(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact, gone = only(node, timing), integers(input_of(node, 1))
    rank = len(dims(node.inputs[0]) or ())
    if gone is None or fact.axis in {normal(axis, rank) for axis in gone}:
        raise refuse(node, "squeezes the time axis: the number of tokens was frozen to one.")
    return [moved(fact, fact.axis - sum(normal(axis, rank) < fact.axis for axis in gone))]


def factors(shape: Sequence[int | str]) -> tuple[int, Counter[str]]:
    """A product of dimensions as its integer part and its symbols."""
    number, symbols = 1, Counter[str]()
    for dim in shape:
        for factor in str(dim).replace("(", "").replace(")", "").split("*"):
            if factor.strip().isdigit():
                number *= int(factor)
            else:
                symbols[factor.strip()] += 1
    return number, symbols


def reshape(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = only(node, timing)
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None:
        raise refuse(node, "has an unknown shape.")
    outer = factors(before[: fact.axis])
    entries_before = factors(before[fact.axis : fact.axis + 1])
    merged = fact.flat or (fact.axis and before[fact.axis - 1] == BATCH)
    rows = outer if fact.flat else factors(before[: max(fact.axis - 1, 0)])
    for axis, dim in enumerate(after):
        entries, symbols = factors([dim])
        if factors(after[:axis]) == outer and factors([dim]) == entries_before:
            if fact.padded and not keeps_rows(before, after, axis):
                break
            return [moved(fact, axis)]
        own = not fact.flat and not fact.padded and symbols == Counter((TIME,))
        if own and factors(after[:axis]) == outer:  # entries of a token, and axes behind it
            return [replace(fact, axis=axis, each=entries)]
        if fact.flat and axis and after[axis - 1] == BATCH and symbols == Counter((TIME,)):
            if factors(after[: axis - 1]) == outer:
                return [replace(fact, axis=axis, flat=0, each=entries)]
            continue
        if merged and symbols == Counter((BATCH, TIME)) and factors(after[:axis]) == rows:
            return [replace(fact, axis=axis, flat=entries, each=1)]
    raise refuse(
        node,
        f"reshapes {list(before)} to {list(after)}, which loses the time axis: the number of "
        "tokens is merged with something else or was frozen to a constant.",
    )


def keeps_rows(before: Sequence[Dim], after: Sequence[Dim], axis: int) -> bool:
    """Whether a Reshape leaves rows in front, and all sizes but theirs and time's are numbers."""
    others = [dim for at, dim in enumerate(after) if at not in (0, axis)]
    return axis > 0 and after[0] == before[0] and all(isinstance(dim, int) for dim in others)


def expand(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = timing.of(node.inputs[0])
    shape = dims(node.outputs[0])
    if not isinstance(fact, Along) or shape is None:
        raise refuse(node, "expands to a shape that is not known.")
    moved = shifted(fact, len(shape) - len(dims(node.inputs[0]) or ()))
    if TIME not in str(shape[moved.axis]) or sum(TIME in str(dim) for dim in shape) > 1:
        raise refuse(node, "repeats entries along time.")
    return [replace(moved, positional=moved.positional and batchless(node.outputs[0]))]


def concat(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    rank = len(dims(node.outputs[0]) or ())
    axis = normal(attribute(node, "axis"), rank)
    facts = [timing.of(value) for value in node.inputs]
    along = [fact for fact in facts if isinstance(fact, Along)]
    places = {(f.axis, f.flat, f.each, f.lead, f.trail, f.edge) for f in along}
    if len(along) < len(facts) or len(places) > 1:
        raise refuse(node, "joins values that do not all lie along time in the same way.")
    if axis == along[0].axis:
        raise refuse(node, "joins sequences along time.")
    fact = along[0]
    positional = all(f.positional for f in along) and batchless(node.outputs[0])
    return [replace(fact, positional=positional, blank=all(f.blank for f in along))]


def split(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = only(node, timing)
    rank = len(dims(node.inputs[0]) or ())
    if normal(attribute(node, "axis", 0), rank) == fact.axis:
        raise refuse(node, "splits the sequence along time.")
    return [fact] * len(node.outputs)


def cut(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = timing.of(node.inputs[0])
    starts, ends = integers(node.inputs[1]), input_of(node, 2)
    rank = len(dims(node.inputs[0]) or ())
    axes, steps = integers(input_of(node, 3)), integers(input_of(node, 4))
    if isinstance(fact, Along) and _cuts_nothing(node, steps):
        return [fact]
    if isinstance(fact, Along) and starts is None and (found := _cut_front(node, fact)) is not None:
        return [found]
    if not isinstance(fact, Along) or starts is None or ends is None:
        raise refuse(node, "slices at places that depend on the number of tokens.")
    axes = [normal(axis, rank) for axis in axes or range(len(starts))]
    if fact.axis not in axes:
        return [fact]
    at = axes.index(fact.axis)
    pace = (steps or [1] * len(axes))[at]
    first = len(axes) == 1 and (starts[at], integers(ends), pace) == (0, [1], 1)
    if first and _plain(fact) and fact.each == 1:
        timing.mixers.append(node)  # which keeps it
        return [None]
    if starts[at] == -1 and (integers(ends) or [0])[at] >= END and _plain(fact) and pace == 1:
        return [LAST]
    found = _cut_to(node, fact, starts[at], pace)
    if found is None and len(axes) == 1 and pace == 1 and windows.delays(node, fact, starts[at]):
        timing.mixers.append(node)
        return [replace(fact, lead=0, trail=0, blank=True, edge=False)]
    if found is None:
        raise refuse(node, "takes only some of the tokens, or takes them in another order.")
    return [found]


def _cut_to(node: ir.Node, fact: Along, start: int, pace: int) -> Along | None:
    """What is left of padding, or of the entries of each token, by the length of the result."""
    kept = length((dims(node.outputs[0]) or ())[fact.axis])
    if kept is None or fact.flat or start < 0:
        return None
    if pace > 1:  # the same entries of each token
        fits = fact.each % pace == 0 and start < pace and not fact.padded
        left = fact.each // pace
        return replace(fact, each=left) if fits and kept == (left, 0) else None
    trail = fact.lead + fact.trail - kept[1] - start
    if pace != 1 or kept[0] != fact.each or start > fact.lead or trail < 0:
        return None
    if trail > fact.trail:
        return None
    return _without(fact, start, trail)


def _cut_front(node: ir.Node, fact: Along) -> Along | None:
    """The last entries, x[..., -n:], where n is known by the length of the result alone."""
    axes, ends = integers(input_of(node, 3)), integers(input_of(node, 2))
    steps = integers(input_of(node, 4)) or [1]
    rank = len(dims(node.inputs[0]) or ())
    kept = length((dims(node.outputs[0]) or ("?",) * rank)[fact.axis])
    if axes is None or [normal(axis, rank) for axis in axes] != [fact.axis] or fact.flat:
        return None
    if kept is None or kept[0] != fact.each or steps != [1] or (ends or [0])[0] < END:
        return None
    start = fact.lead + fact.trail - kept[1]
    return _without(fact, start, 0) if 0 <= start <= fact.lead else None


def _without(fact: Along, before: int, after: int) -> Along:
    """`fact` without so many of the entries that padding put before and after the tokens."""
    lead = fact.lead - before
    blank, edge = fact.blank or not lead, fact.edge and bool(lead)
    return replace(fact, lead=lead, trail=fact.trail - after, blank=blank, edge=edge)


def _plain(fact: Along) -> bool:
    """Whether the last entry along time is that of the last token."""
    return not (fact.flat or fact.positional or fact.lead or fact.trail)


def _cuts_nothing(node: ir.Node, steps: Sequence[int] | None) -> bool:
    """Whether a Slice takes everything, as x[:, -T:] of T tokens does."""
    before, after = dims(node.inputs[0]) or ("?",), dims(node.outputs[0])
    known = steps is not None or input_of(node, 4) is None
    return known and set(steps or [1]) == {1} and "?" not in before and before == after


def pad(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact, pads = only(node, timing), integers(node.inputs[1])
    rank = len(dims(node.inputs[0]) or ())
    axes = integers(input_of(node, 3)) or list(range(rank))
    if pads is None:
        raise refuse(node, "pads by amounts that are not constant.")
    where = [normal(axis, rank) for axis in axes]
    if fact.axis not in where:
        return [fact]
    at = where.index(fact.axis)
    lead, trail = pads[at], pads[at + len(where)]
    if attribute(node, "mode", "constant") in ("edge", b"edge"):
        return [_repeating_first(node, fact, lead, trail)]
    given = input_of(node, 2)
    fill = constant(given)
    if attribute(node, "mode", "constant") not in ("constant", b"constant") or (
        given is not None and fill is None
    ):
        raise refuse(node, "pads the sequence in time with something else than a constant.")
    blank = fact.blank and (lead <= 0 or fill is None or not fill.any())
    if fact.lead + lead < 0 or fact.trail + trail < 0:
        raise refuse(node, "cuts tokens off the sequence.")
    if lead > 0 and fact.lead and not (fact.blank and blank):
        raise refuse(node, "pads in front of what padding became.")
    return [replace(fact, lead=fact.lead + lead, trail=fact.trail + trail, blank=blank)]


def _repeating_first(node: ir.Node, fact: Along, lead: int, trail: int) -> Along:
    """What a Pad gives that repeats the first entry in front."""
    if trail:
        raise refuse(node, "repeats the last token after the end, which no step knows to be last.")
    if fact.padded and not fact.edge:
        raise refuse(node, "pads in front of what padding became.")
    if fact.lead + lead < 0:
        raise refuse(node, "cuts tokens off the sequence.")
    if fact.flat or fact.positional:
        raise refuse(node, "repeats the first of what is no sequence of its own.")
    edge = fact.lead + lead > 0
    return replace(fact, lead=fact.lead + lead, blank=not edge, edge=edge)


def gather(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    data, indices = timing.of(node.inputs[0]), timing.of(node.inputs[1])
    rank, picks = len(dims(node.inputs[0]) or ()), len(dims(node.inputs[1]) or ())
    axis = normal(attribute(node, "axis", 0), rank)
    if data is None and isinstance(indices, Along):
        return [replace(shifted(indices, axis), blank=not indices.lead)]
    if isinstance(data, Along) and indices is None:
        if axis == data.axis:
            if integers(node.inputs[1]) == [-1] and _plain(data):
                return [LAST]
            if integers(node.inputs[1]) == [0] and _plain(data) and data.each == 1:
                timing.mixers.append(node)  # which keeps it
                return [None]
            raise refuse(node, "picks tokens out of the sequence.")
        return [moved(data, data.axis if data.axis < axis else data.axis + picks - 1)]
    raise refuse(node, "picks entries of one token by another.")


def row_gather(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """A row of a constant table for each index."""
    return [only(node, timing)]


def gather_nd(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Constant places in the first axes, of which time is none; or rows of a constant table."""
    fact, places = timing.of(node.inputs[0]), dims(node.inputs[1]) or ("?",)
    depth, picked = places[-1], timing.of(node.inputs[1])
    if fact is None and isinstance(picked, Along) and picked.axis < len(places) - 1:
        return [picked]
    constant_places = picked is None and isinstance(depth, int)
    if not isinstance(fact, Along) or not constant_places or attribute(node, "batch_dims", 0):
        raise refuse(node, "picks entries of one token by another.")
    if fact.axis < int(depth):
        raise refuse(node, "picks tokens out of the sequence.")
    return [moved(fact, fact.axis - int(depth) + len(places) - 1)]


def scatter_nd(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Constant places in the first axes, of which time is none, take other values of the token."""
    data, updates = (timing.of(node.inputs[i]) for i in (0, 2))
    places = dims(node.inputs[1]) or ("?",)
    if timing.of(node.inputs[1]) is not None or not isinstance(places[-1], int):
        raise refuse(node, "writes to places that depend on tokens.")
    if not isinstance(data, Along) or data.axis < places[-1]:
        raise refuse(node, "writes to some of the tokens.")
    if updates != moved(data, data.axis - places[-1] + len(places) - 1):
        raise refuse(node, "writes values of other tokens.")
    return [data]


def along_elements(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """GatherElements and ScatterElements on another axis than time."""
    rank = len(dims(node.inputs[0]) or ())
    axis = normal(attribute(node, "axis", 0), rank)
    picked = timing.of(node.inputs[1])
    outside = node.op_type == "GatherElements" and timing.of(node.inputs[0]) is None
    if outside and isinstance(picked, Along) and picked == Along(axis, each=picked.each):
        return [picked]  # what does not lie along time, at a place for each token
    along = {fact for fact in map(timing.of, node.inputs) if isinstance(fact, Along)}
    places = {(fact.axis, fact.flat, fact.each) for fact in along}
    whole = all(timing.of(value) is not None for value in node.inputs)
    if len(places) > 1 or not whole or axis in {fact.axis for fact in along}:
        raise refuse(node, "moves entries between tokens.")
    fact = next(iter(along))
    return [Along(fact.axis, fact.flat, each=fact.each)]


def tile(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact, repeats = only(node, timing), integers(node.inputs[1])
    if repeats is None or repeats[fact.axis] != 1:
        raise refuse(node, "repeats entries along time.")
    return [fact]
