"""Linear interpreters: identities of the map, and the replay of 64 columns in one call.

    python benchmarks/linear_interpreter.py [--quick] [--json]

Random weights, one thread, seconds of the thread: a small classifier of 16 x 16 pictures, one of
VGG's kind with 34M parameters, and a network from pictures to pictures.  64 calls of one column are
timed in turns with the first call of all 64 after a recording, in which the rows of the map are
taken where the outputs are fewer, and with a further call, which has them.  A network from pictures
to pictures has no shorter side, and is replayed by its graph.  How near one column alone comes to
the rate of the machine, that of a product of two matrices, says what a call of many can gain at
most: all of that rate, for as few products as there are rows or columns.  The identities are those
of the engine, in float32, and those of the same graphs in float64, by the reference that ONNX gives
of its operators.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from evidence import Row, run
from torch import nn

import intaglio
from intaglio.runtime.interpreter import COLUMNS, Interpreter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from in_double import in_double

Array = npt.NDArray[Any]
LEAST = 10.0
BY_GRAPH = "by the graph: more outputs than columns"
SIZE = 1024  # of the product that says what the machine can do


def classifier() -> nn.Module:
    """Of 16 x 16 pictures, ten classes."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 10),
    )  # fmt: skip


def vgg() -> nn.Module:
    """VGG-16 with batch norms on 32 x 32 pictures, ten classes, its two wide layers kept."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def pictures() -> nn.Module:
    """From 16 x 16 pictures to such."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 3, 3, padding=1),
    )  # fmt: skip


NETWORKS = {
    "a classifier of 16 x 16 pictures": (classifier, 16, 50),
    "a VGG-16 of 32 x 32 pictures, 34M parameters": (vgg, 32, 3),
    "from pictures to pictures of 16 x 16": (pictures, 16, 20),
}
"""How each is built, the side of its pictures, and how often it is timed.

Of the second, where products are all that counts, ten rows cost as much as ten columns, so that
64 : 10 by the rate that a column alone leaves free is the most that a first call can gain.
"""


def measure(quick: bool) -> list[Row]:
    """The identities, and the speeds."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, (build, side, count)) in enumerate(NETWORKS.items()):
            if quick and build is vgg:
                continue
            torch.manual_seed(0)
            out = Path(folder) / str(index)
            module = build().eval()
            intaglio.export(
                module,
                out,
                inputs=(torch.randn(2, 3, side, side),),
                axes={"input": f"batchx3x{side}x{side}"},
                passes=["linear-interpreter"],
            )
            found = Interpreter.load(out, threads=1)
            x = np.random.default_rng(0).standard_normal((3, side, side)).astype(np.float32)
            rows += [*(held(found, out, x) if build is classifier else ())]
            share = reached(name, found, x, count, operations(module, x))
            fewest = min(COLUMNS, int(found.record(x).size))
            most = COLUMNS / fewest / share.value
            rows += [*speeds(name, found, x, count, most), share]
            rows.append(
                Row(name=f"{name}: {COLUMNS} columns in one call, at most", value=most,
                    unit="times", note=f"{fewest} products at the rate of a large one")
            )  # fmt: skip
    return rows


def held(found: Interpreter, bundle: Path, x: Array) -> list[Row]:
    """Rows of the identities."""
    y = found.record(x)
    rows = found.rows(range(10)).reshape(10, -1)
    parts = [found.columns(range(at, at + 8)) for at in range(0, x.size, 8)]  # by the graph
    columns = np.concatenate(parts).reshape(x.size, -1).T
    sums = float(np.abs(rows @ x.ravel() + found.bias - y).max() / np.abs(y).max())
    apart = float(np.abs(rows - columns).max() / np.abs(rows).max())
    share = float(np.linalg.norm(found.bias) / np.linalg.norm(y))
    return [
        Row(name="W x0 + r against y0", value=sums, unit="of the largest", target="<= 1e-5",
            holds=sums <= 1e-5),
        Row(name="rows against columns", value=apart, unit="of the largest", target="<= 1e-5",
            holds=apart <= 1e-5),
        *(Row(name=f"{name}, float64", value=error, unit="of the largest", target="<= 1e-10",
              holds=error <= 1e-10) for name, error in identities(bundle).items()),
        Row(name="length of the bias term", value=share, unit="of the output's"),
    ]  # fmt: skip


def speeds(name: str, found: Interpreter, x: Array, count: int, most: float) -> Iterator[Row]:
    """Rows of 64 columns apart beside one call: the first after a recording, and a further one.

    `most` is what the arithmetic of the machine allows the first of them.
    """
    y = found.record(x)
    many = np.random.default_rng(1).standard_normal((COLUMNS, *x.shape)).astype(np.float32)
    shorter = y.size < COLUMNS
    times: dict[str, list[float]] = {"recorded": [], "first": [], "further": [], "apart": []}

    def timed(what: str, call: Callable[[], Array]) -> Array:
        start = time.thread_time()
        made = call()
        times[what].append(time.thread_time() - start)
        return made

    for _ in range(count + 1):
        timed("recorded", lambda: found.record(x))
        together = timed("first", lambda: found.replay(many))
        timed("further", lambda: found.replay(many))
        apart = timed("apart", lambda: np.concatenate([found.replay(each[None]) for each in many]))
    error = float(np.abs(apart - together).max() / np.abs(together).max())
    yield Row(name=f"{name}: columns in one call against apart", value=error,
              unit="of the largest", target="<= 1e-5", holds=error <= 1e-5)  # fmt: skip
    recorded, first, further, alone = (np.array(each[1:]) for each in times.values())
    anew = (alone + COLUMNS * recorded, recorded + first)
    for what, (one, other) in {
        "columns apart : in one call": (alone, first),
        "columns apart : in a further call": (alone, further),
        "columns, each recorded anew : recorded once, in one call": anew,
    }.items():
        speed = float(np.median(one / other))
        asked = other is first
        missed = f"the machine allows {most:.1f} at most" if asked and most < LEAST else ""
        yield Row(
            name=f"{name}: {COLUMNS} {what}",
            value=speed,
            unit="times",
            target=f">= {LEAST:.0f}" if asked else None,
            holds=speed >= LEAST if asked else None,
            against="time of the thread",
            note="; ".join(filter(None, ("" if shorter else BY_GRAPH, missed))),
        )


def operations(module: nn.Module, x: Array) -> int:
    """Multiplications and additions of the products that a column goes through."""
    found = []

    def note(layer: nn.Module, _: Any, made: torch.Tensor) -> None:
        assert isinstance(layer.weight, torch.Tensor)
        found.append(2 * layer.weight[0].numel() * made.numel())

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(note)
    with torch.no_grad():
        module(torch.from_numpy(x)[None])
    return sum(found)


def reached(name: str, found: Interpreter, x: Array, count: int, work: int) -> Row:
    """What one column alone reaches of the rate of a large product, in turns with it."""
    found.record(x)
    matrix = np.random.default_rng(2).standard_normal((SIZE, SIZE)).astype(np.float32)
    shares = []
    for _ in range(count + 1):
        start = time.thread_time()
        for _ in range(COLUMNS):
            found.replay(x[None])
        middle = time.thread_time()
        torch.from_numpy(matrix) @ torch.from_numpy(matrix)
        spent = (middle - start) / COLUMNS, time.thread_time() - middle
        shares.append(work / spent[0] / (2 * SIZE**3 / spent[1]))
    return Row(
        name=f"{name}: rate of one column alone : of a product of {SIZE} x {SIZE}",
        value=float(np.median(shares[1:])), unit="", against="time of the thread",
        note=f"{work:,} operations",
    )  # fmt: skip


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
