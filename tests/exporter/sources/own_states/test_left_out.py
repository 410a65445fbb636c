"""States that `forward` takes where they are given are carried, or the line to type is told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import OptionError
from intaglio.exporter.sources.load import load_source

X = torch.randn(2, 8)


class Policy(nn.Module):
    """One step of a cell, its state nested as it is called."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(8, size), nn.Linear(size, 4)


class Pair(Policy):
    """Of a state (h, c)."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        hx = self.cell(x, hx)
        return self.head(hx[0]), hx


class Two(Policy):
    """Of two states."""

    def forward(self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> Any:
        h, c = self.cell(x, None if h is None else (h, c))
        return self.head(h), h, c


class Named(Policy):
    """Of a state in a dict, and given back in one."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        h, c = self.cell(x, None if state is None else (state["h"], state["c"]))
        return {"y": self.head(h), "state": {"h": h, "c": c}}


class Wide(nn.Module):
    """Its result and its state look alike."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Any:
        y = self.cell(x, state)
        return self.head(y), y + 0


class Learned(Wide):
    """It starts from a parameter."""

    def forward(self, x: Tensor, h: Tensor | None = None) -> Any:
        h = self.cell(x, self.head.bias.expand(x.shape[0], -1) if h is None else h)
        return self.head(h), h


class Residual(Wide):
    """What it may be given is no state."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        y = self.head(x) + (0 if residual is None else residual)
        return y, y.tanh()


class Sequences(nn.Module):
    """All tokens in a call."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 4, batch_first=True)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Any:
        y, h = self.gru(x, h)
        return y, h


@pytest.mark.parametrize(
    ("make", "states"),
    [
        (Pair, {"hx_0": "output_1_0", "hx_1": "output_1_1"}),
        (Two, {"h": "output_1", "c": "output_2"}),
        (Named, {"state_h": "state_h_out", "state_c": "state_c_out"}),
    ],
)
def test_a_state_that_the_examples_leave_out_is_carried(
    make: Callable[[], nn.Module], states: dict[str, str]
) -> None:
    source = load_source(make(), inputs={"x": X})
    assert {state.input: state.output for state in source.states} == states
    assert {state.initial for state in source.states} == {0.0}


def test_what_cannot_be_told_is_asked_for() -> None:
    with pytest.raises(OptionError, match=r"Say it: --state state=output_0 or --state state=out"):
        load_source(Wide(), inputs={"x": X})
    (state,) = load_source(Wide(), inputs={"x": X}, states={"state": "output_1"}).states
    assert state.output == "output_1"
    with pytest.raises(OptionError, match=r"it from zeros.*--state h=output_1:INITIAL"):
        load_source(Learned(), inputs={"x": X})
    (state,) = load_source(Learned(), inputs={"x": X}, states={"h": "output_1:0.5"}).states
    assert state.initial == 0.5
    assert not load_source(Learned(), inputs={"x": X}, states={"none": ""}).states


@pytest.mark.parametrize(
    ("module", "x"), [(Residual(), X), (Sequences(), torch.randn(2, 5, 8))], ids=["other", "time"]
)
def test_other_arguments_and_sequences_are_left_alone(module: nn.Module, x: Tensor) -> None:
    assert not load_source(module, inputs={"x": x}).states
