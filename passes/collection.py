"""Garbage collection, put off while a graph is traced, rewritten or written."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Put garbage collection off: each one walks the whole graph, the more often the larger it is.

    What is dropped is still freed, but for the few cycles among nodes.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
