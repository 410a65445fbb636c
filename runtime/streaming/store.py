"""Where the states of streams lie that have no row: in memory, or a file each in a folder."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from intaglio.errors import InputError, StateError, reason
from intaglio.runtime.session_state import Snapshot

LONGEST = 200  # characters of a file's name, before what a draft of it adds
_NAME = re.compile(r"stream-(.+)\.npz")


class Store:
    """Snapshots by the name of their stream; with a folder they outlive the process.

    Any thread may call it; no two at once for the same name.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        """Keep snapshots in `folder`, which is made, or in memory where that is None.

        Raises:
            InputError: if the folder cannot be made.
        """
        self.folder = None if folder is None else Path(folder)
        self._held: dict[str, Snapshot] = {}
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"The folder {self.folder} for saved streams cannot be made: {reason(error)}. "
                    "Give another one as store=."
                ) from error

    def __contains__(self, name: str) -> bool:
        if self.folder is None:
            return name in self._held
        return self._path(name).is_file()

    def names(self) -> Iterator[str]:
        """The names of the streams that are saved."""
        if self.folder is None:
            yield from sorted(self._held)
            return
        for path in sorted(self.folder.iterdir()):
            found = _NAME.fullmatch(path.name)
            if found is not None:
                yield unquote(found[1])

    def put(self, name: str, snapshot: Snapshot) -> None:
        """Save a stream; what was saved of it before stays whole until then.

        Raises:
            StateError: if its file cannot be written.
        """
        if self.folder is None:
            self._held[name] = snapshot
            return
        path = self._path(name)
        try:
            snapshot.save(path)
        except OSError as error:
            raise StateError(
                f"The stream {name!r} cannot be saved to {path}: {reason(error)}."
            ) from error

    def take(self, name: str) -> Snapshot:
        """What was saved of a stream; a file stays where it is.

        Raises:
            StateError: if nothing was, or its file is damaged.
        """
        if self.folder is not None:
            return Snapshot.load(self._path(name))
        if name not in self._held:
            raise StateError(f"There is no saved stream {name!r}.")
        return self._held.pop(name)

    def drop(self, name: str) -> None:
        """Forget a stream."""
        if self.folder is None:
            self._held.pop(name, None)
        else:
            self._path(name).unlink(missing_ok=True)

    def check(self, name: str) -> None:
        """Refuse a name that no file can have.

        Raises:
            InputError: if it is no text, empty or too long.
        """
        try:
            fits = isinstance(name, str) and bool(name) and len(_file(name)) <= LONGEST
        except UnicodeEncodeError:
            fits = False
        if not fits:
            told = name[:40] if isinstance(name, str) else name
            raise InputError(
                f"{told!r} is no name of a stream: it should have 1 to about "
                f"{LONGEST - len(_file(''))} letters and digits; others count three times."
            )

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / _file(name)


def _file(name: str) -> str:
    return f"stream-{quote(name, safe='')}.npz"
