"""How the time to roll a loop up again grows with its body: 10, 40 and 160 lines.

    python benchmarks/loop_scaling.py [--quick] [--json]

Each line of the body of a loop over tokens is a sum, a product and a squashing of one of three
states that the others are mixed into.  A module of it is exported without verification; seconds are
those of the processor, of which a loop of 40 lines may take 30.  Each body is four times the one
before, and its time may grow fivefold.  `pipeline_scaling.py` has these rows as well.
"""

import tempfile
import time
from pathlib import Path

import torch
from evidence import Row, run
from torch import Tensor, nn

import intaglio
from intaglio.quiet import quiet

LINES = (10, 40, 160)
MOST, RATIO = 30.0, 5.0
D = 8


class Lines(nn.Module):
    """A loop over tokens whose body has so many lines."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(0.3 * torch.randn(D) for _ in range(lines))

    def forward(self, x: Tensor) -> Tensor:
        states, out = [torch.zeros_like(x[:, 0])] * 3, []
        for t in range(x.shape[1]):
            for line, weight in enumerate(self.weights):
                states[line % 3] = torch.tanh(states[line % 3] * weight + states[(line + 1) % 3])
            states[0] = states[0] + x[:, t]
            out.append(states[0])
        return torch.stack(out, 1)


def measure(quick: bool) -> list[Row]:
    """Seconds of each body, and how they grow."""
    torch.set_num_threads(1)
    _seconds(LINES[0])  # what the first export of a process takes longer
    rows: list[Row] = []
    for lines in LINES[: 2 if quick else None]:
        taken = _seconds(lines)
        limit = MOST if lines == LINES[1] else None
        rows.append(
            Row(
                name=f"a loop of {lines} lines",
                value=taken,
                unit="s of the processor",
                target=None if limit is None else f"<= {limit:g}",
                holds=None if limit is None else taken <= limit,
            )
        )
        if len(rows) > 1:
            before = next(row for row in reversed(rows[:-1]) if row.unit == rows[-1].unit)
            growth = taken / before.value
            rows.append(
                Row(
                    name=f"{before.name} to {lines}",
                    value=growth,
                    unit="t(4n) / t(n)",
                    target=f"<= {RATIO:g}",
                    holds=growth <= RATIO,
                )
            )
    return rows


def _seconds(lines: int) -> float:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, quiet():
        start = time.process_time()
        intaglio.export(
            Lines(lines).eval(),
            Path(folder) / "bundle",
            inputs={"x": torch.randn(2, 9, D)},
            verify=False,
        )
        return time.process_time() - start


if __name__ == "__main__":
    run(__doc__, measure)
