"""Hold a file from a stranger to what it claims, before a library takes memory on its word."""

import stat
import zipfile
from pathlib import Path

from intaglio.errors import SourceError


def read_head(path: Path, size: int = 64) -> bytes:
    """The first bytes of an ordinary file; nothing else is opened, since a pipe may never end.

    Raises:
        SourceError: if there is no such file, it is a folder, a pipe, a socket or a device, it is
            empty, or it may not be read.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
            raise SourceError(f"{path} is {kind}. Give an ordinary file.")
        with path.open("rb") as file:
            head = file.read(size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(f"{path}: there is no such file.") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise SourceError(f"{path} is empty: writing it was cut short. Save or copy it again.")
    return head


def is_archive(path: Path) -> bool:
    """Whether the file `path` ends as a zip archive does, a whole one or not."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of several disks, if that is true
        return True


def archive_names(path: Path) -> list[str]:
    """Names of the members of a zip archive as PyTorch writes it: stored, not compressed.

    Raises:
        SourceError: if it is no whole archive, or its members together are larger than the file.
            So neither a compressed bomb nor members that overlap get to ask for memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RecursionError) as error:
        raise SourceError(f"{path} is truncated or damaged: {error}. Copy it again.") from error
    claimed, size = sum(member.file_size for member in members), path.stat().st_size
    if claimed > size:
        raise SourceError(
            f"{path} has {size} bytes, but says that it holds {claimed}: it was compressed, or "
            "made to exhaust memory. PyTorch does not compress: where the file is trusted, load it "
            "and save it again with torch.save."
        )
    return [member.filename for member in members]
