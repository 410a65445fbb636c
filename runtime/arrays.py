"""Arrays: their dtypes by name, and numpy's ``.npz`` and ``.npy``, from whomever they come."""

import math
import os
import stat
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import BundleError, InputError

Array = npt.NDArray[Any]

LARGEST_BLOWN = 1 << 28  # bytes that a file may hold compressed, however small it is
MOST_BLOWN = 32  # times its size, beyond


def dtype_of(name: str, what: str) -> np.dtype[Any]:
    """The numpy dtype called `name`, which `what` has.

    Raises:
        BundleError: if numpy has none of this name, as for bfloat16.
    """
    try:
        return np.dtype(name)
    except TypeError as error:
        raise BundleError(
            f"{what} has the dtype {name}, which numpy lacks. Export the bundle with --dtype fp32."
        ) from error


def read_npz(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Arrays by name.  No pickled object is built, and no memory taken for what is not there.

    Raises:
        InputError: if it cannot be read as a whole file of plain arrays.
    """
    path = Path(path)
    try:
        _require_ordinary(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _require_memory(sum(member.file_size for member in members), path.stat().st_size)
            return {entry.filename.removesuffix(".npy"): _read(archive, entry) for entry in members}
    except OSError as error:
        said = error.strerror or error
        raise InputError(f"{path} cannot be read: {said}. Write it with numpy.savez.") from error
    except Exception as error:  # zip archives and numpy's headers can be wrong in many ways
        said = str(error).rstrip(".") or type(error).__name__
        raise InputError(
            f"{path} cannot be read as arrays by name: {said}. Write it with numpy.savez."
        ) from error


def read_npy(path: str | os.PathLike[str]) -> Array:
    """The array in a file of numpy's ``.npy`` format, with the same distrust.

    Raises:
        InputError: if it cannot be read as a whole plain array.
    """
    path = Path(path)
    try:
        _require_ordinary(path)
        with path.open("rb") as file:
            _require_held(file, path.stat().st_size, path.name)
        with path.open("rb") as file:
            return _checked(np.lib.format.read_array(file, allow_pickle=False))
    except OSError as error:
        said = error.strerror or error
        raise InputError(f"{path} cannot be read: {said}. Write it with numpy.save.") from error
    except Exception as error:  # headers can be wrong in many ways
        said = str(error).rstrip(".") or type(error).__name__
        raise InputError(f"{path} is no array: {said}. Write it with numpy.save.") from error


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as file:
        _require_held(file, member.file_size, member.filename)
    with archive.open(member) as file:
        return _checked(np.lib.format.read_array(file, allow_pickle=False))


def _checked(array: Array) -> Array:
    """An array, whose texts are Unicode: numpy reads any four bytes as a character."""
    if array.dtype.kind == "U":
        codes = np.frombuffer(array.tobytes(), f"{array.dtype.byteorder}u4")
        if np.any((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))):
            raise ValueError("it holds text that is no Unicode")
    return array


def _require_held(file: IO[bytes], size: int, name: str) -> None:
    """Refuse a header that promises more than the `size` bytes of its file hold."""
    version = np.lib.format.read_magic(file)
    header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = header(file)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"{name} says that it has the shape {shape}, which it has not")


def _require_ordinary(path: Path) -> None:
    """Refuse what may never end, like a pipe."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not an ordinary file")


def _require_memory(claimed: int, stored: int) -> None:
    if claimed > max(LARGEST_BLOWN, MOST_BLOWN * stored):
        raise ValueError(f"it has {stored} bytes, and says that it holds {claimed}")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if claimed > memory:
        raise ValueError(f"it says that it holds {claimed} bytes, more than there is memory")
