"""Example inputs in words: what a recipe holds of them, and inputs made again from that.

    [inputs]
    frames = {dtype = "float32", shape = [2, 9, 40], low = -3.1, high = 3.4}

A bundle is given away, so it holds no value of the user's beyond what steers a model: single
numbers, short rows of whole numbers, as lengths and offsets are, and masks.  Of all else there are
dtype, shape and range, by columns where the last axis has few and is not free.
"""

import base64
import binascii
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intaglio.errors import OptionError

SHORT = 256  # entries of a row that is kept as it is
COLUMNS = 64  # of a table, with a range each; of more axes there are few such
FEW = 8
MASK = 1 << 22  # entries of a mask that is kept
LARGEST = 1 << 28  # entries of an input that a recipe may ask for
KEYS = {"dtype", "shape", "low", "high", "whole", "values", "two", "bits"}
DTYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint16, torch.uint32, torch.uint64),
    )
}

Array = npt.NDArray[Any]


def in_words(value: Any, free: Mapping[str, Mapping[int, str]], name: str = "") -> Any:
    """Examples as a recipe holds them, nested as they are.

    Args:
        value: a tensor or an array, what it is nested in, or a plain number.
        free: the free axes of each input.
        name: of the input.
    """
    if isinstance(value, Mapping):
        return {str(k): in_words(x, free, f"{name}_{k}" if name else str(k)) for k, x in
                value.items() if x is not None}  # fmt: skip
    if isinstance(value, list | tuple):
        return [in_words(x, free, f"{name}_{place}") for place, x in enumerate(value)]
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return {
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        **_content(value, value.ndim - 1 in free.get(name, {})),
    }


def _content(value: Tensor, last_is_free: bool) -> dict[str, Any]:
    array = value.double().numpy() if value.dtype.is_floating_point else value.numpy()
    whole = array.dtype.kind in "iub"
    if not array.size:
        return {}
    if array.size == 1 or (array.ndim == 1 and array.size <= SHORT and whole):
        return {"values": _plain(array.reshape(-1))}
    found = np.unique(array)
    if len(found) <= 2 and array.size <= MASK and (whole or _marks(found)):
        bits = np.packbits((array == found[-1]).reshape(-1))
        packed = base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode()
        return {"two": _plain(found[[0, -1]]), "bits": packed}
    width = array.shape[-1]
    columns = array.ndim > 1 and not last_is_free and width <= (COLUMNS if array.ndim == 2 else FEW)
    flat = array.reshape(-1, width) if columns else array.reshape(-1, 1)
    finite = np.ma.masked_invalid(flat) if not whole else flat
    low, high = (np.ma.filled(each(axis=0), 0) for each in (finite.min, finite.max))
    same = len(np.unique(low)) == len(np.unique(high)) == 1
    ends = {"low": _plain(low), "high": _plain(high)}
    if same:
        ends = {name: each[0] for name, each in ends.items()}
    codes = not whole and bool((array == array.round()).all())
    return {**ends, **({"whole": True} if codes else {})}


def _marks(found: Array) -> bool:
    """Whether two values are those of a mask: 0 and 1, or one that closes off with infinity."""
    return bool(np.isinf(found).any() or set(found.tolist()) <= {0.0, 1.0})


def _plain(array: Array) -> list[Any]:
    """Values as TOML and JSON hold them: what is not finite as a word."""
    return [x if not isinstance(x, float) or math.isfinite(x) else str(x) for x in array.tolist()]


def is_in_words(value: Any) -> bool:
    """Whether a value is what `in_words` makes of one tensor."""
    return isinstance(value, Mapping) and isinstance(value.get("dtype"), str) and "shape" in value


def holds_words(value: Any) -> bool:
    """Whether examples, nested as they may be, are in words."""
    if is_in_words(value):
        return True
    inside = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, Mapping | list) and any(map(holds_words, inside))


def made_again(value: Any, name: str = "inputs", *, ranges: bool = True) -> Any:
    """Examples from what a recipe says of them, the same each time; others are given back.

    Without `ranges` floats are normal, of the sign that is told: whoever wrote the recipe says then
    what a model takes, and not with which values it is tried.

    Raises:
        OptionError: if a recipe asks for what there cannot be.
    """
    if is_in_words(value):
        try:
            return _tensor(value, ranges=ranges)
        except (
            TypeError,
            ValueError,
            KeyError,
            OverflowError,
            binascii.Error,
            zlib.error,
        ) as error:
            raise OptionError(
                f"The recipe has the input {name!r} as {_shortened(value)}, which is no dtype, "
                f"shape and range: {error}. Give --inputs FILE.npz instead."
            ) from error
    if isinstance(value, Mapping):
        return {k: made_again(x, str(k), ranges=ranges) for k, x in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        made = [made_again(x, f"{name}_{i}", ranges=ranges) for i, x in enumerate(value)]
        return tuple(made) if isinstance(value, tuple) or holds_words(value) else made
    return value


def _shortened(value: Mapping[str, Any]) -> str:
    text = str(dict(value))
    return text if len(text) < 100 else f"{text[:100]}..."


def _tensor(said: Mapping[str, Any], *, ranges: bool) -> Tensor:
    unknown = sorted(set(said) - KEYS)
    if unknown:
        raise ValueError(f"there is no {unknown[0]!r}")
    if said["dtype"] not in DTYPES:
        raise ValueError(f"the dtype should be one of {', '.join(DTYPES)}")
    kind, shape = DTYPES[said["dtype"]], said["shape"]
    if not isinstance(shape, list | tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("the shape should be a list of sizes")
    count = math.prod(shape)
    if count > LARGEST:
        raise ValueError(f"it has {count} entries, more than {LARGEST}")
    floats = kind.is_floating_point
    if floats and not ranges and "two" not in said:
        return _signed(said, shape).to(kind)
    array = _values(said, shape, count)
    return torch.from_numpy(np.array(array.reshape(shape))).to(kind)


def _values(said: Mapping[str, Any], shape: Sequence[int], count: int) -> Array:
    kind = np.float64 if said["dtype"].startswith(("float", "bfloat")) else np.int64
    if "values" in said:
        values = np.array([float(x) if isinstance(x, str) else x for x in said["values"]])
        return values.astype(kind)
    if "two" in said:
        low, high = (float(x) if isinstance(x, str) else x for x in said["two"])
        room = -(-count // 8)
        packed = zlib.decompressobj().decompress(base64.b64decode(said["bits"]), max(room, 1))
        bits = np.unpackbits(np.frombuffer(packed, np.uint8))[:count].astype(bool)
        return np.where(bits, high, low).astype(kind)
    if not count:
        return np.zeros(shape, kind)
    low, high = (np.atleast_1d(np.asarray(said[end], kind)) for end in ("low", "high"))
    width = len(low)
    if low.shape != high.shape or not (low <= high).all() or (width > 1 and width != shape[-1]):
        raise ValueError("low and high should be numbers in order, or one of each for each column")
    random, rows = np.random.default_rng(0), count // width
    if kind is np.int64 or said.get("whole"):
        lowest, beyond = low.astype(np.int64), high.astype(np.int64) + 1
        array: Array = random.integers(lowest, beyond, (rows, width)).astype(kind)
    else:
        array = random.uniform(low.astype(np.float64), high.astype(np.float64), (rows, width))
    array[0], array[-1] = low, high  # both ends occur, where there is more than a row
    return array


def _signed(said: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """Normal floats; where a recipe knows no value below 0, or none above, nor are there here."""
    drawn = torch.randn(list(shape), generator=torch.Generator().manual_seed(0))
    ends = [said.get(end, said.get("values", [-1, 1])) for end in ("low", "high")]
    low, high = (np.atleast_1d(np.asarray(end, np.float64)) for end in ends)
    if (low >= 0).all():
        drawn = drawn.abs()
    elif (high <= 0).all():
        drawn = -drawn.abs()
    return drawn.round() if said.get("whole") else drawn
