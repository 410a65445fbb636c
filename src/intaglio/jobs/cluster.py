"""Workers of a Ray cluster, each of which has this version of intaglio.

Ray chooses the node, and says when a worker or its node is gone; whether a job is tried again is
the pool's to decide, as it is for processes.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray import exceptions

from intaglio.errors import JobError, OptionError
from intaglio.version import __version__

from .pool import JobAnswer, Pool, Shared, WorkerDied, new_key

PATIENCE = 10  # seconds
DEATHS = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
    exceptions.TaskCancelledError,
)


class Cluster(Pool):
    """A pool whose workers are those of a cluster; a job takes one processor."""

    def __init__(self, address: str) -> None:
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                _reach(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError, exceptions.RayError) as error:
                raise OptionError(f"There is no Ray cluster at {address}: {error}") from error
        self._remote = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(
            run_there
        )
        self._lock = threading.Lock()
        self._running: set[Any] = set()
        processors = int(ray.cluster_resources().get("CPU", 1))
        super().__init__(2 * max(processors, 1))  # one waits at each

    def share(self, value: Any) -> Shared:
        """Put a value into the cluster's store."""
        return Shared(key=new_key(), read=partial(ray.get, ray.put(value)))

    def attempt(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> JobAnswer:
        """Run a job on a worker of the cluster."""
        with self._lock:
            if self.stopped:
                raise WorkerDied
            job = self._remote.remote(__version__, function, arguments)
            self._running.add(job)
        try:
            answer: JobAnswer = ray.get(job)
        except DEATHS:
            raise WorkerDied from None
        except exceptions.RayError as error:
            raise JobError(f"Ray cannot run a job: {error}") from error
        finally:
            with self._lock:
                self._running.discard(job)
        return answer

    def stop(self) -> None:
        """Cancel what runs and leave the cluster."""
        with self._lock:
            running = list(self._running)
        for job in running:
            with contextlib.suppress(exceptions.RayError, ValueError):
                ray.cancel(job, force=True)
        if self._ours and ray.is_initialized():
            for thread in self._threads:
                thread.join()  # what waits for Ray wants it there
            ray.shutdown()


def _reach(address: str) -> None:
    """See whether anything listens at ``HOST:PORT``: Ray itself waits for minutes.

    Raises:
        OSError: if nothing does.
        ValueError: if the port is no number.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), PATIENCE).close()


def run_there(version: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> JobAnswer:
    """Run a job where Ray put it."""
    if version != __version__:
        said = f"A node of the cluster has intaglio {__version__}, and this is {version}."
        return JobAnswer(error=(JobError.__name__, f"{said} Install the same everywhere."))
    return JobAnswer.of(function, arguments)
