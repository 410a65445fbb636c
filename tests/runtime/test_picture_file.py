"""Pictures of every mode become the channels that are asked for, or are refused by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intaglio.errors import InputError
from intaglio.runtime.picture_file import is_grey, open_picture

SIZE = (5, 4)


def saved(folder: Path, mode: str, colour: object = 0, name: str = "a.png") -> Path:
    Image.new(mode, SIZE, colour).save(folder / name)  # type: ignore[arg-type]
    return folder / name


def pixel(path: Path, channels: int) -> list[int]:
    first: list[int] = np.asarray(open_picture(path, channels)).reshape(20, channels)[0].tolist()
    return first


@pytest.mark.parametrize(
    ("mode", "colour", "channels", "found"),
    [
        ("L", 7, 3, [7, 7, 7]),
        ("1", 1, 3, [255, 255, 255]),
        ("RGB", (10, 20, 30), 3, [10, 20, 30]),
        ("RGB", (255, 255, 255), 1, [255]),
        ("RGBA", (10, 20, 30, 255), 3, [10, 20, 30]),
        ("RGBA", (10, 20, 30, 40), 4, [10, 20, 30, 40]),
        ("I;16", 257 * 9, 1, [9]),
        ("I;16", 257 * 9, 3, [9, 9, 9]),
    ],
)
def test_a_picture_comes_in_the_channels_of_the_model(
    mode: str, colour: object, channels: int, found: list[int], tmp_path: Path
) -> None:
    path = saved(tmp_path, mode, colour)
    assert pixel(path, channels) == found
    assert is_grey(path) == (mode in ("L", "1", "I;16"))


def test_what_can_be_seen_through_has_no_colour_of_its_own(tmp_path: Path) -> None:
    path = saved(tmp_path, "RGBA", (10, 20, 30, 254))
    with pytest.raises(InputError, match=r"a\.png can be seen through"):
        open_picture(path, 3)
    with pytest.raises(InputError, match="can be seen through"):
        open_picture(saved(tmp_path, "LA", (10, 0), "b.png"), 1)


def test_numbers_without_a_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.tif has numbers of 32 bits"):
        open_picture(saved(tmp_path, "F", 0.5, "a.tif"), 1)


def test_half_a_file_is_told_by_its_name(tmp_path: Path) -> None:
    path = saved(tmp_path, "RGB", (1, 2, 3), "a.jpg")
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(InputError, match=r"a\.jpg cannot be read as a picture: .*[tT]runcated"):
        open_picture(path, 3)
