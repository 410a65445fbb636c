"""Cells and graphs that carry their own states: each beside PyTorch over 500 steps.

    python benchmarks/cells.py [--quick] [--json]

Each row is exported with its example inputs alone, or with the lines that its refusal asks for, and
its session takes random inputs step by step, beside the module with its states in hand.  The error
is the largest difference over the largest entry, of outputs and states over all steps; its target
is the limit of `intaglio verify` for fp32.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import Row, run
from torch import Tensor, nn

from intaglio.exporter.export import export
from intaglio.exporter.sources.outputs import leaves
from intaglio.runtime import Session

STEPS, QUICK, ROWS = 500, 60, 3
LIMIT = 1e-4
Make = Callable[[], tuple[nn.Module, dict[str, Any]]]


class Step(nn.Module):
    """A module whose forward is a function of itself; further modules by name."""

    def __init__(self, call: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            self.add_module(name, part)


class Cell(Step):
    """Of an input and a state."""

    def forward(self, x: Tensor, h: Any) -> Any:
        """One step from `h`."""
        return self.call(self, x, h)


class Two(Step):
    """Of an input and two states."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        """One step from `h` and `c`."""
        return self.call(self, x, h, c)


class Kept(nn.Module):
    """A policy that keeps its hidden state in itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 16), nn.Linear(16, 4)
        self.h: Tensor | None = None

    def reset(self) -> None:
        """Forget what was seen."""
        self.h = None

    def forward(self, x: Tensor) -> Tensor:
        """One step."""
        if self.h is None:
            self.h = x.new_zeros(x.shape[0], 16)
        self.h = self.cell(x, self.h)
        found: Tensor = self.head(self.h)
        return found


class Normalized(nn.Module):
    """Observations by a running mean and variance of each row, in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 8))
        self.register_buffer("var", torch.ones(1, 8))
        self.mean: Tensor
        self.var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """One step."""
        self.mean = 0.95 * self.mean + 0.05 * x
        self.var = 0.95 * self.var + 0.05 * (x - self.mean) ** 2
        return (x - self.mean) / (self.var + 1e-3).sqrt()


def _lstm(module: Any, x: Tensor, h: Any) -> Any:
    y, state = module.lstm(x[None], h)
    return module.head(y[0]), state


def _conv_lstm(module: Any, x: Tensor, h: Tensor, c: Tensor) -> Any:
    i, f, g, o = module.conv(torch.cat((x, h), 1)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return module.head(h.mean((2, 3))), h, c


def _gated(module: Any, x: Tensor, h: Tensor) -> Any:
    gate = module.gate(x).sigmoid()
    h = gate * h + (1 - gate) * module.write(x)
    return h.tanh(), h


def _window(module: Any, x: Tensor, h: Tensor) -> Any:
    window = torch.cat((h, x[:, None]), 1)
    weights = (window @ window[:, -1:].mT).softmax(1)
    new_h = window[:, 1:]
    return module.head((weights * window).sum(1)), new_h


def _tcn(module: Any, x: Tensor, h: dict[str, Tensor]) -> Any:
    first = torch.cat((h["low"], x[..., None]), -1)
    y = module.low(first).relu()
    second = torch.cat((h["high"], y), -1)
    return module.high(second)[..., 0], {"low": first[..., 1:], "high": second[..., 1:]}


def _ssm(module: Any, x: Tensor, h: Tensor) -> Any:
    h = module.decay.weight.sigmoid() * h + module.into(x)[:, :, None]
    return (h * module.out.weight).sum(2), h


def _delta(module: Any, x: Tensor, h: Tensor) -> Any:
    q, k, v, beta = module.project(x).split((8, 8, 8, 1), 1)
    k = nn.functional.normalize(k, dim=1)
    h = h + beta.sigmoid()[:, None] * k[:, :, None] * (v - (h.mT @ k[..., None])[..., 0])[:, None]
    return (q[:, None] @ h)[:, 0], h


def _count(module: Any, x: Tensor, h: Tensor, c: Tensor) -> Any:
    c = c + 1
    h = h + (x - h) / c[:, None]
    return module.head(x - h), h, c


def _ring(module: Any, x: Tensor, h: Tensor, c: Tensor) -> Any:
    place = torch.arange(6) == c[:, None]
    h = torch.where(place[..., None], x[:, None], h)
    return module.head(h.mean(1)), h, (c + 1) % 6


def _list(module: Any, x: Tensor, h: list[Tensor]) -> Any:
    new = []
    for cell, each in zip(module.cells, h, strict=True):
        x = cell(x, each)
        new.append(x)
    return module.head(x), new


def _gru(module: Any, x: Tensor, h: Tensor) -> Any:
    y, hn = module.gru(x, h)
    return module.head(y), hn


def _streaming(module: Any, x: Tensor, h: Tensor) -> Any:
    frames = torch.cat((h, x), -1)
    return module.conv(frames), frames[..., -4:]


def _x(*shape: int) -> Tensor:
    return torch.randn(2, *shape)


def _z(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@dataclass(frozen=True)
class Entry:
    """A cell, its example inputs, and the options of its export."""

    name: str
    make: Make
    options: dict[str, Any] = field(default_factory=dict)


def _linear(out: int = 4, size: int = 8) -> nn.Linear:
    return nn.Linear(size, out)


CELLS = (
    Entry("gated cell", lambda: (Cell(_gated, gate=_linear(8), write=_linear(8)),
                               {"x": _x(8), "h": _z(2, 8)}), {"states": {"h": "output_1"}}),
    Entry("torch.nn.GRUCell", lambda: (nn.GRUCell(8, 6), {"input": _x(8), "hx": _z(2, 6)})),
    Entry("torch.nn.RNNCell", lambda: (nn.RNNCell(8, 6), {"input": _x(8), "hx": _z(2, 6)})),
    Entry("torch.nn.LSTMCell", lambda: (nn.LSTMCell(8, 6),
                                      {"input": _x(8), "hx": (_z(2, 6), _z(2, 6))})),
    Entry("policy, LSTM of two layers", lambda: (
        Cell(_lstm, lstm=nn.LSTM(8, 16, 2), head=_linear(4, 16)),
        {"x": _x(8), "h": (_z(2, 2, 16), _z(2, 2, 16))})),
    Entry("policy, projected LSTM", lambda: (
        Cell(_lstm, lstm=nn.LSTM(8, 16, proj_size=5), head=_linear(4, 5)),
        {"x": _x(8), "h": (_z(1, 2, 5), _z(1, 2, 16))})),
    Entry("GRU over time, state in and out", lambda: (
        Cell(_gru, gru=nn.GRU(8, 16, 2, batch_first=True), head=_linear(4, 16)),
        {"x": _x(5, 8), "h": _z(2, 2, 16)}), {"states": {"h": "output_1"}}),
    Entry("stack of cells, states in a list", lambda: (
        Cell(_list, cells=nn.ModuleList(nn.GRUCell(8, 8) for _ in range(3)), head=_linear()),
        {"x": _x(8), "h": [_z(2, 8) for _ in range(3)]})),
    Entry("ConvLSTM on frames", lambda: (
        Two(_conv_lstm, conv=nn.Conv2d(7, 16, 3, padding=1), head=nn.Linear(4, 2)),
        {"x": _x(3, 8, 8), "h": _z(2, 4, 8, 8), "c": _z(2, 4, 8, 8)}),
        {"states": {"h": "output_1", "c": "output_2"}}),
    Entry("streaming convolution with its cache", lambda: (
        Cell(_streaming, conv=nn.Conv1d(8, 8, 5)), {"x": _x(8, 16), "h": _z(2, 8, 4)})),
    Entry("two streaming convolutions, a dict", lambda: (
        Cell(_tcn, low=nn.Conv1d(8, 6, 3), high=nn.Conv1d(6, 4, 4)),
        {"x": _x(8), "h": {"low": _z(2, 8, 2), "high": _z(2, 6, 3)}})),
    Entry("attention over the last 7", lambda: (
        Cell(_window, head=_linear()), {"x": _x(8), "h": _z(2, 7, 8)})),
    Entry("diagonal state space", lambda: (
        Cell(_ssm, decay=nn.Linear(4, 8), into=_linear(8), out=nn.Linear(4, 8)),
        {"x": _x(8), "h": _z(2, 8, 4)})),
    Entry("delta rule, matrix state", lambda: (
        Cell(_delta, project=nn.Linear(8, 25)), {"x": _x(8), "h": _z(2, 8, 8)})),
    Entry("mean with an integer counter", lambda: (
        Two(_count, head=_linear()),
        {"x": _x(8), "h": _z(2, 8), "c": _z(2, dtype=torch.int64)}),
        {"states": {"h": "output_1", "c": "output_2"}}),
    Entry("ring buffer with a write index", lambda: (
        Two(_ring, head=_linear()),
        {"x": _x(8), "h": _z(2, 6, 8), "c": _z(2, dtype=torch.int64)})),
    Entry("policy that keeps its state", lambda: (Kept(), {"x": _x(8)})),
    Entry("running mean and variance in buffers", lambda: (Normalized(), {"x": _x(8)})),
)  # fmt: skip


def error_of(row: Entry, folder: Path, steps: int) -> float:
    """The largest error of outputs and states over `steps` steps of a fresh session."""
    torch.manual_seed(0)
    module, inputs = row.make()
    report = export(module.eval(), folder / "bundle", inputs=inputs, steps=steps, **row.options)
    session = Session.load(folder / "bundle")
    entry = report.manifest.main
    carried: dict[str, Any] = {
        name: _rows(value) for name, value in inputs.items() if not isinstance(value, Tensor)
        or name not in {spec.name for spec in entry.inputs}
    }  # fmt: skip
    own = {spec.name: spec for spec in entry.inputs}
    largest: dict[str, tuple[float, float]] = {}
    for step in range(steps):
        torch.manual_seed(step)
        given = {n: torch.randn(ROWS, *_one(own[n].shape)) for n in own}
        with torch.no_grad():
            wanted = [x for _, x in leaves(module(**given, **carried))]
        found = session.step({name: value.numpy() for name, value in given.items()})
        kept = list(session.state.save().arrays.values())
        outputs = list(found.values())
        states = wanted[len(wanted) - len(kept) :] if carried else []
        pairs = [*zip(outputs, wanted, strict=False), *zip(kept, states, strict=False)]
        for place, (got, right) in enumerate(pairs):
            difference = float(np.abs(got.astype(float) - right.numpy()).max())
            before = largest.get(str(place), (0.0, 0.0))
            size = float(right.double().abs().max())
            largest[str(place)] = (max(before[0], difference), max(before[1], size))
        carried = _next(carried, states)
    return max(difference / max(size, 1e-30) for difference, size in largest.values())


def _one(shape: tuple[int | str, ...]) -> list[int]:
    """The sizes behind the rows: one entry of time."""
    return [dim if isinstance(dim, int) else 1 for dim in shape[1:]]


def _rows(value: Any) -> Any:
    """Zeros for the rows of the trial, nested as the example: rows are its axis of size 2."""
    if isinstance(value, dict):
        return {name: _rows(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_rows(entry) for entry in value)
    axis = 1 if value.ndim == 3 and value.shape[1] == 2 else 0  # of the layers of torch.nn
    shape = [ROWS if place == axis else size for place, size in enumerate(value.shape)]
    return torch.zeros(shape, dtype=value.dtype)


def _next(carried: dict[str, Any], states: list[Tensor]) -> dict[str, Any]:
    """The states of the next step, nested as those before."""
    flat = iter(states)

    def build(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: build(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(build(entry) for entry in value)
        return next(flat)

    return {name: build(value) for name, value in carried.items()}


def measure(quick: bool) -> list[Row]:
    """Errors of all cells."""
    torch.set_num_threads(1)
    steps, rows = QUICK if quick else STEPS, []
    for entry in CELLS:
        with tempfile.TemporaryDirectory() as folder:
            error = error_of(entry, Path(folder), steps)
        rows.append(
            Row(
                name=entry.name,
                value=error,
                unit="relative error",
                target=f"<= {LIMIT:.0e}",
                holds=error <= LIMIT,
                against="torch, float32",
                note=f"{steps} steps of {ROWS} rows, outputs and states",
            )
        )
    return rows


if __name__ == "__main__":
    run(__doc__, measure)
