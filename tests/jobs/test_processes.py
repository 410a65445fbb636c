"""However the program ends, no worker is left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import job_functions
import pytest

from intaglio.jobs import run_all
from intaglio.jobs.processes import Processes


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_program_that_ends(kind: signal.Signals, tmp_path: Path) -> None:
    """Interrupted, all processes at once as a terminal does; ended; or killed."""
    folder = Path(job_functions.__file__).parent
    program = subprocess.Popen(
        [sys.executable, job_functions.__file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.suffix[1:]) for path in tmp_path.iterdir()]
    if kind is signal.SIGINT:
        os.killpg(program.pid, kind)
    else:
        program.send_signal(kind)
    said = program.communicate(timeout=20)[1]

    wait_until(lambda: not any(map(runs, workers)))
    assert said.count("Traceback") <= (kind is signal.SIGINT), said


def test_an_error_ends_the_jobs_that_run(tmp_path: Path) -> None:
    """Whoever leaves the context by an error does not wait for jobs."""
    with contextlib.suppress(KeyboardInterrupt), Processes(2) as pool:
        futures = [pool.submit(job_functions.waits, str(tmp_path), i) for i in range(5)]
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        raise KeyboardInterrupt

    assert all(future.done() for future in futures)
    assert len(list(tmp_path.iterdir())) == 2
    assert not pool.pids
    assert not any(runs(int(path.suffix[1:])) for path in tmp_path.iterdir())


def test_results_come_in_the_order_of_the_jobs() -> None:
    with Processes(2) as pool:
        assert run_all(pool, job_functions.square, range(9)) == [n * n for n in range(9)]
