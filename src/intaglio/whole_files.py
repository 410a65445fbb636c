"""Files and folders that are whole at every instant, also if their writer is killed.

They are written beside their place under a hidden name, and renamed when they are complete.  A
draft is locked for as long as its writer lives, so that the next one to the same place tells what
a killed one left, and clears it.
"""

import contextlib
import fcntl
import itertools
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from intaglio.exchange import exchange, replace_by_two_renames

DRAFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]+\.draft", re.DOTALL)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write what shall stand at `path`, which holds the old file until the context ends.

    A link at `path` is replaced, not followed: a folder from elsewhere may hold one.  After an
    error, or an interruption, the draft is gone and the old file stands.

    Raises:
        OSError: if the file cannot be put there.
    """
    path = Path(path)
    draft, lock = _file(path)
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
        os.close(lock)


@contextlib.contextmanager
def output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `replacing`, of a file that the user names.

    Its folder is made if there is none, links lead on, and a pipe stays a pipe.

    Raises:
        OSError: if the file cannot be put there.
    """
    path = Path(path)
    if is_stream(path) or path.is_dir():  # to write to a folder says so
        yield path
        return
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing(place) as draft:
        yield draft


def is_stream(path: Path) -> bool:
    """Whether what is there takes what is written as it comes: a pipe, or a device."""
    if path.absolute().is_relative_to("/dev"):
        return True
    return path.exists() and not (path.is_file() or path.is_dir())


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `replacing`, of a folder that is made anew; what stood there is removed.

    Where the system cannot exchange names, the place is empty for the length of one rename.

    Raises:
        OSError: if the folder cannot be put there.
    """
    path = Path(path)
    _clear_folders(path)
    draft, lock = _folder(path)
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


def _clear_folders(path: Path) -> None:
    """Remove the drafts of folders for `path` whose writers are dead."""
    with contextlib.suppress(OSError):
        for entry in list(path.parent.iterdir()):
            found = DRAFT.fullmatch(entry.name)
            if found and found["name"] == path.name and entry.is_dir() and not entry.is_symlink():
                _remove_unlocked(entry)


def _remove_unlocked(draft: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if _lock(descriptor):
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _file(path: Path) -> tuple[Path, int]:
    """A draft that is locked, and its descriptor: the first that no living writer has.

    What a dead one left under that name is written over, so that nothing has to be looked for.
    """
    for number in itertools.count():
        draft = path.with_name(f".{path.name}.{number}.draft")
        with _told(path):
            descriptor, new = _opened(draft)
        if descriptor is None:
            continue
        locked = _lock(descriptor)
        if (locked or (locked is None and new)) and _is_at(descriptor, draft):
            following = path.with_name(f".{path.name}.{number + 1}.draft")
            if os.path.lexists(following):
                _remove_unlocked(following)
            return draft, descriptor
        os.close(descriptor)
    raise AssertionError(path)


def _opened(draft: Path) -> tuple[int | None, bool]:
    """A descriptor of an ordinary file of this user's, None of anything else; whether it is new."""
    with contextlib.suppress(FileExistsError):
        return os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), True
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None, False
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1:
        return descriptor, False
    os.close(descriptor)
    return None, False


def _is_at(descriptor: int, draft: Path) -> bool:
    """Whether a file is still where it was opened: its writer may just have put it in its place."""
    try:
        return os.path.samestat(os.fstat(descriptor), draft.lstat())
    except FileNotFoundError:
        return False


def _folder(path: Path) -> tuple[Path, int]:
    """A new folder that is locked, and its descriptor."""
    draft = _beside(path)
    with _told(path):
        draft.mkdir()
        descriptor = os.open(draft, os.O_RDONLY)
    _lock(descriptor)
    return draft, descriptor


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Name the place itself in an error, not its draft.

    Raises:
        OSError: in place of another.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")


def _lock(descriptor: int) -> bool | None:
    """Lock a file while it is open; False if another has it, None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if isinstance(error, BlockingIOError) else None
    return True
