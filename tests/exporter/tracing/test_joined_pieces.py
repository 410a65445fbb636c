"""Writes to pieces of a tensor, and rolls, are joins of pieces that give the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from intaglio.exporter.tracing.joined_pieces import join_pieces

ATEN = torch.ops.aten
SCATTERS = (ATEN.slice_scatter.default, ATEN.select_scatter.default, ATEN.roll.default)


class Pieces(nn.Module):
    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._made = made

    def forward(self, x: Tensor) -> Tensor:
        return self._made(x)


def in_front(x: Tensor) -> Tensor:
    return torch.slice_scatter(x, x[:, :-2] * 2, 1, 2)


def at_the_end(x: Tensor) -> Tensor:
    return torch.slice_scatter(x, x[:, :2] * 2, 1, -2)


def between(x: Tensor) -> Tensor:
    return torch.slice_scatter(x, x[:, 1:3] * 2, 1, 2, 4)


def of_channels(x: Tensor) -> Tensor:
    return torch.slice_scatter(x, x[..., :2] * 2, -1, 1, 3)


def the_first(x: Tensor) -> Tensor:
    return torch.select_scatter(x, x[:, -1], 1, 0)


def rolled(x: Tensor) -> Tensor:
    return x.roll(3, 1)


def rolled_and_cut(x: Tensor) -> Tensor:
    return torch.cat((x[:, :2] * 0, x.roll(2, -2)[:, 2:]), 1)


def to_what_is_left(x: Tensor) -> Tensor:
    """From one end to the other: what is written is perhaps nothing."""
    return torch.slice_scatter(x, x[:, 2:-1] * 2, 1, 2, -1)


def every_second(x: Tensor) -> Tensor:
    return torch.slice_scatter(x, x[:, ::2] * 2, 1, 0, None, 2)


def of_groups(x: Tensor) -> Tensor:
    """As what is interleaved is written: every third of three times as many, in turn."""
    whole = torch.cat((x, x, x), 1)
    for place in range(3):
        whole = torch.slice_scatter(whole, x * (2 + place), 1, place, None, 3)
    return whole


def beyond_a_group(x: Tensor) -> Tensor:
    whole = torch.cat((x, x), 1)
    return torch.slice_scatter(whole, whole[:, 2::2] * 2, 1, 2, None, 2)


def backwards(x: Tensor) -> Tensor:
    return x.roll(-1, 1)


@pytest.mark.parametrize(
    ("made", "joins"),
    [
        *((each, True) for each in (in_front, at_the_end, between, of_channels)),
        *((each, True) for each in (the_first, rolled, rolled_and_cut, of_groups)),
        *((each, False) for each in (to_what_is_left, every_second, beyond_a_group, backwards)),
    ],
)
def test_pieces_are_joined(made: Callable[[Tensor], Tensor], joins: bool) -> None:
    torch.manual_seed(0)
    free = {"x": {1: torch.export.Dim("time", min=6)}}
    program = torch.export.export(Pieces(made), (torch.randn(2, 7, 4),), dynamic_shapes=free)

    join_pieces(program)

    left = [node for node in program.graph.nodes if node.target in SCATTERS]
    assert bool(left) is not joins
    for time in (6, 7, 11):
        x = torch.randn(2, time, 4)
        torch.testing.assert_close(program.module()(x), made(x))


def test_what_is_rolled_in_is_gone_where_it_is_cut_off() -> None:
    free = {"x": {1: torch.export.Dim("time", min=6)}}
    module = Pieces(rolled_and_cut)
    program = torch.export.export(module, (torch.randn(2, 7, 4),), dynamic_shapes=free)

    join_pieces(program)

    joins = [node for node in program.graph.nodes if node.target is ATEN.cat.default]
    assert len(joins) == 1


def test_what_is_returned_keeps_its_name() -> None:
    """A whole slice is another name of what it is of."""
    free = {"x": {1: torch.export.Dim("time", min=6)}}
    module = Pieces(lambda x: x[:])
    program = torch.export.export(module, (torch.randn(2, 7, 4),), dynamic_shapes=free)
    (returned,) = program.graph_signature.user_outputs

    join_pieces(program)

    assert str(next(iter(reversed(program.graph.nodes))).args[0]) == f"({returned},)"
