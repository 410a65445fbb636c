"""Mutated checkpoints, configs, bundles, graphs and arrays, given to the command line.

    python benchmarks/fuzz.py [--quick] [--seed N] [--case N] [--log FILE] [--json]

Each case runs `intaglio` in a child of its own, forked from one process that has imported
everything, with the limits below on time and memory.  A case fails if it prints a traceback, dies,
ends in an internal error, outlives the limits, leaves something half-written, or runs
code that was planted in its input.  `--seed N --case K` runs one case again and shows all of it.
`--log` keeps what became of each case; a run that is stopped goes on from there.
"""

import argparse
import contextlib
import copy
import functools
import gc
import importlib
import itertools
import json
import os
import pkgutil
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import Process
from pathlib import Path
from random import Random

import torch
import typer
from evidence import Row, run
from fuzz_cases import (
    ARGUMENTS,
    KINDS,
    MODULES,
    OUT,
    WEIGHTS,
    Kind,
    prepare,
    restore_state,
    write_inputs,
)
from fuzz_mutations import CANARY
from torch.onnx._internal.exporter._constants import TORCHLIB_OPSET
from torch.onnx._internal.exporter._registration import ONNXRegistry

import intaglio
import intaglio.cli
import intaglio.exporter.export
import intaglio.runtime
from intaglio.cli.frame import app
from intaglio.quiet import quiet

CASES, QUICK = 10_000, 240
SECONDS = 20  # of processor time
PATIENCE = 60.0  # seconds on the clock, for what waits without working
MEMORY = 2 << 30  # bytes of address space beyond what the imports take
RESIDENT = 1024  # MiB beyond what the imports take


@dataclass(frozen=True)
class Verdict:
    """What became of a case; `fault` is empty if it did what it should."""

    number: int
    kind: str
    change: str
    code: int
    fault: str
    said: str
    seconds: float  # of processor time, of the command and its children
    memory: float = 0.0  # MiB at most, beyond what the imports take


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--only", help="cases of these kinds, with / between them")
    parser.add_argument("--cases", type=int)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options, sys.argv[1:] = parser.parse_known_args()
    if options.only:
        wanted = options.only.split("/")
        KINDS[:] = [kind for kind in KINDS if kind.name in wanted]
    if options.case is None:
        count = options.cases or CASES
        run(__doc__, lambda quick: measure(QUICK if quick else count, options))
        return
    with _inputs() as inputs:
        for verdict in _verdicts([options.case], options.seed, inputs, workers=1):
            print(f"{verdict.kind}: {verdict.change}\n{verdict.said}\nexit code {verdict.code}")
            print(f"fault: {verdict.fault or 'none'}")


def measure(cases: int, options: argparse.Namespace) -> list[Row]:
    """A row for each kind of input: how many cases failed."""
    start, seed = time.monotonic(), options.seed
    print(f"seed {seed}, {cases} cases", file=sys.stderr)
    verdicts = _kept(options.log, cases)
    known = {verdict.number for verdict in verdicts}
    with _inputs() as inputs:
        numbers = itertools.takewhile(
            lambda _: time.monotonic() < start + 60 * options.minutes,
            (number for number in range(cases) if number not in known),
        )
        for verdict in _verdicts(numbers, seed, inputs, options.workers):
            verdicts.append(verdict)
            if options.log is not None:
                with options.log.open("a") as log:
                    log.write(json.dumps(asdict(verdict)) + "\n")
            if verdict.fault:
                print(
                    f"--seed {seed} --case {verdict.number} ({verdict.kind}: {verdict.change}): "
                    f"{verdict.fault}\n  {verdict.said[-600:]}",
                    file=sys.stderr,
                    flush=True,
                )
    rows = [_row(kind.name, [v for v in verdicts if v.kind == kind.name]) for kind in KINDS]
    rows.append(_row(f"all, seed {seed}", verdicts))
    spent = sum(verdict.seconds for verdict in verdicts) / 60
    most = max(verdict.memory for verdict in verdicts)
    return [
        *rows,
        Row(name="processor time", value=spent, unit="minutes"),
        Row(name="memory of a case, at most", value=most, unit="MiB"),
    ]


def _kept(log: Path | None, cases: int) -> list[Verdict]:
    """What an earlier run wrote of cases of the same seed."""
    if log is None or not log.exists():
        return []
    found = [Verdict(**json.loads(line)) for line in log.read_text().splitlines()]
    return [verdict for verdict in found if verdict.number < cases]


def _row(name: str, verdicts: list[Verdict]) -> Row:
    faults = Counter(verdict.fault for verdict in verdicts if verdict.fault)
    codes = Counter(verdict.code for verdict in verdicts)
    note = ", ".join(f"{count} exit {code}" for code, count in sorted(codes.items()))
    found = ", ".join(f"{count} {fault}" for fault, count in faults.items())
    return Row(
        name=name,
        value=sum(faults.values()),
        unit=f"of {len(verdicts)} cases",
        target="0",
        holds=not faults,
        note=f"{note}; {found}" if found else note,
    )


@contextlib.contextmanager
def _inputs() -> Iterator[Path]:
    """A folder with the whole inputs; another process writes them, so that this has no threads."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        writer = Process(target=write_inputs, args=(Path(folder),))
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit("the inputs could not be written")
        commands = [m.name for m in pkgutil.walk_packages(intaglio.cli.__path__, "intaglio.cli.")]
        for name in (*(Path(folder) / MODULES).read_text().split(), *commands):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        torch.set_num_threads(1)
        _warm_up(Path(folder))
        yield Path(folder)


def _warm_up(inputs: Path) -> None:
    """Do once what each case would do again: tables of PyTorch and of the command line.

    A conversion writes its own entries into the table of ONNX functions, so each is given a copy.
    """
    tables = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(opset_version: int = TORCHLIB_OPSET) -> ONNXRegistry:
        table = copy.copy(tables(opset_version))
        table.functions = {name: [*known] for name, known in table.functions.items()}
        return table

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[method-assign]
    typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(app)
    with tempfile.TemporaryDirectory() as folder, quiet():
        intaglio.export(inputs / "llama.pt", Path(folder) / "out", verify=False, portable=False)
    gc.collect()
    gc.freeze()  # a collection in a child would copy all that it looks at


def _verdicts(numbers: Iterable[int], seed: int, inputs: Path, workers: int) -> Iterator[Verdict]:
    """Run cases, `workers` at a time; yield what became of each as it ends."""
    drawn = [kind for kind in KINDS for _ in range(WEIGHTS.get(kind.name, 1))]
    waiting = iter(numbers)
    running: dict[int, tuple[int, int, Kind, Path, float]] = {}
    while True:
        while len(running) < workers and (number := next(waiting, None)) is not None:
            kind = drawn[number % len(drawn)]
            folder = Path(tempfile.mkdtemp(prefix="case-", dir=inputs))
            child = _fork(kind, inputs, folder, Random(f"{seed}:{number}"))
            pidfd = os.pidfd_open(child)
            running[pidfd] = (child, number, kind, folder, time.monotonic() + PATIENCE)
        if not running:
            return
        soonest = min(entry[-1] for entry in running.values()) - time.monotonic()
        ended, _, _ = select.select(list(running), [], [], max(0.0, soonest))
        late = [fd for fd, entry in running.items() if entry[-1] <= time.monotonic()]
        for pidfd in [fd for fd in late if fd not in ended and _works(running[fd][0])]:
            late.remove(pidfd)
            running[pidfd] = (*running[pidfd][:-1], time.monotonic() + 5)
        for pidfd in {*ended, *late}:
            child, number, kind, folder, _ = running.pop(pidfd)
            if pidfd not in ended:
                os.kill(child, signal.SIGKILL)
            os.close(pidfd)
            _, status, used = os.wait4(child, 0)
            hung = pidfd not in ended or -os.waitstatus_to_exitcode(status) == signal.SIGXCPU
            seconds = used.ru_utime + used.ru_stime
            memory = used.ru_maxrss / 1024 - _idle()
            yield _judge(number, kind, folder, status, seconds, memory, hung=hung)
            shutil.rmtree(folder)


def _fork(kind: Kind, inputs: Path, folder: Path, random: Random) -> int:
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.chdir(folder)
        (folder / "change").write_text(
            prepare(kind, inputs, folder, random), errors="backslashreplace"
        )
        code = _run(kind, folder)
    except BaseException:  # noqa: BLE001  shown as what the case said
        (folder / "said").open("a").write(traceback.format_exc())
    finally:
        os._exit(code)


def _run(kind: Kind, folder: Path) -> int:
    """Run the command line in this process as the program does, under limits."""
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    tempfile.tempdir = str(folder)  # where a fault of ours leaves its log
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, used + SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own = folder / ARGUMENTS
    arguments = json.loads(own.read_text()) if own.exists() else kind.arguments
    sys.argv = ["intaglio", *arguments]
    try:
        if not arguments:
            return restore_state(folder)
        intaglio.cli.main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


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


@functools.cache
def _idle() -> float:
    """MiB that a child has which does nothing."""
    child = os.fork()
    if not child:
        os._exit(0)
    return os.wait4(child, 0)[2].ru_maxrss / 1024


def _judge(
    number: int,
    kind: Kind,
    folder: Path,
    status: int,
    seconds: float,
    memory: float,
    *,
    hung: bool,
) -> Verdict:
    code = os.waitstatus_to_exitcode(status)
    said = _text(folder / "said") + "".join(map(_text, sorted(folder.glob("intaglio-*.log"))))
    faults = {
        "ran planted code": (folder / CANARY).exists(),
        "hung": hung,
        f"died of signal {-code}": code < 0 and not hung,
        f"exit code {code}": code not in (0, 1, 2, 3),
        "printed a traceback": "Traceback (most recent call last)" in said and code in (0, 1),
        f"took {memory:.0f} MiB": memory > RESIDENT,
        "said nothing": code == 1 and not said.strip(),
        "left something behind": code != 0 and any(folder.glob(f"*{OUT}*")),
    }
    fault = next((name for name, found in faults.items() if found), "")
    said = said if fault else said[-300:]
    change = _text(folder / "change")
    return Verdict(number, kind.name, change, code, fault, said, seconds, memory)


def _text(path: Path) -> str:
    return path.read_text(errors="backslashreplace") if path.exists() else ""


if __name__ == "__main__":
    main()
