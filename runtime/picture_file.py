"""A picture in a file, from whomever it comes, in the channels that a model takes, by Pillow."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intaglio.errors import InputError, MissingExtraError

from .plain_files import require_ordinary

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
GREY = {"1", "L", "LA", "La"}
OPAQUE = 255


def is_picture(path: Path) -> bool:
    """Whether a file is called like a picture."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def open_picture(path: Path, channels: int) -> "Image":
    """A picture as Pillow has it, of 8 bits, in as many channels as are asked for.

    Grey becomes three equal colours, colours become their luminance; 16 bits are rounded to 8.

    Raises:
        InputError: if it cannot be read, has see-through places that `channels` have no room for,
            or numbers whose range no one knows.
        MissingExtraError: if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("Reading pictures", "report") from error
    try:
        require_ordinary(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _in_channels(path, image, channels)
    except InputError:
        raise
    except Exception as error:  # each format of pictures is wrong in ways of its own
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path} cannot be read as a picture: {said}.") from error


def is_grey(path: Path) -> bool:
    """Whether a picture that `open_picture` reads has no colours."""
    from PIL import Image

    with Image.open(path) as image:
        return image.mode in GREY or image.mode.startswith("I;16")


def _in_channels(path: Path, image: "Image", channels: int) -> "Image":
    from PIL import Image

    if image.mode.startswith("I;16"):
        deep = np.asarray(image, np.float32) / 257
        image = Image.fromarray(np.rint(deep).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(
            f"{path} has numbers of 32 bits, whose range it does not say. Save it with 8 bits a "
            "channel, or give arrays as .npz."
        )
    if image.has_transparency_data and MODES[channels] != "RGBA":
        image = image.convert("RGBA")
        least, _ = image.getchannel("A").getextrema()
        if least < OPAQUE:  # type: ignore[operator]
            raise InputError(
                f"{path} can be seen through in places, and the model takes {channels} channels. "
                "Put it on a background first, as with: magick IN.png -background white -flatten "
                "OUT.png"
            )
    return image.convert(MODES[channels])
