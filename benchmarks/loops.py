"""Recurrences written as loops over tokens in Python, exported as they are and verified.

    python benchmarks/loops.py [--quick] [--json]

For each module of `loop_modules.py` the largest error of its step engine against PyTorch in
float64, over 1,000 tokens one at a time, all at once and in uneven parts; the note says how many
values a row carries, and how long tracing took.  A refusal is a row with its reason.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run
from loop_modules import MODULES, D

from intaglio.errors import IntaglioError
from intaglio.exporter.export import export

STEPS, QUICK_STEPS = 1000, 100
QUICK = ("gated", "lstm_cells", "delta_rule", "rg_lru", "two_loops")
LIMIT = 1e-4


def measure(quick: bool) -> list[Row]:
    rows = []
    for make in MODULES:
        if quick and make.__name__ not in QUICK:
            continue
        torch.manual_seed(0)
        module, shape = make().eval(), (2, 9)
        inputs = {"x": np.zeros((*shape, D), np.float32)}
        if make.__name__ == "language_model":
            inputs = {"input_ids": np.zeros(shape, np.int64)}
        with tempfile.TemporaryDirectory() as folder:
            try:
                report = export(
                    module,
                    Path(folder) / "bundle",
                    inputs=inputs,
                    steps=QUICK_STEPS if quick else STEPS,
                )
            except IntaglioError as refusal:
                note = str(refusal)
                rows.append(
                    Row(name=make.__name__, value=1, unit="refused", holds=False, note=note)
                )
                continue
        assert report.parity is not None
        error = max(row.found.error for row in report.parity.rows)
        carried = sum(spec.nbytes(1, 0) for spec in report.manifest.main.states) // 4
        rows.append(
            Row(
                name=make.__name__,
                value=error,
                unit="error",
                target=f"at most {LIMIT:g}",
                holds=error <= LIMIT,
                against="PyTorch, float64",
                note=f"{carried} values carried; traced in {report.seconds['trace']:.1f} s",
            )
        )
    return rows


if __name__ == "__main__":
    run(__doc__, measure)
