"""Linear interpreters: identities of the map, and the replay of 64 columns in one call.

    python benchmarks/linear_interpreter.py [--quick] [--json]

A small classifier of 16 x 16 pictures, random weights, one thread; 64 columns in one call are timed
in turns with 64 calls of one, in seconds of the processor: by a clock, what else runs interrupts
the longer of the two more often.  The identities are those of the engine, in float32, and those of
the same graphs in float64, by the reference that ONNX gives of its operators.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from evidence import Row, paired, ratio, run
from torch import nn

import intaglio
from intaglio.runtime.interpreter import COLUMNS, Interpreter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from in_double import in_double

LEAST = 10.0


def measure(quick: bool) -> list[Row]:
    """The identities, and the speed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 10),
    ).eval()  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        intaglio.export(
            module,
            Path(folder) / "b",
            inputs=(torch.randn(2, 3, 16, 16),),
            axes={"input": "batchx3x16x16"},
            passes=["linear-interpreter"],
        )
        exact = identities(Path(folder) / "b")
        found = Interpreter.load(Path(folder) / "b", threads=1)
        x = np.random.default_rng(0).standard_normal((3, 16, 16)).astype(np.float32)
        y = found.record(x)
        rows = found.rows(range(10)).reshape(10, -1)
        columns = found.columns(range(x.size)).reshape(x.size, -1).T
        many = np.random.default_rng(1).standard_normal((COLUMNS, 3, 16, 16)).astype(np.float32)
        alone, together = paired(
            lambda: [found.replay(many[i : i + 1]) for i in range(COLUMNS)],
            lambda: found.replay(many),
            10 if quick else 50,
            clock=time.process_time,
        )
        anew, _ = paired(
            lambda: [(found.record(x), found.replay(many[i : i + 1])) for i in range(COLUMNS)],
            lambda: None,
            10 if quick else 50,
            clock=time.process_time,
        )
    speed, whole = ratio(alone, together), ratio(anew, together)
    sums = float(np.abs(rows @ x.ravel() + found.bias - y).max() / np.abs(y).max())
    apart = float(np.abs(rows - columns).max() / np.abs(rows).max())
    share = float(np.linalg.norm(found.bias) / np.linalg.norm(y))
    return [
        Row(name="W x0 + r against y0", value=sums, unit="of the largest", target="<= 1e-5",
            holds=sums <= 1e-5),
        Row(name="rows against columns", value=apart, unit="of the largest", target="<= 1e-5",
            holds=apart <= 1e-5),
        *(Row(name=f"{name}, float64", value=error, unit="of the largest", target="<= 1e-10",
              holds=error <= 1e-10) for name, error in exact.items()),
        Row(name=f"replay of {COLUMNS} columns, apart : in one call", value=speed, unit="times",
            target=f">= {LEAST:.0f}", holds=speed >= LEAST, against="processor time"),
        Row(name=f"{COLUMNS} columns, each recorded anew : recorded once, replayed in one call",
            value=whole, unit="times", target=f">= {LEAST:.0f}", holds=whole >= LEAST,
            against="processor time"),
        Row(name="length of the bias term", value=share, unit="of the output's"),
    ]  # fmt: skip


def identities(bundle: Path) -> dict[str, float]:
    """Errors of both identities in float64, for one picture."""
    record, replay, transpose = (
        in_double(ir.external_data.load_to_model(ir.load(bundle / f"{name}.onnx")))
        for name in ("record", "replay", "transpose")
    )
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16))
    found = record({"input": x})
    units = np.concatenate((np.zeros((1, x.size)), np.eye(x.size))).reshape(-1, 3, 16, 16)
    decisions = {name: value for name, value in found.items() if name != "output"}
    (mapped,) = replay({"input": units, **decisions}).values()
    columns = (mapped[1:] - mapped[:1]).T
    (rows,) = transpose({"output_weights": np.eye(10), **decisions}).values()
    y = found["output"][0]
    sums = np.abs(columns @ x.ravel() + mapped[0] - y).max() / np.abs(y).max()
    apart = np.abs(rows.reshape(10, -1) - columns).max() / np.abs(columns).max()
    return {"W x0 + r against y0": float(sums), "rows against columns": float(apart)}


if __name__ == "__main__":
    run(__doc__, measure)
