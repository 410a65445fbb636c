"""Where jobs run, and many of one kind: results in order, each kept as soon as it is there."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.errors import MissingExtraError, OptionError
from intaglio.version import __version__
from intaglio.whole_files import replacing

from .pool import Here, Pool

Done = Callable[[int, int], None]  # how many of how many


@dataclass(frozen=True)
class Where:
    """Where jobs run.

    Attributes:
        jobs: how many at a time, each in a process of its own; 1: in this process.
        ray: the address of a Ray cluster, which then runs them: ``auto``, ``HOST:6379``.
    """

    jobs: int = 1
    ray: str | None = None

    def open(self) -> Pool:
        """A pool of workers, for a `with` statement.

        Raises:
            OptionError: if there are to be no workers, or there is no cluster at the address.
            MissingExtraError: if Ray is not installed.
        """
        if self.jobs < 1:
            raise OptionError(f"--jobs is {self.jobs}; it should be 1 or more.")
        if self.ray is not None:
            if self.jobs != 1:
                raise OptionError("Give --jobs or --ray: a cluster knows how much it runs.")
            try:
                from .cluster import Cluster
            except ModuleNotFoundError as error:
                raise MissingExtraError("--ray", "ray") from error
            return Cluster(self.ray)
        if self.jobs == 1:
            return Here()
        from .processes import Processes

        return Processes(self.jobs)


class Kept:
    """Results in a folder, a file of JSON each, so that a run that was cut off goes on.

    A file is named by a hash of the job and of `facts`, all that its result depends on beside.
    """

    def __init__(self, folder: str | Path, facts: Any) -> None:
        self._folder = Path(folder)
        self._facts = json.dumps([__version__, facts], sort_keys=True)
        self._folder.mkdir(parents=True, exist_ok=True)

    def load(self, job: Any) -> Any:
        """The result that is kept of a job; None if there is none."""
        try:
            return json.loads(self._path(job).read_bytes())
        except (OSError, ValueError):
            return None  # there is none, or it is damaged: the job runs again

    def save(self, job: Any, result: Any) -> None:
        """Keep a result."""
        with replacing(self._path(job)) as draft:
            draft.write_text(json.dumps(result), encoding="utf-8")

    def _path(self, job: Any) -> Path:
        text = f"{self._facts} {json.dumps(job)}"
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def run_all(
    pool: Pool,
    function: Callable[..., Any],
    jobs: Sequence[Any],
    *,
    first: Iterable[Any] = (),
    kept: Kept | None = None,
    done: Done | None = None,
) -> list[Any]:
    """``function(*first, job)`` of each of `jobs`, in their order.

    Args:
        pool: where they run.
        function: can be imported, and is the same for the same job wherever it runs.
        jobs: what can be pickled and, to be kept, is plain JSON.
        first: arguments of all jobs.
        kept: where results are taken from and kept, plain JSON other than None.
        done: is told after each job.

    Raises:
        JobError: if a job's worker died each time.
        IntaglioError: the first that a job raised; those that wait are not run.
    """
    found = {} if kept is None else {i: kept.load(job) for i, job in enumerate(jobs)}
    found = {index: result for index, result in found.items() if result is not None}
    running = {
        pool.submit(function, *first, job): index
        for index, job in enumerate(jobs)
        if index not in found
    }
    try:
        for future in as_completed(running):
            index = running[future]
            found[index] = future.result()
            if kept is not None:
                kept.save(jobs[index], found[index])
            if done is not None:
                done(len(found), len(jobs))
    finally:
        for future in running:
            future.cancel()
    return [found[index] for index in range(len(jobs))]
