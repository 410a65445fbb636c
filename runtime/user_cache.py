"""What is kept from run to run in the user's cache; all of it can be made again."""

import os
from pathlib import Path

from intaglio.whole_files import replacing


def folder(kind: str) -> Path:
    """Where things of one kind are kept: of ``$XDG_CACHE_HOME``, or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "intaglio" / kind


def put(path: Path, content: bytes) -> None:
    """Write a file whole, whoever else writes it.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_bytes(content)
