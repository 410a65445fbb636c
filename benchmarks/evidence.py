"""The form of every benchmark: rows with targets, printed as a table or as JSON.

A benchmark defines ``measure(quick) -> list[Row]`` and ends with ``run(__doc__, measure)``.  Peers
are measured in the same run, in turns with ours (`paired`); ratios are medians of pairs.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("intaglio", "numpy", "onnxruntime", "onnxruntime-genai"),
    *("tensorrt-rtx", "torch", "transformers", "triton"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure; `holds` says whether it meets `target`, None where there is none."""

    name: str
    value: float
    unit: str
    target: str | None = None
    holds: bool | None = None
    against: str | None = None
    note: str = ""


def paired(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    pairs: int,
    warmup: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Seconds of each call by `clock`, ours and theirs in turns, after `warmup` uncounted pairs."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(pairs + warmup):
        for call, kept in zip((ours, theirs), times, strict=True):
            start = clock()
            call()
            if index >= warmup:
                kept.append(clock() - start)
    return times


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of the pairs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Versions of what takes part, as far as it is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run(
    description: str | None, measure: Callable[[bool], list[Row]], chosen: Sequence[str] = ()
) -> None:
    """Parse the command line, measure, print; `chosen` are options that the script took itself."""
    parser = argparse.ArgumentParser(description=(description or "").strip().partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a reduced run, under two minutes")
    options = parser.parse_args()
    rows = measure(options.quick)
    if options.json:
        words = [f"python benchmarks/{Path(sys.argv[0]).name}", *chosen]
        words += ["--quick"] if options.quick else []
        facts = {"command": " ".join(words), "machine": machine(), "versions": versions()}
        print(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "value", "unit", "target", "holds", "against", "note")
    verdict = {True: "yes", False: "NO", None: ""}
    for row in rows:
        cells = [row.name, f"{row.value:.4g}", row.unit, row.target or "", verdict[row.holds]]
        table.add_row(*cells, row.against or "", row.note)
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)
