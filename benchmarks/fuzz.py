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
import functools
import importlib
import itertools
import json
import os
import pkgutil
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import Process
from pathlib import Path
from random import Random

import forked
from evidence import Row, run
from forked import Ended
from fuzz_arguments import GIVEN
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

import intaglio
import intaglio.cli
import intaglio.exporter.export
import intaglio.runtime

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
    found = [Verdict(**each) for each in forked.kept(options.log)]
    verdicts = [verdict for verdict in found if verdict.number < cases]
    known = {verdict.number for verdict in verdicts}
    with _inputs() as inputs:
        numbers = itertools.takewhile(
            lambda _: time.monotonic() < start + 60 * options.minutes,
            (number for number in range(cases) if number not in known),
        )
        for verdict in _verdicts(numbers, seed, inputs, options.workers):
            verdicts.append(verdict)
            forked.keep(options.log, verdict)
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
        with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
            forked.warm_up(
                lambda out: intaglio.export(
                    Path(folder) / "llama.pt", out, verify=False, portable=False
                ),
                [[name, *line] for name, line in GIVEN.items()],  # which are refused here
            )
        yield Path(folder)


def _verdicts(numbers: Iterable[int], seed: int, inputs: Path, workers: int) -> Iterator[Verdict]:
    """Run cases, `workers` at a time; yield what became of each as it ends."""
    drawn = [kind for kind in KINDS for _ in range(WEIGHTS.get(kind.name, 1))]

    def case(number: int, folder: Path) -> int:
        kind, random = drawn[number % len(drawn)], Random(f"{seed}:{number}")
        change = prepare(kind, inputs, folder, random)
        (folder / "change").write_text(change, errors="backslashreplace")
        return _run(kind, folder)

    for ended in forked.forked(numbers, case, inputs, workers, PATIENCE):
        yield _judge(drawn[ended.number % len(drawn)], ended)


def _run(kind: Kind, folder: Path) -> int:
    """Run the command line, or a program of a few lines, under limits."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, used + SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own = folder / ARGUMENTS
    arguments = json.loads(own.read_text()) if own.exists() else kind.arguments
    return forked.command(arguments) if arguments else restore_state()


@functools.cache
def _idle() -> float:
    """MiB that a child has which does nothing."""
    child = os.fork()
    if not child:
        os._exit(0)
    return os.wait4(child, 0)[2].ru_maxrss / 1024


def _judge(kind: Kind, ended: Ended) -> Verdict:
    folder, hung = ended.folder, ended.hung
    code = os.waitstatus_to_exitcode(ended.status)
    memory = ended.used.ru_maxrss / 1024 - _idle()
    said = forked.said(folder)
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
    change = forked.text(folder / "change")
    return Verdict(ended.number, kind.name, change, code, fault, said, ended.seconds, memory)


if __name__ == "__main__":
    main()
