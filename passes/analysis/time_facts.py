"""What is known of a value about time, and what several rules need to tell it.

Every value of a training-form graph gets one of four facts:

* `None`: it does not depend on time (parameters, constants, what is computed from them alone);
* `LENGTH`: a number that depends on how many tokens there are (sizes of shapes);
* `LAST`: what holds after the last token: its entry alone, a state that a recurrence ends in, and
  what is computed from these;
* `Along`: an array with one entry per token along one axis.

`positional` marks values that depend on a token's index alone (RoPE angles, learned positions):
they start at `Timing.sources` and meet the data at `Timing.frontier`, where statefulize gives each
row its own offset.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.graph import describe, dims
from intaglio.state import BATCH, TIME, entries_of


class Length(Enum):
    """The fact of values that hold the number of tokens."""

    LENGTH = "length"


LENGTH = Length.LENGTH


class Last(Enum):
    """The fact of values that hold after the last token."""

    LAST = "last"


LAST = Last.LAST


@dataclass(frozen=True)
class Along:
    """One entry per token along `axis` (not negative).

    `each`: how many entries make one token, where the sequence has another rate than the slowest.
    `flat`: where batch and time are merged into one axis, and axes behind them perhaps, how many
    entries of it each token has; 0 where time is an axis of its own.  `lead` and `trail` count
    extra entries that padding put before and after the tokens, which convolutions and slices take
    away again.  `blank`: those before the tokens are zeros still, not what became of zeros; `edge`:
    each of them is what the first entry is.
    """

    axis: int
    flat: int = 0
    positional: bool = False
    lead: int = 0
    trail: int = 0
    each: int = 1
    blank: bool = True
    edge: bool = False

    @property
    def padded(self) -> bool:
        """Whether there are entries before or after those of the tokens."""
        return bool(self.lead or self.trail)


Fact = Along | Length | Last | None


@dataclass(frozen=True)
class Needed:
    """Data of single tokens by which tokens are compared: where its time lies, if it has any."""

    value: ir.Value
    axis: int | None
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Meets:
    """A node in which tokens meet through values of pairs; `axis` is time in what it gives.

    In `blocks` where they see later ones of their own.
    """

    axis: int
    data: tuple[Needed, ...]
    blocks: bool = False


@dataclass
class Timing:
    """What the analysis found: facts of all values, and the nodes that statefulize rewrites."""

    facts: dict[ir.Value, Fact] = field(default_factory=dict)
    mixers: list[ir.Node] = field(default_factory=list)
    sources: list[ir.Node] = field(default_factory=list)
    frontier: list[tuple[ir.Node, int]] = field(default_factory=list)
    meetings: Mapping[ir.Node, Meets] = field(default_factory=dict)

    def of(self, value: ir.Value | None) -> Fact:
        """The fact of `value`; None for an absent input."""
        return None if value is None else self.facts.get(value)


def refuse(node: ir.Node, reason: str) -> PassError:
    """The error for a node that cannot be stepped; the caller raises it."""
    return PassError(f"{describe(node)} {reason}")


def batchless(value: ir.Value) -> bool:
    """Whether `value` is the same for all rows, as positions are."""
    return all(BATCH not in str(dim) for dim in dims(value) or ())


def shifted(fact: Along, by: int) -> Along:
    """`fact` with its axis moved by `by`."""
    return replace(fact, axis=fact.axis + by)


def length(dim: int | str) -> tuple[int, int] | None:
    """Entries of an axis for each token, and entries beside: (2, 3) of ``2*time + 3``."""
    left, sign, right = str(dim).replace(" ", "").partition("-" if "-" in str(dim) else "+")
    each = entries_of(left)
    if each is None or (sign and not right.isdigit()):
        return None
    return each, int(f"{sign}{right}") if sign else 0


def dim_of(each: int) -> str:
    """The axis of a sequence with `each` entries for a token: ``time``, ``2*time``."""
    return TIME if each == 1 else f"{each}*{TIME}"


def moved(fact: Along, axis: int, *, flat: int | None = None) -> Along:
    """`fact` with its axis at `axis`."""
    return replace(fact, axis=axis, flat=fact.flat if flat is None else flat)


def only(node: ir.Node, timing: Timing, index: int = 0) -> Along:
    """The fact of input `index`; no other input may depend on tokens."""
    fact = timing.of(node.inputs[index])
    others = [timing.of(v) for i, v in enumerate(node.inputs) if i != index]
    if not isinstance(fact, Along) or any(isinstance(other, Along) for other in others):
        raise refuse(node, "takes values of tokens where only constants keep tokens apart.")
    return fact


def normal(axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    return axis + rank if axis < 0 else axis
