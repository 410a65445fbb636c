"""What a loop repeats, as data: streams, which are its computations, and their arguments."""

from dataclasses import dataclass, field
from typing import Any

from .terms import Term


class PartedError(Exception):
    """What looks like a loop is none that can be rolled up; says why, after "it"."""


@dataclass(frozen=True)
class Fixed:
    """The same term or constant at all iterations, but for those in `here`."""

    what: Any
    here: tuple[tuple[int, Any], ...] = ()


@dataclass(frozen=True)
class Counted:
    """The number ``start + step * t`` at iteration t, or one over it."""

    start: float
    step: float
    inverse: bool = False


@dataclass(frozen=True)
class Flow:
    """What `stream` gives `delay` iterations ago.

    `starts` holds terms or numbers for iterations before the first, the nearest last, None where
    nothing takes it; `early` the
    terms of those at which the stream is something else, by iteration; and `here` those that this
    argument alone takes instead, by the iteration that takes them.
    """

    stream: "Stream"
    delay: int
    starts: tuple[Any, ...] = ()
    early: tuple[tuple[int, Term], ...] = ()
    here: tuple[tuple[int, Any], ...] = ()


@dataclass(frozen=True)
class Invariant:
    """What was computed at the first iteration, kept for all others."""

    what: Term


Edge = Fixed | Counted | Flow | Invariant


@dataclass(eq=False)
class Stream:
    """One computation of a body: its terms by iteration, the first at `start` or before."""

    members: dict[int, Term]
    start: int = 0
    edges: list[Edge] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The last iteration at which it is there."""
        return max(self.members)

    @property
    def sample(self) -> Term:
        """A term that stands for all."""
        return self.members[self.last]
