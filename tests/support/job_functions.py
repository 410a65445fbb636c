"""Jobs of tests: functions that can be imported where they run."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from intaglio.errors import InputError, MissingExtraError
from intaglio.jobs import Shared, Where, run_all


def square(number: int) -> int:
    return number * number


def pid(_: int) -> int:
    time.sleep(0.05)  # so that none takes all
    return os.getpid()


def fail(kind: str) -> None:
    if kind == "input":
        raise InputError("no such array")
    if kind == "extra":
        raise MissingExtraError("this", "that")  # whose arguments are not its message
    raise KeyError(kind)


def noted(folder: str, number: int) -> int:
    """Leave a file for each attempt."""
    Path(folder, f"{number}.{time.monotonic_ns()}").touch()
    return number + 1


def slowly(folder: str, number: int) -> int:
    """Leave a file for each attempt, with the node of Ray and the process where it runs."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    Path(folder, f"{number}.{node}.{os.getpid()}").touch()
    time.sleep(0.8)
    return number + 1


def dies_once(folder: str, number: int) -> int:
    if number == 1 and not list(Path(folder).glob("1.*")):
        noted(folder, number)
        os.kill(os.getpid(), signal.SIGKILL)
    return noted(folder, number)


def dies(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def read_twice(shared: Shared, number: int) -> tuple[int, int, int]:
    """What is made of a shared value, two times, and where."""
    first, second = (shared.made(made) for _ in range(2))
    return os.getpid(), id(first) - id(second), first[0] + number


def made(value: int) -> list[int]:
    return [value]


def waits(folder: str, number: int) -> Any:
    """Say where it runs, and never end."""
    Path(folder, f"{number}.{os.getpid()}").touch()
    time.sleep(600)


if __name__ == "__main__":  # for a test that interrupts it, or kills it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
    with Where(jobs=2).open() as pool:
        run_all(pool, waits, [0, 1], first=[sys.argv[1]])
