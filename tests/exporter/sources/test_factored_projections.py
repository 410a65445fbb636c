"""Two factors of a file take the place of the layer that they are, and nothing else does."""

from pathlib import Path

import pytest
import torch
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.factored_projections import factored
from intaglio.exporter.sources.state_dict import load_weights


def module() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8, bias=False))


def test_two_factors_take_the_place_of_a_layer() -> None:
    """With the bias of the second, and on the device that the layer is on."""
    whole = module()
    first, second = torch.randn(2, 6), torch.randn(8, 2)
    tensors = {
        "0.0.weight": first,
        "0.1.weight": second,
        "0.1.bias": torch.randn(8),
        "1.weight": torch.randn(8, 8),
    }
    assert factored(whole, tensors) == ["0"]
    load_weights(whole, tensors, Path("file"))
    x = torch.randn(3, 6)
    expected = (x @ first.T @ second.T + tensors["0.1.bias"]) @ tensors["1.weight"].T
    torch.testing.assert_close(whole(x), expected)
    with torch.device("meta"):
        shape = module()
    factored(shape, tensors)
    assert all(parameter.is_meta for parameter in shape.parameters())


@pytest.mark.parametrize(
    ("first", "second"), [((2, 5), (8, 2)), ((2, 6), (7, 2)), ((3, 6), (8, 2)), ((6,), (8, 2))]
)
def test_factors_of_another_layer_are_unexpected(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    """They are named as the file names them."""
    whole = module()
    tensors = {
        "0.0.weight": torch.zeros(first),
        "0.1.weight": torch.zeros(second),
        "0.1.bias": torch.zeros(8),
        "1.weight": torch.zeros(8, 8),
    }
    assert factored(whole, tensors) == []
    with pytest.raises(SourceError, match=r"Unexpected in the file[^$]*0\.0\.weight"):
        load_weights(whole, tensors, Path("file"))
