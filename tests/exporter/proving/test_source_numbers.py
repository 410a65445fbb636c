"""A source tells the numbers at which it may behave otherwise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from intaglio.exporter.proving.source_numbers import source_numbers
from intaglio.exporter.sources.load import load_source

Make = Callable[[Tensor, Tensor], Tensor]


class Masked(nn.Module):
    """Sums what `make` allows, of positions [T] and ids [B, T]."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.embed, self.make = nn.Embedding(64, 4), make

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        kept = self.make(torch.arange(x.shape[1]), input_ids).to(x.dtype)
        result: Tensor = x * kept[..., None] / (x.square().mean(-1, keepdim=True) + 1e-5)
        return result


TABLE = torch.ones(777)

PLACES: dict[str, tuple[Make, int]] = {
    "compared": (lambda i, _: i < 600, 600),
    "in seconds": (lambda i, _: i * 0.002 <= 1.2, 600),
    "in chunks": (lambda i, _: torch.floor(i * (1 / 600)), 600),
    "divided": (lambda i, _: i // 600, 600),
    "modulo": (lambda i, _: i % 600, 600),
    "looked up": (lambda i, _: TABLE[: len(i)], 777),
}


@pytest.mark.parametrize("place", PLACES)
def test_numbers_that_positions_meet_are_found(place: str) -> None:
    make, number = PLACES[place]
    found = source_numbers(load_source(Masked(make)))

    assert number in found.positions
    assert all(n < 10_000 for n in found.positions)  # what data meets, as 1e-5, does not count


def test_numbers_of_a_program_are_found_as_well() -> None:
    module = Masked(lambda i, _: i < 600).eval()
    free = {"input_ids": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    ids = {"input_ids": torch.zeros(2, 7, dtype=torch.long)}
    program = torch.export.export(module, (), ids, dynamic_shapes=free, strict=False)

    assert 600 in source_numbers(load_source(program)).positions


def test_values_that_ids_are_compared_with_are_found() -> None:
    found = source_numbers(load_source(Masked(lambda _, ids: ids != 17)))

    assert found.values == {"input_ids": frozenset({16, 17, 18})}
