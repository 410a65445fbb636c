"""Values of few bits as streams in 32-bit words, lowest bits first, along the last axis.

Value k fills the bits k·bits to (k+1)·bits - 1 of the stream, so that at 3 bits some values lie
across two words.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def to_words(values: Array, bits: int) -> Array:
    """Pack uint8 [..., n] to int32 [..., n·bits/32]; n·bits is a multiple of 32."""
    places = np.arange(bits, dtype=np.uint8)
    stream = (values.astype(np.uint8)[..., None] >> places) & 1
    flat = stream.reshape(*values.shape[:-1], -1)
    return np.packbits(flat, -1, bitorder="little").view("<i4").astype(np.int32)


def from_words(words: Array, bits: int) -> Array:
    """Unpack int32 [..., w] to uint8 [..., 32·w/bits]."""
    data = np.ascontiguousarray(words.astype("<i4")).view(np.uint8)
    stream = np.unpackbits(data, axis=-1, bitorder="little")
    fields = stream.reshape(*words.shape[:-1], -1, bits)
    values: Array = (fields << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8)
    return values
