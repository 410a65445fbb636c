"""What pools of workers have in common: jobs that are tried again, and values that all share.

Each thread of a pool follows one job at a time, from an attempt to the next: a worker that dies
costs the jobs that it had, and no others.
"""

import itertools
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any

from intaglio import errors
from intaglio.errors import IntaglioError, JobError

TRIES = 3  # of a job whose worker dies
MADE = 4  # values made of shared ones that a process keeps

_numbers = itertools.count()


class WorkerDied(Exception):  # noqa: N818  no error yet: it is tried again
    """The worker of a job ended before it answered."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A value that many jobs read, sent to each worker once.

    Attributes:
        key: tells it from others of this program.
        read: yields it where a job runs.
    """

    key: str
    read: Callable[[], Any] = field(compare=False)

    def made(self, make: Callable[[Any], Any]) -> Any:
        """What `make` makes of the value, once in each process."""
        return _made(self, make)


@lru_cache(MADE)
def _made(shared: Shared, make: Callable[[Any], Any]) -> Any:
    return make(shared.read())


def forget() -> None:
    """Drop what this process has made of shared values."""
    _made.cache_clear()


def new_key() -> str:
    """A key that no other shared value of this program has."""
    return f"shared.{next(_numbers)}"


@dataclass(frozen=True, kw_only=True)
class JobAnswer:
    """What a job returned, or the name and the words of its error."""

    value: Any = None
    error: tuple[str, str] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], arguments: tuple[Any, ...]) -> "JobAnswer":
        """Run a job; its error becomes words, since not every error can be pickled."""
        try:
            return cls(value=function(*arguments))
        except IntaglioError as error:
            return cls(error=(type(error).__name__, str(error)))
        except Exception:  # noqa: BLE001  it is raised where the job was given
            return cls(error=("", traceback.format_exc()))

    def result(self) -> Any:
        """What the job returned.

        Raises:
            IntaglioError: the one that it raised.
            RuntimeError: if it failed in another way; with its traceback.
        """
        if self.error is None:
            return self.value
        name, words = self.error
        kind = getattr(errors, name, RuntimeError)
        raised: Exception = kind.__new__(kind)
        raised.args = (words,)
        raise raised


class Pool(ThreadPoolExecutor):
    """An executor whose jobs run elsewhere, each again if its worker dies, `TRIES` times at most.

    `size` is how many run or wait at workers at most; `died` counts the attempts that a death has
    cost.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, "jobs")
        self.size = size
        self.died = 0
        self.stopped = False

    def share(self, value: Any) -> Shared:
        """Give a value to all workers."""
        raise NotImplementedError

    def attempt(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> JobAnswer:
        """Run a job on a worker.

        Raises:
            WorkerDied: if the worker ended before it answered.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """End all workers at once; attempts end with them."""
        raise NotImplementedError

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Run a function that can be imported, of arguments that can be pickled."""
        if named:
            raise TypeError("jobs take their arguments by place")
        return super().submit(self._tried, function, arguments)

    def _tried(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        for _ in range(TRIES):
            if self.stopped:
                raise CancelledError
            try:
                return self.attempt(function, arguments).result()
            except WorkerDied:
                if self.stopped:
                    raise CancelledError from None
                self.died += 1
        raise JobError(
            f"A job ({function.__qualname__}) ended its worker {TRIES} times, for want of memory "
            "perhaps: run fewer at a time. A program of your own starts its work behind "
            "if __name__ == '__main__':, since each worker imports it."
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:  # jobs that run are not waited for
            self.stopped = True
        self.shutdown(wait=error is None, cancel_futures=error is not None)
        self.stopped = True
        self.stop()
        self.shutdown(wait=True)


class Here(Pool):
    """One job after the other, in this process."""

    def __init__(self) -> None:
        super().__init__(1)

    def share(self, value: Any) -> Shared:
        """Keep a value for the jobs."""
        return Shared(key=new_key(), read=lambda: value)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        """Run a job at once."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001  it is the future's
            future.set_exception(error)
        return future

    def stop(self) -> None:
        """Drop what was made of shared values."""
        forget()
