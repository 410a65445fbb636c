"""Compile many kernels, in child processes, and keep what was compiled.

Children import Triton, so that an export does not, and a compiler that dies takes no export along.
What they make is kept by its content: the request, the version of Triton and the kernels' files.
"""

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from intaglio.errors import MissingExtraError, UnsupportedError
from intaglio.runtime import user_cache
from intaglio.runtime.child_worker import Worker
from intaglio.runtime.launch import LaunchPlan

from .plugin import Request

INTERPRETED = "TRITON_INTERPRET"  # of which nothing can be compiled


@dataclass(frozen=True, kw_only=True)
class Code:
    """A compiled kernel and what it takes of a multiprocessor.

    Attributes:
        ptx: text of the kernel for the capability and later ones.
        cubin: machine code.
        registers: of a thread.
        stack: bytes of a thread; more than 0 where registers spill.
        shared: bytes of static shared memory of a block.
    """

    ptx: str
    cubin: bytes
    registers: int
    stack: int
    shared: int


@dataclass(frozen=True, kw_only=True)
class CompiledPlan:
    """A plan and the code that it launches, by name."""

    plan: LaunchPlan
    code: Mapping[str, Code]

    def to_json(self) -> dict[str, Any]:
        """The plan and code as JSON values."""
        code = {
            name: {**asdict(each), "cubin": base64.b64encode(each.cubin).decode()}
            for name, each in self.code.items()
        }
        return {"plan": self.plan.to_json(), "code": code}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "CompiledPlan":
        """What `to_json` wrote."""
        code = {
            name: Code(**{**each, "cubin": base64.b64decode(each["cubin"])})
            for name, each in values["code"].items()
        }
        return cls(plan=LaunchPlan.from_json(values["plan"]), code=code)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Kernels to compile.

    Attributes:
        plugin: its name.
        request: the node.
        cuda: the deployment's version of CUDA, see `compile.ptx_version`.
        where: the node as errors speak of it; it decides nothing.
    """

    plugin: str
    request: Request
    cuda: str | None = None
    where: str = ""

    def to_json(self) -> dict[str, Any]:
        """What decides the code, as JSON values."""
        return {"plugin": self.plugin, "request": self.request.to_json(), "cuda": self.cuda}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Job":
        """What `to_json` wrote."""
        request = Request.from_json(values["request"])
        return cls(plugin=values["plugin"], request=request, cuda=values["cuda"])


def compile_all(
    jobs: Sequence[Job],
    *,
    kept: Path | None = None,
    workers: int | None = None,
    done: Callable[[Job], None] = lambda _: None,
) -> list[CompiledPlan]:
    """Compile the kernels of every job.

    Args:
        jobs: what to compile; equal jobs are compiled once.
        kept: the folder in which compiled kernels are kept; None for the user's cache.
        workers: child processes at most; None for one per processor.
        done: called from any thread when a job is compiled.

    Returns:
        What was compiled, in the order of the jobs.

    Raises:
        UnsupportedError: if there are no kernels for a job.
        MissingExtraError: if Triton is not installed.
    """
    _triton()
    folder = kept or user_cache.folder("kernels")
    files = {_key(job): folder / f"{_key(job)}.json" for job in jobs}
    missing = {_key(job): job for job in jobs if not files[_key(job)].exists()}
    if missing:
        count = min(workers or os.cpu_count() or 1, len(missing))
        parts = [list(missing.items())[index::count] for index in range(count)]
        with ThreadPoolExecutor(count) as pool:
            for _ in pool.map(lambda part: _compile(part, files, done), parts):
                pass
    return [CompiledPlan.from_json(json.loads(files[_key(job)].read_bytes())) for job in jobs]


def _compile(
    jobs: Sequence[tuple[str, Job]], files: Mapping[str, Path], done: Callable[[Job], None]
) -> None:
    """Have one child compile jobs one after the other."""
    child = Worker(
        "kernels",
        f"{__package__}.worker",
        does="compiled",
        fault=UnsupportedError,
        relief="close other programs",
        environment={name: value for name, value in os.environ.items() if name != INTERPRETED},
    )
    with child:
        for key, job in jobs:
            try:
                answer = child.call("compile", job=job.to_json())
            except UnsupportedError as error:
                raise UnsupportedError(f"{job.where or job.plugin}: {error}") from error
            user_cache.put(files[key], json.dumps(answer).encode())
            done(job)


def _key(job: Job) -> str:
    text = json.dumps([job.to_json(), _triton(), _sources(job.plugin)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        raise MissingExtraError("compiling kernels", "trt") from None


@cache
def _sources(plugin: str) -> str:
    """A hash of the files that decide what is compiled."""
    folder = Path(__file__).parent
    helpers = sorted(path.stem for path in folder.glob("_*.py"))
    names = (plugin, "plugin", "compile_plugin", *helpers)
    texts = [(folder / f"{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()
