"""Pictures are read and written as arrays of channels."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intaglio.errors import InputError
from intaglio.report.pictures import read_picture, write_picture


def test_colours_are_channels_and_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", (3, 2, 3))
    np.testing.assert_allclose(found, pixels.transpose(2, 0, 1) / 255, atol=1e-6)
    np.save(tmp_path / "a.npy", np.full((5,), 7.0))
    assert read_picture(tmp_path / "a.npy", (5,)).tolist() == [7.0] * 5


def test_zero_is_grey_and_the_largest_weight_is_full(tmp_path: Path) -> None:
    write_picture(tmp_path / "w.png", np.array([[[0.0, -2.0, 1.0]]]))
    with Image.open(tmp_path / "w.png") as image:
        assert np.asarray(image).tolist() == [[128, 0, 191]]


def test_what_is_no_picture_of_the_size_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_picture(tmp_path / "a.png", (3, 2, 2))
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"has the shape \[3\]; the bundle takes \[4\]"):
        read_picture(tmp_path / "b.npy", (4,))
    with pytest.raises(InputError, match=r"The bundle takes \[4\], which is no picture"):
        read_picture(tmp_path / "a.png", (4,))


def test_what_is_read_takes_no_more_than_the_bundle_does(tmp_path: Path) -> None:
    """A pipe never ends, a header promises terabytes, a small file is a picture of gigabytes."""
    for name in ("a.png", "a.npy"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="ordinary file"):
            read_picture(tmp_path / name, (3, 2, 2))
    promise = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        promise, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    )
    (tmp_path / "b.npy").write_bytes(promise.getvalue())
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    for name, said in {
        "b.npy": "says that it has the shape",
        "text.npy": "no numbers",
        "large.png": r"decompression bomb|has the shape \[3, 20000, 20000\]",
    }.items():
        with pytest.raises(InputError, match=said):
            read_picture(tmp_path / name, (3, 2, 2))
