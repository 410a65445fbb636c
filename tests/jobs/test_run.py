"""What is finished is kept, and where jobs may run."""

from pathlib import Path

import pytest
from job_functions import noted, square

from intaglio.errors import OptionError
from intaglio.jobs import Kept, Where, run_all
from intaglio.jobs.pool import Here


def attempts(folder: Path) -> list[str]:
    return sorted(path.name[0] for path in folder.iterdir())


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    """Of other facts, or damaged, it is."""
    folder, notes = tmp_path / "work", tmp_path / "notes"
    notes.mkdir()
    pool, first = Here(), [str(notes)]
    told: list[tuple[int, int]] = []

    run_all(pool, noted, [1, 2], first=first, kept=Kept(folder, "model a"))
    kept = Kept(folder, "model a")
    found = run_all(pool, noted, [1, 3, 2], first=first, kept=kept, done=lambda *n: told.append(n))

    assert (found, told) == ([2, 4, 3], [(3, 3)])
    assert attempts(notes) == ["1", "2", "3"]
    for path in folder.iterdir():
        path.write_text("{")
    assert run_all(pool, noted, [1], first=first, kept=Kept(folder, "model a")) == [2]
    assert run_all(pool, noted, [2], first=first, kept=Kept(folder, "model b")) == [3]
    assert attempts(notes) == ["1", "1", "2", "2", "3"]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(OptionError, match="--jobs is 0"):
        Where(jobs=0).open()
    with pytest.raises(OptionError, match="--jobs or --ray"):
        Where(jobs=2, ray="auto").open()


def test_no_jobs_are_no_results() -> None:
    assert run_all(Here(), square, []) == []
