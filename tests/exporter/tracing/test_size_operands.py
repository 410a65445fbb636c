"""A remainder by a free size is exported for whole numbers, as places in a picture are told."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import intaglio
from intaglio.runtime.session import Session


class Peaks(nn.Module):
    """Row and column of the largest entries, and what is left of a size."""

    def forward(self, heat: Tensor) -> tuple[Tensor, Tensor]:
        width = heat.shape[2]
        place = heat.flatten(1).topk(3).indices
        row = torch.div(place, width, rounding_mode="floor")
        return torch.stack((row, place % width), -1), width % (place + 1) - (place - 9) % width


def test_places_are_rows_and_columns(tmp_path: Path) -> None:
    axes = {"heat": "batchxheightxwidth"}
    intaglio.export(Peaks(), tmp_path / "b", inputs={"heat": torch.randn(2, 4, 5)}, axes=axes)
    session = Session.load(tmp_path / "b")
    for size in ((1, 2, 2), (3, 7, 6)):
        heat = torch.randn(size)
        for got, wanted in zip(
            session.step({"heat": heat.numpy()}).values(), Peaks()(heat), strict=True
        ):
            np.testing.assert_array_equal(got, wanted.numpy())
