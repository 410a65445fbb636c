"""What all pools promise, of the one in this process and of processes."""

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import pytest
from job_functions import dies, dies_once, fail, pid, read_twice, square

from intaglio.errors import InputError, JobError, MissingExtraError
from intaglio.jobs import Pool, Where


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    with Where(jobs=2).open() as pool:
        yield pool


@pytest.fixture(params=["here", "processes"])
def pool(request: pytest.FixtureRequest, processes: Pool) -> Iterator[Pool]:
    if request.param == "processes":
        yield processes
        return
    with Where().open() as here:
        yield here


def test_it_is_an_executor(pool: Pool) -> None:
    assert isinstance(pool, Executor)
    assert pool.submit(square, 3).result() == 9
    assert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]


def test_a_shared_value_is_made_once_in_each_process(pool: Pool) -> None:
    shared = pool.share(20)
    found = list(pool.map(read_twice, [shared] * 4, range(4)))

    assert {same for _, same, _ in found} == {0}
    assert [value for _, _, value in found] == [20, 21, 22, 23]
    assert pool.submit(read_twice, pool.share(1), 0).result()[2] == 1  # another one


def test_errors_are_those_of_the_job(pool: Pool) -> None:
    """Also where an error's arguments are not its message, which pickle cannot read back."""
    with pytest.raises(InputError, match=r"^no such array$"):
        pool.submit(fail, "input").result()
    with pytest.raises(MissingExtraError, match="this needs the extra 'that'"):
        pool.submit(fail, "extra").result()


def test_a_fault_tells_where_it_was(processes: Pool) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in fail.*KeyError: 'else'"):
        processes.submit(fail, "else").result()


def test_jobs_run_beside_each_other_and_not_here(processes: Pool) -> None:
    found = set(processes.map(pid, range(8)))

    assert len(found) == 2
    assert os.getpid() not in found


def test_a_job_whose_worker_dies_is_tried_again(processes: Pool, tmp_path: Path) -> None:
    before = processes.died
    found = list(processes.map(dies_once, [str(tmp_path)] * 4, range(4)))

    assert found == [1, 2, 3, 4]
    assert processes.died == before + 1
    attempts = sorted(path.name[0] for path in tmp_path.iterdir())
    assert attempts == ["0", "1", "1", "2", "3"]


def test_a_job_that_ends_each_worker_is_given_up(processes: Pool) -> None:
    with pytest.raises(JobError, match=r"A job \(dies\) ended its worker 3 times"):
        processes.submit(dies, 0).result()
    assert processes.submit(square, 2).result() == 4  # others go on
