"""Files and folders that are whole at every instant, also if their writer is killed.

They are written beside their place under a hidden name, and renamed when they are complete.  A
draft is locked for as long as its writer lives, so that the next one to the same place tells what
a killed one left, and clears it.
"""

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from intaglio.exchange import exchange, replace_by_two_renames

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
DRAFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.draft", re.DOTALL)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write what shall stand at `path`, which holds the old file until the context ends.

    A link at `path` is replaced, not followed: a folder from elsewhere may hold one.  After an
    error, or an interruption, the draft is gone and the old file stands.

    Raises:
        OSError: if the file cannot be put there.
    """
    path = Path(path)
    clear(path)
    draft, lock = _draft(path, folder=False)
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
        os.close(lock)


@contextlib.contextmanager
def output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `replacing`, of a file that the user names: links lead on, and a pipe stays a pipe.

    Raises:
        OSError: if the file cannot be put there.
    """
    path = Path(path)
    if path.absolute().is_relative_to("/dev") or _is_special(path):
        yield path
        return
    with replacing(os.path.realpath(path)) as draft:
        yield draft


def _is_special(path: Path) -> bool:
    """Whether something is there that is no file; to write to a folder then says so."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `replacing`, of a folder that is made anew; what stood there is removed.

    Where the system cannot exchange names, the place is empty for the length of one rename.

    Raises:
        OSError: if the folder cannot be put there.
    """
    path = Path(path)
    clear(path)
    draft, lock = _draft(path, folder=True)
    retired = _beside(path)
    try:
        yield draft
        if not os.path.lexists(path):
            draft.rename(path)
        elif not exchange(draft, path):
            replace_by_two_renames(draft, path, retired)
    finally:
        for old in (draft, retired):
            shutil.rmtree(old, ignore_errors=True)
        os.close(lock)


def is_draft(folder: Path, name: str, of: Collection[str]) -> bool:
    """Whether a name in a folder is a file that a killed writer of the files `of` may have left."""
    found, path = DRAFT.fullmatch(name), folder / name
    return bool(found and found["name"] in of and path.is_file() and not path.is_symlink())


def clear(path: Path) -> None:
    """Remove the drafts for `path` whose writers are dead."""
    with contextlib.suppress(OSError):
        for entry in list(path.parent.iterdir()):
            found = DRAFT.fullmatch(entry.name)
            if found and found["name"] == path.name:
                _remove_unlocked(entry)


def _remove_unlocked(draft: Path) -> None:
    descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if _lock(descriptor):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _draft(path: Path, *, folder: bool) -> tuple[Path, int]:
    """A new file or folder that is locked, and its descriptor."""
    while True:
        draft = _beside(path)
        try:
            descriptor = _folder(draft) if folder else os.open(draft, NEW, 0o666)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:  # else it was cleared before it was locked
            return draft, descriptor
        os.close(descriptor)


def _folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")


def _lock(descriptor: int) -> bool:
    """Lock a file while it is open; False if another has it, or there are no locks here."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
