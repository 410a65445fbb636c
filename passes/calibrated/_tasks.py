"""What layers need to have solved by themselves: here, or in processes beside each other.

A task is an importable function of arrays; its result is the same wherever it runs.  As many are
made at once as there are workers, since each holds copies of matrices in float64.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from intaglio.jobs import Pool, run_all


@dataclass(frozen=True)
class Task:
    """A function and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def solved(result: Any) -> Task:
    """A task whose result is known."""
    return Task(_same, (result,))


def solutions(pool: Pool, tasks: Iterable[Callable[[], Task]]) -> Iterator[Any]:
    """The result of each task, in order; a task is made when a worker has time for it.

    Raises:
        JobError: if a task's worker died each time.
    """
    waiting = iter(tasks)
    while some := [make() for make in islice(waiting, pool.size)]:
        yield from run_all(pool, _run, some)


def _run(task: Task) -> Any:
    return task.function(*task.arguments)


def _same(result: Any) -> Any:
    return result
