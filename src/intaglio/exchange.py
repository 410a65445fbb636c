"""Put one directory in the place of another.

Linux exchanges two names in one step (renameat2 with RENAME_EXCHANGE, Linux 3.15, glibc 2.28): at
every instant the place holds the old directory or the new one.  Where kernel or file system
cannot, two renames do it, between which the place is empty for an instant; a process killed there
leaves the old directory under the name that it was given meanwhile.
"""

import ctypes
import errno
import os
from pathlib import Path

_CURRENT_FOLDER = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTSUP)  # EPERM: of sandboxes


def exchange(one: Path, other: Path) -> bool:
    """Let each path name what the other did; False, and nothing done, where that is impossible.

    Raises:
        OSError: if one is absent, or the file system refuses for another reason.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if rename(_CURRENT_FOLDER, names[0], _CURRENT_FOLDER, names[1], _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def replace_by_two_renames(new: Path, place: Path, retired: Path) -> None:
    """Rename `place` to `retired` and `new` to `place`; if the second fails, undo the first."""
    try:
        place.rename(retired)
        new.rename(place)
    finally:
        if retired.exists() and not place.exists():
            retired.rename(place)
