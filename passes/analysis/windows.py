"""Rules for windows that move over time: convolutions, transposed ones, pooling.

With n entries of a sequence, `lead` before them and `trail` after them, a window over entries
0 .. reach that moves by `stride` gives

    floor((lead + n + trail - reach - 1) / stride) + 1,

of which the j-th comes from the entries j stride - lead .. j stride - lead + reach.  Where a token
has a multiple of `stride` entries, its last result needs nothing later if lead >= reach - stride +
1; what is in front beyond that gives results of padding alone, the lead of the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from intaglio.passes.graph import attribute, dims

from .time_facts import Along, Fact, Timing, length, only, refuse

PICKS_FLOOR = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}
"""How entries of a longer sequence pick the one that they repeat, by whole numbers of repeats."""

WINDOWS = frozenset({"AveragePool", "Conv", "ConvTranspose", "MaxPool"})


@dataclass(frozen=True)
class Window:
    """How a node moves over `axis`: by `stride`, from an entry to the one `reach` after it.

    `begin` and `end` count zeros that it puts around the sequence itself, `extra` what a
    transposed convolution adds to its end.
    """

    axis: int
    stride: int
    reach: int
    begin: int
    end: int
    extra: int = 0

    @classmethod
    def of(cls, node: ir.Node, axis: int) -> "Window":
        """The window of `node` over `axis`.

        Raises:
            PassError: if it pads itself by what is not told.
        """
        pooled = node.op_type in ("AveragePool", "MaxPool")
        shape = attribute(node, "kernel_shape") or (dims(node.inputs[1]) or ())[2:]
        if pooled:
            shape = attribute(node, "kernel_shape")
        size, place = len(shape), axis - 2
        auto = attribute(node, "auto_pad", "NOTSET")
        if auto not in ("NOTSET", b"NOTSET", "VALID", b"VALID"):
            raise refuse(node, f"pads itself ({auto}), which looks ahead in time.")
        pads = list(attribute(node, "pads") or [0] * 2 * size)
        dilation = list(attribute(node, "dilations") or [1] * size)[place]
        return cls(
            axis=axis,
            stride=int(list(attribute(node, "strides") or [1] * size)[place]),
            reach=(int(shape[place]) - 1) * int(dilation),
            begin=int(pads[place]),
            end=int(pads[place + size]),
            extra=int(list(attribute(node, "output_padding") or [0] * size)[place]),
        )

    def front(self, fact: Along) -> int:
        """Entries before those of a token that it takes with them; `conv` shows it not negative."""
        least = self.reach - self.stride + 1
        lead = fact.lead + self.begin
        return lead - (lead - least) // self.stride * self.stride

    @property
    def history(self) -> int:
        """Entries before those of a token that a transposed convolution takes with them."""
        return self.reach // self.stride


def delays(node: ir.Node, fact: Along, start: int) -> bool:
    """Whether a Slice from `start` on gives each token an entry that is before its own."""
    kept = length((dims(node.outputs[0]) or ())[fact.axis])
    own = not fact.flat and not fact.positional
    return own and 0 <= start < fact.lead and kept == (fact.each, 0)


def conv(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """A convolution: causal where it is padded in front."""
    fact = only(node, timing)
    if fact.axis == 0 and not fact.padded:
        return [fact]
    if fact.axis < 2:
        raise refuse(node, "has time as its channels: it sums over time.")
    if fact.flat:
        raise refuse(node, "is over time that is merged with the rows.")
    window = Window.of(node, fact.axis)
    if fact.lead and not fact.blank and window.begin:
        raise refuse(node, "puts zeros in front of what padding became.")
    return [_moved(node, fact, window, timing)]


def _moved(node: ir.Node, fact: Along, window: Window, timing: Timing) -> Along:
    stride, reach = window.stride, window.reach
    lead, trail = fact.lead + window.begin, fact.trail + window.end
    if fact.each % stride:
        raise refuse(
            node,
            f"moves over time in strides of {stride}, where a step has {fact.each} entries for "
            "each token: some token would be left over. Nothing showed how many frames make a "
            "step; say so with --axes, as NAME:batchx6xtime=4..:4.",
        )
    least = reach - stride + 1
    if lead < least:
        raise refuse(
            node,
            f"looks {least - lead} tokens ahead: a causal convolution of kernel "
            f"{reach + 1} is padded by {least} on the left.",
        )
    before = (lead - least) // stride
    after = (lead + trail - reach - 1) // stride + 1 - before
    if trail < 0 or after < 0:
        raise refuse(node, "leaves out tokens at the end of the sequence.")
    if window.front(fact) or window.begin or window.end:
        timing.mixers.append(node)
    if fact.edge and before and stride > 1:
        raise refuse(node, "moves in strides over more of the first entry than it takes.")
    blank = not before  # what a window makes of zeros is no zero
    edge = fact.edge and not blank  # of the first entry alone, both before it and at it
    each = fact.each // stride
    return replace(fact, lead=before, trail=after, each=each, blank=blank, edge=edge)


def transposed(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """A transposed convolution: each entry is spread over those from its own on."""
    fact = only(node, timing)
    if fact.axis == 0 and not fact.padded:
        return [fact]
    if fact.axis < 2:
        raise refuse(node, "has time as its channels: it sums over time.")
    if fact.flat or fact.lead:
        raise refuse(node, "spreads what is not [batch, channels, time, ...].")
    if attribute(node, "output_shape") is not None:
        raise refuse(node, "cuts its result to a shape of its own.")
    window = Window.of(node, fact.axis)
    stride, begin = window.stride, window.begin
    if begin:
        raise refuse(
            node,
            f"looks {-(-begin // stride)} tokens ahead: it leaves out its first {begin} results. A "
            f"causal transposed convolution leaves out {window.reach + 1 - stride} at the end, as "
            "y[..., : stride * time] does.",
        )
    trail = (fact.trail - 1) * stride + window.reach + 1 + window.extra - window.end
    if trail < 0:
        raise refuse(node, "gives less than its stride for the last token.")
    if window.history or window.end:
        timing.mixers.append(node)
    return [replace(fact, each=fact.each * stride, trail=trail, positional=False)]


def pool(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """The mean or the largest of a window, of zeros too that a Pad put in front."""
    fact = only(node, timing)
    if fact.axis < 2 and not fact.padded:
        return [fact]  # each channel is pooled by itself
    if fact.axis < 2 or fact.flat:
        raise refuse(node, "is over time that is merged with another axis.")
    window = Window.of(node, fact.axis)
    counted = node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0)
    if (window.begin or window.end) and not counted:
        raise refuse(
            node,
            "pads itself with what is not counted. Pad with zeros in front, by "
            "torch.nn.functional.pad.",
        )
    if attribute(node, "ceil_mode", 0) or len(node.outputs) > 1:
        raise refuse(node, "rounds its length up, or returns places.")
    return [_moved(node, fact, window, timing)]


def sample(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Pictures warped by a grid of each: frames of a stream, or channels that are tokens."""
    picture, grid = (timing.of(value) for value in node.inputs[:2])
    if isinstance(picture, Along) and not picture.padded:
        if picture.axis == 1 and grid is None:
            return [picture]
        own = replace(picture, positional=False)
        if picture.axis == 0 and isinstance(grid, Along) and replace(grid, positional=False) == own:
            return [replace(picture, positional=picture.positional and grid.positional)]
    raise refuse(node, "samples along time, or tokens of one by places of others.")


def resize(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Each entry repeated a whole number of times."""
    fact = timing.of(node.inputs[0])
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if not isinstance(fact, Along) or fact.flat or fact.padded or before is None or after is None:
        raise refuse(node, "resizes what has no time axis of its own.")
    found = length(after[fact.axis])
    words = [attribute(node, "mode", "nearest"),
             attribute(node, "coordinate_transformation_mode", "half_pixel"),
             attribute(node, "nearest_mode", "round_prefer_floor")]  # fmt: skip
    mode, places, rounded = (w.decode() if isinstance(w, bytes) else w for w in words)
    sizes = enumerate(zip(before, after, strict=True))
    same = all(old == new for axis, (old, new) in sizes if axis != fact.axis)
    repeats = found is not None and found[1] == 0 and found[0] % fact.each == 0
    if mode != "nearest" or (places, rounded) not in PICKS_FLOOR or not repeats:
        raise refuse(node, "resizes a sequence otherwise than by repeating each entry.")
    if found is None or not same:
        raise refuse(node, "resizes time and another axis at once.")
    return [replace(fact, each=found[0])]
