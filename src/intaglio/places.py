"""Places for what is to be written, as a user names them: looked at before the work for it."""

import os
import tempfile
from pathlib import Path

from intaglio.errors import OptionError
from intaglio.whole_files import is_stream


def require_file(path: str | os.PathLike[str], *, force: bool = True) -> None:
    """Hold a place to be one for a file, whose folders are made as they are needed.

    Args:
        path: of the file; a pipe or a device is taken as it is.
        force: whether a file that is there will be replaced.

    Raises:
        OptionError: if a folder is there, or a file that is not to be replaced, or nothing can be
            written there.
    """
    path = Path(path)
    if path.is_dir():
        raise OptionError(f"{path} is a folder. Give the name of a file.")
    if is_stream(path):
        return
    if not force:
        require_free(path)
    require_writable(path)


def require_free(path: Path) -> None:
    """Hold a place to have nothing yet.

    Raises:
        OptionError: if something is there.
    """
    if os.path.lexists(path):
        raise OptionError(f"{path} exists. Replace it with --force, or choose another place.")


def require_writable(path: Path) -> None:
    """Hold a place to be one where a file or a folder can be made, by making one beside it.

    Raises:
        OptionError: if it is not.
    """
    beside = next(each for each in Path(os.path.realpath(path)).parents if os.path.lexists(each))
    try:
        if beside.is_dir():
            with tempfile.TemporaryFile(dir=beside):
                return
    except OSError as error:
        said = f"nothing can be made in {beside} ({error.strerror})"
        raise OptionError(f"{path} cannot be written: {said}.") from error
    raise OptionError(f"{path} cannot be written: {beside} is a file, not a folder.")
