"""What a module computes of its conditions alone, in the course of one forward.

Where a module runs a part of itself over what is given once, and again over tokens, what the first
run attends to is no state of a step.  The module says so, for those who watch it run.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_INSIDE: ContextVar[bool] = ContextVar("of_conditions_alone", default=False)


@contextlib.contextmanager
def of_conditions_alone() -> Iterator[None]:
    """Mark what runs inside as computed of conditions alone."""
    token = _INSIDE.set(True)
    try:
        yield
    finally:
        _INSIDE.reset(token)


def is_of_conditions_alone() -> bool:
    """Whether what runs now is marked so."""
    return _INSIDE.get()
