"""Small files of text from whomever they come: read if they are ordinary, and no larger than usual.

A pipe may never end, a device may give bytes for ever, and what is nested without end breaks a
parser that recurses.
"""

import errno
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

LARGEST = 64 << 20  # bytes of a file of settings


def require_ordinary(path: str | os.PathLike[str]) -> int:
    """The bytes of the file at `path`.

    Raises:
        OSError: if there is none, or it is a pipe, a socket, a device or a folder.
    """
    try:
        status = Path(path).stat()
    except ValueError as error:  # a name with a null character
        raise OSError(errno.EINVAL, "no file is called so", str(path)) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise OSError(errno.EINVAL, f"it is {kind}, not an ordinary file", str(path))
    return status.st_size


def read_text(path: str | os.PathLike[str], most: int = LARGEST) -> str:
    """The text of an ordinary file of at most `most` bytes, in UTF-8.

    Raises:
        OSError: if it cannot be read, is no ordinary file, or is larger.
        UnicodeDecodeError: if it is not UTF-8.
    """
    _require_small(path, most)
    return Path(path).read_text(encoding="utf-8")


def read_bytes(path: str | os.PathLike[str], most: int = LARGEST) -> bytes:
    """The content of an ordinary file of at most `most` bytes.

    Raises:
        OSError: if it cannot be read, is no ordinary file, or is larger: one with holes may say
            any size.
    """
    _require_small(path, most)
    return Path(path).read_bytes()


def _require_small(path: str | os.PathLike[str], most: int) -> None:
    size = require_ordinary(path)
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size} bytes, more than {most}", str(path))


def read_json(path: str | os.PathLike[str], most: int = LARGEST) -> Any:
    """What the JSON in an ordinary file says.

    Raises:
        OSError: if it cannot be read, is no ordinary file, or is larger than `most` bytes.
        ValueError: if it is not JSON, or nested more deeply than a reader follows.
    """
    return parse_json(read_text(path, most))


def parse_json(text: str | bytes) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: if it is not JSON, or nested more deeply than a reader follows.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def leads_away(path: Path, folder: Path) -> bool:
    """Whether a file of a folder is a link out of it: what is copied may be a secret of the user's.

    The caches of Hugging Face link from ``snapshots/REVISION`` to ``blobs`` beside it.
    """
    place, home = path.resolve(), folder.resolve()
    cache = home.parents[1] if home.parent.name == "snapshots" else home
    return not any(place.is_relative_to(each) for each in (home, cache / "blobs"))


def copy_folder(folder: Path, out: Path, without: tuple[str, ...] = ()) -> None:
    """Copy the ordinary files of a folder and of those in it, save names that end so.

    No pipe or device, no folder that is a link, which may lead in a circle, and no file that lies
    elsewhere.
    """
    for entry in folder.iterdir():
        if leads_away(entry, folder):
            continue
        if entry.is_dir() and not entry.is_symlink():
            (out / entry.name).mkdir()
            copy_folder(entry, out / entry.name, without)
        elif entry.is_file() and not entry.name.endswith(without):
            shutil.copyfile(entry, out / entry.name)
