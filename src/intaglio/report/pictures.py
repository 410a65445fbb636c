"""Pictures as arrays, and arrays as pictures, by Pillow."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError, MissingExtraError

Array = npt.NDArray[Any]
MODES = {1: "L", 3: "RGB"}  # by channels


def read_picture(path: Path, shape: tuple[int, ...]) -> Array:
    """A picture as float32 of `shape` [channels, height, width], from 0 to 1.

    An array in a ``.npy`` file is taken as it is.

    Raises:
        InputError: if it cannot be read, or has another size than `shape`.
        MissingExtraError: if Pillow is not installed.
    """
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                found: Array = np.lib.format.read_array(file, allow_pickle=False)
        else:
            found = _pixels(path, shape)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a picture: {error}.") from error
    if found.shape != shape:
        raise InputError(
            f"{path} has the shape {list(found.shape)}; the bundle takes {list(shape)}. Scale it, "
            "or export the bundle for its size."
        )
    return found.astype(np.float32)


def _pixels(path: Path, shape: tuple[int, ...]) -> Array:
    """[channels, height, width] from 0 to 1, in as many channels as `shape` has."""
    if len(shape) != 3 or shape[0] not in MODES:
        raise ValueError(f"the bundle takes {list(shape)}, which is no picture; give a .npy file")
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("Reading pictures", "report") from error
    with Image.open(path) as image:
        pixels = np.asarray(image.convert(MODES[shape[0]]), np.float32) / 255
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether an array of `shape` can be drawn."""
    return len(shape) == 3 and shape[0] in MODES


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
