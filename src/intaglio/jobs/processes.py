"""Workers that are processes of this machine.

A process is started for each thread of the pool when it has its first job, by `spawn`, so that it
inherits nothing.  It ends when its parent does, however that ends, and leaves Ctrl-C to it.
"""

import contextlib
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from .pool import JobAnswer, Pool, Shared, WorkerDied, new_key

SPAWN = get_context("spawn")
INTERRUPT = {signal.SIGINT}


@dataclass(frozen=True)
class Child:
    """A process and the pipe to it."""

    process: SpawnProcess
    pipe: "connection.Connection[Any, Any]"

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.process.kill()
        self.process.join()


class Processes(Pool):
    """A pool of processes, `size` of them."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._folder = tempfile.TemporaryDirectory(prefix="intaglio-jobs-")
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._workers: list[Child] = []

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid or 0 for worker in self._workers]

    def share(self, value: Any) -> Shared:
        """Write a value to a file that each worker reads once."""
        key = new_key()
        path = Path(self._folder.name) / key
        with path.open("wb") as file:
            pickle.dump(value, file, pickle.HIGHEST_PROTOCOL)
        return Shared(key=key, read=partial(_read, path))

    def attempt(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> JobAnswer:
        """Run a job on this thread's process."""
        worker = self._worker()
        try:
            worker.pipe.send((function, arguments))
            answer: JobAnswer = worker.pipe.recv()
        except (EOFError, OSError):
            self._drop(worker)
            raise WorkerDied from None
        return answer

    def stop(self) -> None:
        """End all processes."""
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()
        with contextlib.suppress(OSError):
            self._folder.cleanup()

    def _worker(self) -> Child:
        """The process of this thread, a new one if it has none."""
        found: Child | None = getattr(self._mine, "worker", None)
        if found is not None:
            return found
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=serve, args=(theirs,), daemon=True)
        with self._lock:
            if self.stopped:
                raise WorkerDied
            # Blocked in this thread, Ctrl-C is in the process, too, until that ignores it.  What
            # tracks resources starts with the first process, and unblocks it here.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPT)
            process.start()
            self._mine.worker = worker = Child(process, ours)
            self._workers.append(worker)
        theirs.close()
        return worker

    def _drop(self, worker: Child) -> None:
        self._mine.worker = None
        with self._lock, contextlib.suppress(ValueError):
            self._workers.remove(worker)
        worker.end()
        worker.pipe.close()


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        return pickle.load(file)  # noqa: S301  this program wrote it


def serve(pipe: "connection.Connection[Any, Any]") -> None:
    """Run the jobs that come through a pipe, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPT)
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, arguments = pipe.recv()
            answer = JobAnswer.of(function, arguments)
            pipe.send(answer)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
