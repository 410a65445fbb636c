"""Cases in children of one process that has everything imported, so that a case takes milliseconds.

`warm_up` does once what each child would do again; `forked` runs a function in a child and a folder
of its own for each number, some at a time, and tells how each ended.
"""

import copy
import functools
import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch.onnx._internal.exporter._constants import TORCHLIB_OPSET
from torch.onnx._internal.exporter._registration import ONNXRegistry
from typer.testing import CliRunner

import intaglio.cli
from intaglio.cli.frame import app
from intaglio.quiet import quiet

SAID = "said"  # what a case wrote, in its folder


@dataclass(frozen=True)
class Ended:
    """How a child ended; its `folder` is there until the next one is asked for."""

    number: int
    folder: Path
    status: int
    used: resource.struct_rusage
    hung: bool

    @property
    def seconds(self) -> float:
        """Of processor time, children included."""
        return self.used.ru_utime + self.used.ru_stime


def warm_up(export: Callable[[Path], object], lines: Iterable[Sequence[str]]) -> None:
    """Make the tables of PyTorch by `export` to a folder, those of the command line by `lines`.

    No line may start a thread, which no child would have.
    A conversion writes its own entries into the table of ONNX functions, so each is given a copy.
    """
    torch.set_num_threads(1)
    tables = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(opset_version: int = TORCHLIB_OPSET) -> ONNXRegistry:
        table = copy.copy(tables(opset_version))
        table.functions = {name: [*known] for name, known in table.functions.items()}
        return table

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[method-assign]
    typer.main.get_command = functools.cache(typer.main.get_command)
    for line in lines:
        CliRunner().invoke(app, line, prog_name="intaglio")
    with tempfile.TemporaryDirectory() as folder, quiet():
        export(Path(folder) / "bundle")
    gc.collect()
    gc.freeze()  # a collection in a child would copy all that it looks at


def forked(
    numbers: Iterable[int],
    run: Callable[[int, Path], int],
    inside: Path,
    workers: int,
    patience: float,
) -> Iterator[Ended]:
    """Call `run(number, folder)` in a child each, `workers` at a time; yield each as it ends.

    What `run` returns is the child's exit code, and 99 where it raises; what it says goes to `SAID`
    in its folder, where temporary files are made too.  Ended after `patience`
    seconds is who waits and does not work; processor time is for `run` to limit.
    """
    waiting = iter(numbers)
    running: dict[int, tuple[int, int, Path, float]] = {}
    while True:
        while len(running) < workers and (number := next(waiting, None)) is not None:
            folder = Path(tempfile.mkdtemp(prefix="case-", dir=inside))
            child = _fork(run, number, folder)
            end = time.monotonic() + patience
            running[os.pidfd_open(child)] = (child, number, folder, end)
        if not running:
            return
        soonest = min(entry[-1] for entry in running.values()) - time.monotonic()
        ended, _, _ = select.select(list(running), [], [], max(0.0, soonest))
        late = [fd for fd, entry in running.items() if entry[-1] <= time.monotonic()]
        for pidfd in [fd for fd in late if fd not in ended and _works(running[fd][0])]:
            late.remove(pidfd)
            running[pidfd] = (*running[pidfd][:-1], time.monotonic() + 5)
        for pidfd in {*ended, *late}:
            child, number, folder, _ = running.pop(pidfd)
            if pidfd not in ended:
                os.kill(child, signal.SIGKILL)
            os.close(pidfd)
            _, status, used = os.wait4(child, 0)
            hung = pidfd not in ended or -os.waitstatus_to_exitcode(status) == signal.SIGXCPU
            yield Ended(number, folder, status, used, hung)
            shutil.rmtree(folder)


def _fork(run: Callable[[int, Path], int], number: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.chdir(folder)
        tempfile.tempdir = str(folder)
        out = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(out, stream)
        code = run(number, folder)
    except BaseException:  # noqa: BLE001  shown as what the case said
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(arguments: Sequence[str]) -> int:
    """Run the command line in this process as the program does; its exit code."""
    sys.argv = ["intaglio", *arguments]
    try:
        intaglio.cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def said(folder: Path) -> str:
    """What a command said, and what it wrote into its logs."""
    return "".join(map(text, [folder / SAID, *sorted(folder.glob("intaglio-*.log"))]))


def text(path: Path) -> str:
    return path.read_text(errors="backslashreplace") if path.exists() else ""


def _works(child: int) -> bool:
    """Whether a process, or one that it waits for, could run: a busy machine is no hang."""
    try:
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":  # it has ended
            return True
        below = Path(f"/proc/{child}/task/{child}/children").read_text().split()
    except OSError:
        return False
    return state in "RD" or any(_works(int(each)) for each in below)


def kept(log: Path | None) -> list[dict[str, Any]]:
    """What an earlier run wrote to its log."""
    if log is None or not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines()]


def keep(log: Path | None, verdict: Any) -> None:
    """Add a record to a log."""
    if log is not None:
        with log.open("a") as file:
            file.write(json.dumps(asdict(verdict)) + "\n")
