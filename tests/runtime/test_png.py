"""Pictures as PNG files: what a decoder written here reads of them is what was given."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from intaglio.errors import InputError
from intaglio.runtime.png import GAP, encode, write


def decoded(data: bytes) -> np.ndarray:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        (check,) = struct.unpack(">I", data[at + 8 + size : at + 12 + size])
        assert check == zlib.crc32(kind + content)
        parts[kind], at = content, at + 12 + size
    assert list(parts) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, kind, *others = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert (depth, *others) == (8, 0, 0, 0)
    channels = {0: 1, 2: 3}[kind]
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_what_is_read(channels: int) -> None:
    """Grey and coloured pictures of odd sizes."""
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(encode(image)), image)


def test_several_pictures_stand_beside_each_other(tmp_path: Path) -> None:
    """Values beyond 0 and 1 are cut; a white gap lies between."""
    images = np.stack([np.full((3, 2, 4), -1.0), np.full((3, 2, 4), 2.0)])
    write(tmp_path / "p.png", images)
    found = decoded((tmp_path / "p.png").read_bytes())
    assert found.shape == (2, 8 + GAP, 3)
    assert not found[:, :4].any()
    assert (found[:, 4:] == 255).all()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 4, 5, 5)), r"shape \[2, 4, 5, 5\]; pictures have"),
        (np.zeros((3, 5)), "pictures have"),
        (np.full((1, 3, 2, 2), np.nan), "no numbers"),
    ],
)
def test_what_is_no_picture_is_told(images: np.ndarray, said: str, tmp_path: Path) -> None:
    """And nothing is written."""
    with pytest.raises(InputError, match=said):
        write(tmp_path / "p.png", images)
    assert not list(tmp_path.iterdir())
