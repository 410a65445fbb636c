"""Systems with memories, gradients, graphs and symmetries: parity on each target.

    python benchmarks/other_systems.py [--only NAME,...] [--json]

Of every preset, with the weights of `models/checkpoints/` or random ones: the largest error of its
bundle against PyTorch in float64, the graphs of it that TensorRT-RTX builds engines of, without a
GPU, or why it refuses, and the error of these on an emulated GPU.  What the systems claim have
benchmarks of their own: `memory_systems.py`, `mlp_memory_retrieval.py`, `longmem_recall.py`,
`longmem_bank.py`, `graphgps.py`, `linear_interpreter.py`, `safe_eraser.py`.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from evidence import Row, run
from recurrent_family import checkpoints
from trt_engines import EMULATED, emulated

import intaglio
from intaglio.errors import IntaglioError
from intaglio.exporter.proving.parity import ParityReport
from intaglio.quiet import quiet

NAMES = {
    "mlp-memory", "longmem", "bib", "implicit", "graphgps", "lie-conv", "moment-probing",
    "safe-eraser",
}  # fmt: skip
STEPS, GPU_STEPS = 128, 8


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="")
    options, sys.argv[1:] = parser.parse_known_args()
    only = set(filter(None, options.only.split(",")))
    if unknown := only - NAMES:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(sorted(NAMES))}")
    run(__doc__, lambda _quick: measure(only), ["--only", options.only] * bool(only))


def measure(only: set[str]) -> list[Row]:
    """The rows of each system."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint in checkpoints(Path(folder), only or NAMES):
            print(name, file=sys.stderr, flush=True)
            rows += targets_of(name, checkpoint, Path(folder) / name.replace(" ", "-"))
    return rows


def targets_of(name: str, checkpoint: Path, out: Path) -> Iterator[Row]:
    """What was measured of one system, or why nothing was."""
    try:
        with quiet():
            report = intaglio.export(
                checkpoint, out, targets=["ort", "trt"], sm=[EMULATED], steps=STEPS
            )
    except IntaglioError as refusal:
        yield Row(name=name, value=1, unit="refused", holds=False, note=str(refusal))
        return
    assert report.parity is not None
    yield _error(f"{name}: bundle", report.parity)
    graphs = report.manifest.graphs
    built = [graph for graph, entry in graphs.items() if "trt" in entry.targets]
    why = next((note for note in report.notes if "TensorRT" in note), "")
    yield Row(name=f"{name}: graphs with an engine", value=len(built), unit=f"of {len(graphs)}",
              note=", ".join(built) or why)  # fmt: skip
    if built:
        with quiet():
            found = emulated(out, checkpoint, GPU_STEPS)
        yield _error(f"{name}: engine on an emulated GPU", found)


def _error(name: str, parity: ParityReport) -> Row:
    """The largest error, against the limit of each output: counts and residuals have their own."""
    share = max(row.found.error / row.found.limit for row in parity.rows)
    return Row(name=name, value=share, unit="of the limit", target="<= 1", holds=share <= 1,
               against=f"PyTorch, {parity.precision}")  # fmt: skip


if __name__ == "__main__":
    main()
