"""Buffers that forward writes: left out with a note, or refused by name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import TraceError
from intaglio.exporter.load import load_source
from intaglio.exporter.trace import trace

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


def traced(write: Write) -> tuple[str, ...]:
    torch.set_num_threads(1)
    return trace(load_source(Net(write), inputs={"x": torch.randn(2, 4, 3)})).notes


def test_a_buffer_that_is_only_written_is_left_out_with_a_note() -> None:
    assert "The buffer kept is written by each call, but no output depends on it: left out." in (
        traced(count)
    )


def test_a_buffer_on_which_later_calls_depend_is_refused_by_name() -> None:
    """With what to do instead."""
    with pytest.raises(TraceError, match=r"buffer 'kept' is written .*self\.training"):
        traced(average)
