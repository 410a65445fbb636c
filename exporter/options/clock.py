"""Phases of an export: how long each took, and who is told that it began."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float | None], None]


class Clock:
    """Times the phases of an export and tells the user's callable about them."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._phase = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs in the context under `name`, again or for the first time."""
        self._phase = name
        if self._progress is not None:
            self._progress(name, None)
        start = time.perf_counter()
        yield
        seconds = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.seconds[name] = round(seconds, 3)

    def report(self, what: str, done: float | None) -> None:
        """Pass on the progress made within the phase."""
        if self._progress is not None:
            self._progress(f"{self._phase}: {what}", done)
