"""Systems with memories, gradients, graphs and symmetries: parity on each target.

    python benchmarks/other_systems.py [--only NAME,...] [--beside FILE] [--json]

Of every preset, with the weights of `models/checkpoints/` or random ones: the largest error of its
bundle against PyTorch in float64, the graphs of it that TensorRT-RTX builds engines of, without a
GPU, or why it refuses, and the error of these on an emulated GPU.  The linear interpreter is a
pass, here over a small classifier of pictures.  `--only` takes systems, or a preset of one, as
"implicit simplex"; with `--beside`, all other rows are those of an earlier record.  What the
systems claim have benchmarks of their own: `memory_systems.py`, `mlp_memory_retrieval.py`,
`longmem_recall.py`, `longmem_bank.py`, `graphgps.py`, `linear_interpreter.py`, `safe_eraser.py`.
"""

import argparse
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from evidence import Row, run
from recurrent_family import checkpoints
from torch import nn
from trt_engines import EMULATED, emulated

import intaglio
from intaglio.errors import IntaglioError
from intaglio.exporter.proving.parity import ParityReport
from intaglio.models import llama, mlp_memory
from intaglio.quiet import quiet
from intaglio.runtime import user_cache
from intaglio.runtime.interpreter import Interpreter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from emulator.device import Gpu
from emulator.engine import install

INTERPRETER = "linear-interpreter"
NAMES = {
    INTERPRETER, "mlp-memory", "longmem", "bib", "implicit", "graphgps", "lie-conv",
    "moment-probing", "safe-eraser",
}  # fmt: skip
STEPS, GPU_STEPS = 128, 8
GENERATOR = torch.Generator().manual_seed(0)


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="")
    parser.add_argument("--beside", type=Path)
    options, sys.argv[1:] = parser.parse_known_args()
    only = set(filter(None, options.only.split(",")))
    if unknown := {each for each in only if each.split()[0] not in NAMES}:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(sorted(NAMES))}")
    earlier = [] if options.beside is None else _others(options.beside, only)
    chosen = ["--only", shlex.quote(options.only)] * bool(only)
    chosen += ["--beside", str(options.beside)] * (options.beside is not None)
    run(__doc__, lambda _quick: [*earlier, *measure(only)], chosen)


def _others(record: Path, only: set[str]) -> list[Row]:
    """The rows of a record that are of systems that are not measured now."""
    rows = [Row(**row) for row in json.loads(record.read_text())["rows"]]
    return [row for row in rows if not _is_of(row.name, only)]


def _is_of(name: str, chosen: set[str]) -> bool:
    """Whether a row, or a preset, is of one of the systems, or presets, that were chosen."""
    words = re.split(r"[ :,]+", name)
    return any(words[: len(each.split())] == each.split() for each in chosen)


def measure(only: set[str]) -> list[Row]:
    """The rows of each system."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint in checkpoints(Path(folder), only or NAMES):
            print(name, file=sys.stderr, flush=True)
            rows += targets_of(name, checkpoint, Path(folder) / name.replace(" ", "-"))
        if not only or INTERPRETER in only:
            print(INTERPRETER, file=sys.stderr, flush=True)
            rows += targets_of(
                INTERPRETER, classifier(), Path(folder) / INTERPRETER, passes=[INTERPRETER],
                inputs={"input": torch.randn(2, 3, 8, 8)}, axes={"input": "batchx3x8x8"},
            )  # fmt: skip
            rows.append(interpreted(Path(folder) / INTERPRETER))
        if not only or mlp_memory.MLP_MEMORY.name in only:
            given = {"input_ids": torch.randint(64, (2, 9)), **mlp_memory.conditions(2, GENERATOR)}
            axes = {"input_ids": "batchxtime", "weight": "batch", "temperature": "batch"}
            name = f"{mlp_memory.MLP_MEMORY.name} beside a language model, random weights"
            rows += targets_of(name, mixture(), Path(folder) / "mixture", inputs=given, axes=axes)
    return rows


def mixture() -> nn.Module:
    """A language model of Llama's kind and a memory, random weights."""
    torch.manual_seed(0)
    sizes: Any = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2}
    model = llama.build(llama.Config(**sizes, num_heads=2, num_kv_heads=2)).eval()
    memory = mlp_memory.build(mlp_memory.Config(**sizes)).eval()
    return mlp_memory.join({"language_model": model, "memory": memory})


def interpreted(bundle: Path) -> Row:
    """Rows, columns and bias of the engines of record, replay and transpose."""
    draw = np.random.default_rng(0)
    x, many = (
        draw.standard_normal(shape).astype(np.float32) for shape in ((3, 8, 8), (2, 3, 8, 8))
    )

    def told(found: Interpreter) -> list[npt.NDArray[Any]]:
        return [found.record(x), found.rows(range(3)), found.replay(many), found.bias]

    wanted = told(Interpreter.load(bundle))
    with pytest.MonkeyPatch.context() as patch:
        install(bundle, Gpu(EMULATED), user_cache.folder("kernels"), patch)
        made = told(Interpreter.load(bundle, target="trt"))
    pairs = zip(made, wanted, strict=True)
    error = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
    return Row(
        name=f"{INTERPRETER}: rows, columns and bias of engines on an emulated GPU", value=error,
        unit="of the largest", target="<= 1e-5", holds=error <= 1e-5, against="ONNX Runtime",
    )  # fmt: skip


def classifier() -> nn.Module:
    """A convolution, a smooth activation, a pool and a head, random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    ).eval()


def targets_of(
    name: str, source: Path | nn.Module, out: Path, tokens: int = GPU_STEPS, **how: Any
) -> Iterator[Row]:
    """What was measured of one system, or why nothing was; `tokens` go through the engines."""
    try:
        with quiet():
            report = intaglio.export(
                source, out, targets=["ort", "trt"], sm=[EMULATED], steps=STEPS, **how
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
            found = emulated(out, source, tokens)
        whole = all(entry.whole for entry in graphs.values())
        said = "" if whole or found.steps == GPU_STEPS else f"{found.steps} tokens"
        yield _error(f"{name}: engine on an emulated GPU", found, said)


def _error(name: str, parity: ParityReport, note: str = "") -> Row:
    """The largest error, against the limit of each output: counts and residuals have their own."""
    share = max(row.found.error / row.found.limit for row in parity.rows)
    return Row(name=name, value=share, unit="of the limit", target="<= 1", holds=share <= 1,
               against=f"PyTorch, {parity.precision}", note=note)  # fmt: skip


if __name__ == "__main__":
    main()
