"""One thread of a process traces at a time: what is put into PyTorch meanwhile, all threads see."""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_TURN = threading.RLock()  # an export verifies, too


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Let `function` wait until no other thread is in one that is made so."""

    @functools.wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> R:
        with _TURN:
            return function(*args, **given)

    return call
