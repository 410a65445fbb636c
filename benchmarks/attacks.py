"""How many tests hold each promise of docs/trust.md, as pytest collects them.

    python benchmarks/attacks.py [--quick] [--json]

Writes the last column of the table "What holds each promise" anew.  `tests/test_trust.py` finds a
number that is larger than what is collected.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from evidence import Row, run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "trust.md"
ROW = re.compile(r"^(\| (.+?) \| .+? \| (`tests/.+?`) \| )(\d*)( \|)$", re.MULTILINE)
NAMED = re.compile(r"`(tests/[\w/]+\.py(?:::\w+)?)`")


def measure(quick: bool) -> list[Row]:
    """A row for each promise; `quick` counts the first one alone and writes nothing."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [*ROW.finditer(text)][: 1 if quick else None]
    named = {row[2]: NAMED.findall(row[3]) for row in rows}
    counts = _collected(
        sorted({name.partition("::")[0] for each in named.values() for name in each})
    )
    totals = {row: sum(counts[name] for name in each) for row, each in named.items()}
    if not quick:
        written = ROW.sub(lambda row: f"{row[1]}{totals[row[2]]}{row[5]}", text)
        PAGE.write_text(written, encoding="utf-8")
    return [Row(name=name, value=total, unit="tests") for name, total in totals.items()]


def _collected(files: list[str]) -> Counter[str]:
    """Tests of files, and of functions by ``FILE::NAME``."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    tests = [line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line]
    return Counter(tests) + Counter(test.partition("::")[0] for test in tests)


if __name__ == "__main__":
    run(__doc__, measure)
