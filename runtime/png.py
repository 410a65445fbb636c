"""Pictures as files: PNG of 8 bits a channel (ISO/IEC 15948), written without a library."""

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.whole_files import output

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR = 0, 2  # kinds of pictures by their channels
GAP = 2  # pixels between pictures


def encode(image: npt.NDArray[np.uint8]) -> bytes:
    """The bytes of a PNG of image [height, width, 1 or 3]."""
    height, width, channels = image.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each begins with a filter: none
    lines[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR if channels == 3 else GREY, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def write(path: Path, images: npt.NDArray[np.floating]) -> None:
    """Write images [batch, 1 or 3, height, width], from 0 to 1, beside each other.

    Raises:
        InputError: if they have another shape, or are no numbers.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        raise InputError(
            f"The output has the shape {list(images.shape)}; pictures have [batch, 3, height, "
            "width]. Keep it as FILE.npz."
        )
    if not np.isfinite(images).all():
        raise InputError("The picture has entries that are no numbers.")
    pixels = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    gap = np.full((pixels.shape[1], GAP, pixels.shape[3]), 255, np.uint8)
    row = [part for picture in pixels for part in (picture, gap)][:-1]
    with output(path) as draft:
        draft.write_bytes(encode(np.concatenate(row, axis=1)))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
