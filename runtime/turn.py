"""Whose turn a session is: one step at a time, and none for ever.

A lock that is taken in one instruction and released in another stays taken for good where a signal
is handled between them.  So it is noted which call has the turn, and the turn of a call that has
ended is free, however it ended.
"""

import inspect
import sys
import threading
from types import FrameType


class Turn:
    """A turn that calls of functions take."""

    def __init__(self) -> None:
        self._holder: dict[None, tuple[int, FrameType | None]] = {}
        self._guard = threading.Lock()  # a with statement takes it, which no signal comes between

    def take(self) -> bool:
        """Take the turn for the call that calls this; False while another one has it."""
        mine = threading.get_ident(), _caller()
        held = self._holder.setdefault(None, mine)
        if held is mine:
            return True
        with self._guard:
            other = self._holder.get(None)
            if other is not None and _goes_on(*other):
                return False
            self._holder[None] = mine
            return True

    def give(self) -> None:
        """Give the turn back, if the call that calls this has it."""
        held = self._holder.get(None)
        if held is not None and held[1] is _caller():
            del self._holder[None]


def _caller() -> FrameType | None:
    """The call of a method of `Turn`."""
    here = inspect.currentframe()
    inner = None if here is None else here.f_back
    return None if inner is None else inner.f_back


def _goes_on(thread: int, frame: FrameType | None) -> bool:
    """Whether a call of a thread has not ended."""
    now = sys._current_frames().get(thread)  # noqa: SLF001  Python's own name for it
    while now is not None and now is not frame:
        now = now.f_back
    return now is not None
