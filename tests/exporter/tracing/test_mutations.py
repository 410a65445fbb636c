"""Buffers that forward writes: left out with a note, or refused by name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from intaglio.errors import SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.capture import capture
from intaglio.exporter.tracing.mutations import idle_buffers
from intaglio.exporter.tracing.trace import trace

Write = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, write: Write) -> None:
        super().__init__()
        self._write = write
        self.mix = nn.Linear(3, 3)
        self.register_buffer("kept", torch.zeros(3))
        self.kept: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self._write(self, self.mix(x))


def count(net: Net, x: Tensor) -> Tensor:
    net.kept += 1
    return x


def average(net: Net, x: Tensor) -> Tensor:
    y = x - net.kept
    net.kept.mul_(0.9).add_(1)
    return y


def average_of_a_view(net: Net, x: Tensor) -> Tensor:
    y = x - net.kept
    net.kept[:2].view(2).mul_(0.9).add_(1)
    return y


def traced(write: Write) -> tuple[str, ...]:
    torch.set_num_threads(1)
    return trace(load_source(Net(write), inputs={"x": torch.randn(2, 4, 3)})).notes


def test_a_buffer_that_is_only_written_is_left_out_with_a_note() -> None:
    assert "The buffer kept is written by each call, but no output depends on it: left out." in (
        traced(count)
    )


@pytest.mark.parametrize("write", [average, average_of_a_view])
def test_a_buffer_on_which_later_calls_depend_is_refused_by_name(write: Write) -> None:
    """With what to do instead."""
    with pytest.raises(SourceError, match=r"writes self\.kept once in each call.*self\.training"):
        traced(write)


def test_intermediate_results_may_be_written_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a second decomposition of the program, which takes as long as its conversion."""

    def in_place(_net: Net, x: Tensor) -> Tensor:
        y = x * 2
        y[..., :1] += 1
        return y

    monkeypatch.setattr(ExportedProgram, "run_decompositions", None)
    program, _ = capture(load_source(Net(in_place), inputs={"x": torch.randn(2, 4, 3)}))
    assert idle_buffers(program) == []
