"""A folder of pictures as the rows of a vision model's input, and as what a pass learns from."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from intaglio.errors import InputError
from intaglio.exporter.export import export
from intaglio.exporter.sources.calibration_data import read_calibration
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source

SIDE = 8


class Net(nn.Module):
    """Colours of every place, and their mean through a layer."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(channels, 4)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.head(image.float().mean((2, 3)))
        return found


def source(
    shape: Sequence[int] = (2, 3, SIDE, SIDE),
    axes: str = f"image:batchx3x{SIDE}x{SIDE}",
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> Source:
    image = (255 * torch.rand(*shape)).to(dtype)
    return load_source(
        Net(shape[1]), inputs={"image": image}, axes=[axes], whole=True, **options  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in folders of classes, wider than high, red on the left and right of green."""
    for index in range(9):
        pixels = np.zeros((16, 24, 3), np.uint8)
        pixels[..., 0] = 255
        pixels[:, 4:20] = (0, 51 + index, 0)
        (tmp_path / "pictures" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / "ab"[index % 2] / f"{index}.png")
    return tmp_path / "pictures"


def test_the_middle_is_scaled_and_normalised(folder: Path) -> None:
    """What is left of the middle square is green, and no red is mixed into it."""
    found = read_calibration(folder, source(pixels="mean=[0.2,0.2,0],std=[0.5,0.1,1]"))
    rows = np.concatenate([batch.inputs["image"] for batch in found.batches])

    assert rows.shape == (9, 3, SIDE, SIDE)
    assert rows.dtype == np.float32
    assert len(found.held_out) == 1
    middle = rows[..., 2:-2, 2:-2]
    np.testing.assert_allclose(middle[:, 0], -0.4, atol=1e-6)
    np.testing.assert_allclose(middle[0, 1], (51 / 255 - 0.2) / 0.1, atol=1e-5)
    np.testing.assert_allclose(middle[:, 2], 0, atol=1e-6)
    assert "9 pictures" in found.notes[0]
    assert "imagenet" not in found.notes[0]


def test_crop_pct_leaves_the_edge_out(folder: Path) -> None:
    """At 1 the middle square reaches the red, at half it does not."""
    for share, red in ((1.0, True), (0.5, False)):
        Image.open(folder / "a/0.png").resize((12, 16)).save(folder / "a/0.png")
        found = read_calibration(folder / "a/0.png", source(pixels=f"crop_pct={share}"))
        assert (found.batches[0].inputs["image"][0, 0] > 0.5).any() == red


def test_free_sizes_are_those_of_the_example_and_integers_are_pixels(folder: Path) -> None:
    free = source(axes="image:batchx3xheightxwidth", dtype=torch.uint8)
    found = read_calibration(folder / "a/0.png", free)
    (batch,) = found.batches
    assert batch.inputs["image"].dtype == np.uint8
    assert batch.inputs["image"].shape == (1, 3, SIDE, SIDE)
    assert batch.inputs["image"][0, :, 4, 4].tolist() == [0, 51, 0]


def test_a_fixed_batch_is_filled_or_refused(folder: Path) -> None:
    fixed = source(axes=f"image:2x3x{SIDE}x{SIDE}")
    found = read_calibration(folder, fixed)
    assert [len(batch.inputs["image"]) for batch in found.batches] == [2] * 4
    with pytest.raises(InputError, match="has 1 pictures; the model takes 2 at once"):
        read_calibration(folder / "a/0.png", fixed)


def test_grey_pictures_are_told_and_others_refused_by_name(folder: Path) -> None:
    Image.new("L", (9, 9), 3).save(folder / "a" / "grey.png")
    found = read_calibration(folder, source())
    assert "imagenet" in found.notes[0]  # nobody said what pixels become
    assert f"1 of them are grey: {folder}/a/grey.png" in found.notes[1]
    (folder / "b" / "notes.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"notes\.jpg cannot be read as a picture"):
        read_calibration(folder, source())


def test_what_takes_no_picture_says_what_it_takes(folder: Path) -> None:
    five = source((2, 5, SIDE, SIDE), f"image:batchx5x{SIDE}x{SIDE}")
    with pytest.raises(
        InputError, match=r"takes 'image' \[\d, 5, 8, 8\], which is not one picture"
    ):
        read_calibration(folder, five)
    grey = source((2, 1, SIDE, SIDE), f"image:batchx1x{SIDE}x{SIDE}", pixels="imagenet")
    with pytest.raises(InputError, match="mean of pixels has 3 numbers; the input 'image' has 1"):
        read_calibration(folder, grey)


def test_a_pass_learns_from_pictures_as_the_processor_beside_the_model_says(
    folder: Path, tmp_path: Path
) -> None:
    """The same bundle as from the arrays; its recipe repeats what was said, and a note."""
    torch.manual_seed(0)
    net, given = Net(), {"image": torch.rand(2, 3, SIDE, SIDE)}
    (tmp_path / "p.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.25]}))
    axes = {"image": f"batchx3x{SIDE}x{SIDE}"}
    how = {"inputs": given, "axes": axes, "whole": True, "passes": ["gptq:bits=4,group=-1"]}
    report = export(
        net, tmp_path / "a", calib=folder, pixels=tmp_path / "p.json", **how  # type: ignore[arg-type]
    )  # fmt: skip
    read = read_calibration(folder, load_source(net, inputs=given, axes=axes, whole=True,
                                                pixels={"mean": [0.5], "std": [0.25]}))  # fmt: skip
    rows = np.concatenate([batch.inputs["image"] for batch in read.batches])
    export(net, tmp_path / "b", calib={"image": rows}, **how)  # type: ignore[arg-type]
    first, second = ((tmp_path / name / "model.onnx").read_bytes() for name in "ab")
    assert first == second
    assert any("(pixel / 255 - [0.5]) / [0.25]" in note for note in report.notes)
    assert "mean = [0.5]" in (tmp_path / "a" / "recipe.toml").read_text()
