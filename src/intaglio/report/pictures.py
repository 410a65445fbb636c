"""Pictures as arrays, and arrays as pictures, by Pillow."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError, MissingExtraError
from intaglio.runtime.arrays import read_npy
from intaglio.runtime.picture_file import open_picture

Array = npt.NDArray[Any]
CHANNELS = (1, 3)


def read_picture(path: Path, shape: tuple[int, ...]) -> Array:
    """A picture as float32 of `shape` [channels, height, width], from 0 to 1.

    An array in a ``.npy`` file is taken as it is.

    Raises:
        InputError: if it cannot be read, or has another size than `shape`.
        MissingExtraError: if Pillow is not installed.
    """
    found = read_npy(path) if path.suffix == ".npy" else _pixels(path, shape)
    if found.dtype.kind not in "biuf":
        raise InputError(f"{path} holds {found.dtype}, and no numbers.")
    _require_shape(path, found.shape, shape)
    return found.astype(np.float32)


def _pixels(path: Path, shape: tuple[int, ...]) -> Array:
    """[channels, height, width] from 0 to 1, in as many channels as `shape` has."""
    if len(shape) != 3 or shape[0] not in CHANNELS:
        raise InputError(f"The bundle takes {list(shape)}, which is no picture: give a .npy file.")
    image = open_picture(path, shape[0])
    _require_shape(path, (shape[0], image.height, image.width), shape)
    pixels = np.asarray(image, np.float32) / 255
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _require_shape(path: Path, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if found != shape:
        raise InputError(
            f"{path} has the shape {list(found)}; the bundle takes {list(shape)}. Scale it, or "
            "export the bundle for its size."
        )


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether an array of `shape` can be drawn."""
    return len(shape) == 3 and shape[0] in CHANNELS


def write_picture(path: Path, array: Array) -> None:
    """Write weights [channels, height, width] as a picture: grey is zero, the largest one is full.

    Raises:
        MissingExtraError: if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("Writing pictures", "report") from error
    largest = float(np.abs(array).max(initial=0)) or 1.0
    levels = np.rint(127.5 + 127.5 * array / largest).astype(np.uint8)
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(path)
