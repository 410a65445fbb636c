"""Lorenz's attractor from an AL-RNN of 2 rectified units, run freely in one call of the engine.

    python benchmarks/al_rnn.py [WEIGHTS] [--json]

WEIGHTS is the checkpoint that was trained here, or `alrnn_python/models/lorenz_m20_p2` of
DurstewitzLab/ALRNN-DSR, trained by the authors of the paper (Brenner et al. 2024,
arXiv:2410.14240).  From one observation on, 11,000 steps are one call; the first 1,000 are left
out.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from evidence import Row, run

import intaglio
from intaglio.models.al_rnn import lorenz
from intaglio.quiet import quiet
from intaglio.runtime import Session

STEPS, SETTLED = 11_000, 1000
LIMIT = 1e-6
OURS = Path(__file__).parents[1] / "models" / "checkpoints" / "al_rnn.pt"


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("weights", type=Path, nargs="?", default=OURS)
    options, sys.argv[1:] = parser.parse_known_args()
    weights = options.weights
    run(__doc__, lambda quick: measure(weights, quick), [] if weights == OURS else [weights.name])


def measure(weights: Path, quick: bool) -> list[Row]:
    """Parity of the engine, and the attractor that it draws."""
    steps, whose = STEPS // 4 if quick else STEPS, "" if weights != OURS else "trained here: "
    with tempfile.TemporaryDirectory() as folder, quiet():
        out, source = Path(folder) / "out", Path(folder) / "weights.pt"
        source.write_bytes(weights.read_bytes())
        theirs = None if weights == OURS else {"P": 2}
        model = None if weights == OURS else "al-rnn"
        report = intaglio.export(source, out, steps=100, model=model, config=theirs)
        session = Session.load(out, threads=1)
        start = lorenz(2000, 3)[None, :1].numpy()
        free = {
            "observation": np.repeat(start, steps, 1),
            "observed": np.zeros((1, steps), bool),
        }
        before = time.perf_counter()
        told = session.step(free)
        seconds = time.perf_counter() - before
    assert report.parity is not None
    error = max(row.found.error for row in report.parity.rows)
    path, region = told["prediction"][0, SETTLED:], told["region"][0, SETTLED:]
    visited, count = np.unique(region, return_counts=True)
    shares = ", ".join(f"{share:.2f}" for share in count / len(region))
    wings = int(np.count_nonzero(np.diff(np.sign(path[:, 0]))))
    return [
        Row(
            name=f"{whose}error of 100 steps",
            value=error,
            unit="error",
            target=f"<= {LIMIT:g}",
            holds=error <= LIMIT,
            against="PyTorch, float64",
        ),
        Row(
            name=f"{whose}linear regions visited, of 4",
            value=len(visited),
            unit="regions",
            target="== 3",
            holds=len(visited) == 3,
            note=f"{shares} of the time",
        ),
        Row(
            name=f"{whose}changes between the wings",
            value=wings,
            unit="changes",
            target=">= 10",
            holds=wings >= 10,
            note=f"in {len(path)} steps; deviations {path.std(0).round(2).tolist()}",
        ),
        Row(
            name=f"{whose}a free step",
            value=seconds / steps * 1e6,
            unit="us",
            note="all in one call",
        ),
    ]


if __name__ == "__main__":
    main()
