"""RunLimits on running a graph that a stranger wrote: processor time and memory.

A loop may go round 2**62 times and a Tile ask for terabytes, and neither shows before it runs.  So
a run is told to stop once its thread has worked for too long, which ONNX Runtime heeds between
nodes, and the process may meanwhile map so much more memory and no more, beyond which an
allocation fails and ONNX Runtime says so.
"""

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime

BYTES = 1 << 30  # beyond what the process has mapped, for a graph without weights
SECONDS = 5.0  # of processor time, for a graph without weights
MOST_SECONDS = 600.0
FREE = 64  # entries that an axis without a size is taken to have
ACTIVATIONS = 1 << 14  # bytes that a graph may take for each entry of its inputs


@dataclass
class RunLimits:
    """What one graph may take; once it has taken more, it is not run again."""

    seconds: float = SECONDS
    bytes: int = BYTES
    spent: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, model: ir.Model) -> "RunLimits":
        """RunLimits that grow with the weights and the inputs of `model`."""
        sizes = [v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value]
        weights, entries = sum(sizes), sum(map(_entries, model.graph.inputs))
        seconds = SECONDS + weights / 5e7 + weights * entries / 4e9
        return cls(min(seconds, MOST_SECONDS), BYTES + 4 * weights + ACTIVATIONS * entries)


_current: ContextVar[RunLimits | None] = ContextVar("limits", default=None)


@contextlib.contextmanager
def limited(limits: RunLimits) -> Iterator[None]:
    """Run every graph within `limits` while the context is open."""
    before = _current.set(limits)
    try:
        yield
    finally:
        _current.reset(before)


class LimitedSession(onnxruntime.InferenceSession):  # type: ignore[misc]
    """A session of ONNX Runtime that keeps to the limits that hold when it is opened and run."""

    def __init__(self, *given: Any, **more: Any) -> None:
        limits = _current.get()
        with contextlib.nullcontext() if limits is None else mapping_at_most(limits.bytes):
            super().__init__(*given, **more)

    def run(self, names: Any, feeds: Mapping[str, Any], options: Any = None) -> Any:
        """As ONNX Runtime does.

        Raises:
            TimeoutError: if it took more processor time than it may, now or before.
        """
        limits = _current.get()
        if limits is None:
            return super().run(names, feeds, options)
        if limits.spent.is_set():
            raise _timeout(limits)
        options = options or onnxruntime.RunOptions()
        try:
            with mapping_at_most(limits.bytes), _watched(limits, options):
                return super().run(names, feeds, options)
        except Exception as error:
            if limits.spent.is_set():
                raise _timeout(limits) from error
            raise


def _timeout(limits: RunLimits) -> TimeoutError:
    return TimeoutError(f"it works for more than {limits.seconds:.0f} s on one call")


@contextlib.contextmanager
def _watched(limits: RunLimits, options: Any) -> Iterator[None]:
    """Tell a run to stop once the thread has worked for as long as it may."""
    if not hasattr(time, "pthread_getcpuclockid"):
        yield
        return
    clock, done = time.pthread_getcpuclockid(threading.get_ident()), threading.Event()
    end = time.clock_gettime(clock) + limits.seconds

    def watch() -> None:
        left = limits.seconds
        while not done.wait(max(left, 0.01)):
            left = end - time.clock_gettime(clock)
            if left <= 0:
                limits.spent.set()
                options.terminate = True
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


_lock = threading.Lock()
_depth = 0
_soft = 0  # the limit that was there before


@contextlib.contextmanager
def mapping_at_most(more: int) -> Iterator[None]:
    """Let the process map `more` bytes and no further, where the system can hold it to that."""
    global _depth, _soft  # noqa: PLW0603  the limit is the process's
    mapped = _mapped()
    with _lock:
        if not _depth and mapped is not None:
            _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            known = [n for n in (_soft, hard) if n != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_AS, (min([mapped + more, *known]), hard))
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth and mapped is not None:
                hard = resource.getrlimit(resource.RLIMIT_AS)[1]
                resource.setrlimit(resource.RLIMIT_AS, (_soft, hard))


def _mapped() -> int | None:
    """The bytes of address space that this process has; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _entries(value: ir.Value) -> int:
    count = 1
    for dim in () if value.shape is None else value.shape:
        count *= dim if isinstance(dim, int) else FREE
    return count
