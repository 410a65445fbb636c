"""SafeEraser: what few bits do to a model that has unlearnt, by its suite, and what the gate says.

    python benchmarks/safe_eraser.py [--quick] [--json]

The trained checkpoint is rounded to 4, 3 and 2 bits in groups of 64; each bundle answers all 360
questions beside its source, as `intaglio verify --behaviour` does.  `--quick` takes 2 bits alone.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from evidence import Row, run
from typer.testing import CliRunner

from intaglio.cli.frame import app
from intaglio.exporter.export import export
from intaglio.models.safe_eraser import END, write_suite

CHECKPOINT = Path(__file__).parents[1] / "models" / "checkpoints" / "safe_eraser.pt"
PASSES = {4: True, 3: False, 2: False}  # whether the gate does, as found


def measure(quick: bool) -> list[Row]:
    """Rows for each number of bits."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_suite(folder / "suite.jsonl")
        return [row for bits in ((2,) if quick else PASSES) for row in _rows(folder, bits)]


def _rows(folder: Path, bits: int) -> Iterator[Row]:
    out = folder / f"{bits}"
    export(CHECKPOINT, out, passes=[f"rtn:bits={bits},group=64"], verify=False)
    command = ["verify", str(out), "--against", str(CHECKPOINT), "--answer-tokens", "12", "--json"]
    command += ["--behaviour", str(folder / "suite.jsonl"), "--stop", END]
    found = CliRunner().invoke(app, command)
    for figure in json.loads(found.stdout)["figures"]:
        yield Row(
            name=f"{bits} bits: {figure['name']}",
            value=figure["engine"],
            unit="of the questions",
            against=f"the source, {figure['source']:.3f}",
            note=f"{figure['questions']} questions",
        )
    passed = found.exit_code == 0
    yield Row(
        name=f"{bits} bits: the gate passes",
        value=int(passed),
        unit="",
        target=str(int(PASSES[bits])),
        holds=passed == PASSES[bits],
    )


if __name__ == "__main__":
    run(__doc__, measure)
