"""Mixes of linear and full attention: what a row carries, and how exact the step engine is.

    python benchmarks/hybrid_linear_attention.py [--quick] [--json]

Stacks of 4 layers with random weights: Gated DeltaNet alone, three to one, half and half, and
attention alone.  The bytes that a row carries after 128 and 16,384 tokens, and the largest error of
the steps against one call of the module in float64.
"""

import tempfile
from pathlib import Path

import torch
from evidence import Row, run

import intaglio
from intaglio.models import hybrid_linear_attention as hybrid
from intaglio.models import save
from intaglio.quiet import quiet

LINEAR, FULL = "gated-deltanet", "attention"
MIXES = {
    "linear alone": [LINEAR] * 4,
    "three to one": [LINEAR] * 3 + [FULL],
    "half and half": [LINEAR, FULL] * 2,
    "attention alone": [FULL] * 4,
}
NEAR, FAR = 128, 16_384
LIMIT = 1e-4
STEPS, QUICK_STEPS = 256, 16


def measure(quick: bool) -> list[Row]:
    """Three rows for each mix."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return [
            row
            for name, layers in MIXES.items()
            for row in _rows(name, layers, Path(folder) / name, QUICK_STEPS if quick else STEPS)
        ]


def _rows(name: str, layers: list[str], folder: Path, steps: int) -> list[Row]:
    folder.mkdir()
    config = hybrid.Config(layers=tuple(layers), hidden_size=64, key_size=16, value_size=16)
    torch.manual_seed(0)
    save(folder / "m.pt", "hybrid-linear-attention", config, hybrid.build(config))
    with quiet():
        report = intaglio.export(folder / "m.pt", folder / "bundle", steps=steps)
    assert report.parity is not None
    error = max(row.found.error for row in report.parity.rows)
    return [
        *(
            Row(
                name=f"{name}: state of a row after {time} tokens",
                value=sum(spec.nbytes(1, time) for spec in report.manifest.main.states),
                unit="bytes",
            )
            for time in (NEAR, FAR)
        ),
        Row(
            name=f"{name}: steps",
            value=error,
            unit="error",
            target=f"<= {LIMIT:g}",
            holds=error <= LIMIT,
            against="PyTorch, float64",
            note=f"{steps} steps",
        ),
    ]


if __name__ == "__main__":
    run(__doc__, measure)
