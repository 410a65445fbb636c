"""Taking tokens back: a state as it was before tokens that turned out not to follow.

Caches of keys and values forget their last tokens: one with room to spare by counting fewer, one as
long as its tokens by a copy of what is left.  A state of fixed shape cannot be undone; it is kept
instead, and what is taken back too far has to be given again.  A step leaves the state before it in
the other of two swapped arrays, so keeping it for the length of one step costs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio.runtime.arrays import Array
from intaglio.runtime.carried_states import CarriedStates
from intaglio.runtime.session_state import State


@dataclass(frozen=True)
class Mark:
    """A point to which the rows of a session can go back.

    Attributes:
        carried: the states at that point.
        now: which of their arrays were current, and the most tokens of a row.
        past_length: int64 [batch], tokens that each row had consumed.
        fixed: states of fixed shape by graph input; empty where caches alone are carried.
        lasting: whether `fixed` are copies, and not memory that the step after the next writes.
    """

    carried: CarriedStates
    now: tuple[int, int]
    past_length: npt.NDArray[np.int64]
    fixed: Mapping[str, Array]
    lasting: bool


def mark(state: State, *, lasting: bool) -> Mark:
    """Where `state` is now: for one step, or `lasting` ones, which copies states of fixed shape."""
    carried = state.carried
    fixed: dict[str, Array] = {}
    if not carried.only_caches:
        fixed = {
            buffer.spec.input: buffer.value(carried.side, carried.longest)
            for buffer in carried.buffers
            if not buffer.spec.grows
        }
    if lasting:
        fixed = {name: value.copy() for name, value in fixed.items()}
    return Mark(carried, carried.now, carried.past_length.copy(), fixed, lasting)


def rewind(state: State, to: Mark, lengths: npt.NDArray[np.int64]) -> None:
    """Take back what rows consumed beyond `lengths`: all of it since the mark, where need be.

    Where caches alone are carried, a row is then `lengths` long; elsewhere it is as it was at the
    mark if it was longer, and its tokens since then are to be given again.

    Args:
        state: which has consumed tokens since the mark, in one step unless that is a lasting one.
        to: the mark.
        lengths: int64 [batch], tokens that count, no fewer than there were at the mark.

    Raises:
        StateError: if rows would be of unequal length that cannot be.
    """
    carried = state.carried
    beyond = carried.past_length > lengths
    if not beyond.any():
        return
    if carried.only_caches:
        carried.truncate(np.minimum(carried.past_length, lengths))
    elif beyond.all() and not to.lasting:
        to.carried.now = to.now
        state.carried = to.carried
    else:
        rows = np.flatnonzero(beyond)
        past_length = carried.past_length.copy()
        past_length[rows] = to.past_length[rows]
        carried.truncate(past_length)
        for buffer in carried.buffers:
            spec = buffer.spec
            if not spec.grows:
                place = spec.place_of(rows)
                buffer.put(carried.side, carried.longest, place, to.fixed[spec.input][place])
