"""Put a bundle in its place whole or not at all.

Everything is written to a hidden directory beside the destination, which is renamed when it is
complete and on disk.  At every instant the destination is the old bundle or the new one (see
`exchange` for where it may be absent), and what a killed run left is cleared by the next one.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from intaglio.errors import BundleError, reason
from intaglio.exchange import exchange, replace_by_two_renames
from intaglio.runtime.bundle import UNHASHED
from intaglio.runtime.manifest import FILE_NAME, FileRecord, Manifest
from intaglio.runtime.plain_files import read_json

PARTIAL = ".partial"  # a bundle in the making
RETIRED = ".retired"  # an old bundle that is being replaced


class BundleWriter:
    """A directory in the making: files go to `path`, `commit` renames it to the destination.

    Leaving the context without `commit` or `fail`, by whatever exception, removes it.
    """

    def __init__(self, destination: str | Path, *, force: bool = False) -> None:
        """Name the destination; with `force` a bundle that is there will be replaced."""
        self.destination = Path(os.path.realpath(destination))
        self._force = force
        self._partial = self._beside(f".{secrets.token_hex(4)}{PARTIAL}")
        self._lock = -1

    @property
    def path(self) -> Path:
        """The directory to write the bundle's files to."""
        return self._partial

    @property
    def failed(self) -> Path:
        """Where `fail` keeps the attempt: the destination's name with ``.failed`` behind it."""
        return self.destination.with_name(self.destination.name + ".failed")

    def __enter__(self) -> Self:
        """Make the directory.

        Raises:
            BundleError: if the destination is in the way, or nothing can be written beside it.
        """
        check_place(self.destination, force=self._force)
        check_place(self.failed, force=True)
        with self.told():
            self.destination.parent.mkdir(parents=True, exist_ok=True)
            self._clear_stale()
            try:
                self._partial.mkdir()
                lock = _lock(self._partial)
            except BaseException:  # an interruption here, before there is anything to leave
                shutil.rmtree(self._partial, ignore_errors=True)
                raise
        if lock is None:
            raise BundleError(f"{self._partial} is being cleared by another run. Try again.")
        self._lock = lock
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        os.close(self._lock)

    def write_manifest(self, manifest: Manifest) -> Manifest:
        """Write the manifest with size and hash of every file that is there; return it so."""
        with self.told():
            files = {
                path.relative_to(self._partial).as_posix(): FileRecord.of(path)
                for path in sorted(self._partial.rglob("*"))
                if path.is_file()
            }
            kept = {name: record for name, record in files.items() if name not in UNHASHED}
            complete = replace(manifest, files=kept)
            complete.save(self._partial / FILE_NAME)
        return complete

    def clear(self) -> None:
        """Remove what was written, for another attempt; whoever has a file open keeps it."""
        with self.told():
            for path in self._partial.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def commit(self, manifest: Manifest) -> Manifest:
        """Write the manifest and put the bundle in its place; return the manifest as written.

        Raises:
            BundleError: if the disk refuses, or another bundle took the place meanwhile.
        """
        return self._place(manifest, self.destination, force=self._force)

    def fail(self, manifest: Manifest) -> Path:
        """Keep the attempt as `failed`, replacing an older one; the destination is not touched."""
        self._place(manifest, self.failed, force=True)
        return self.failed

    def _place(self, manifest: Manifest, place: Path, *, force: bool) -> Manifest:
        complete = self.write_manifest(manifest)
        with self.told():
            _sync(self._partial)
            check_place(place, force=force)
            _swap(self._partial, place)
        return complete

    def _beside(self, suffix: str) -> Path:
        return self.destination.with_name(f".{self.destination.name}{suffix}")

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Turn what the file system says while the bundle is written into an error of ours.

        Raises:
            BundleError: in place of any OSError.
        """
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
            advice = " Make room, or choose another place." if full else ""
            raise BundleError(
                f"{self.destination} cannot be written: {reason(error)}.{advice}"
            ) from error

    def _clear_stale(self) -> None:
        """Remove what killed runs left; give back an old bundle that was never replaced."""
        for place in (self.destination, self.failed):
            for path in _siblings(place, RETIRED):
                with _if_unlocked(path) as free:
                    if free and not place.exists():
                        path.rename(place)
                    elif free:
                        shutil.rmtree(path)
        for path in _siblings(self.destination, PARTIAL):
            with _if_unlocked(path) as free:
                if free:
                    shutil.rmtree(path)


def _siblings(place: Path, suffix: str) -> list[Path]:
    """Hidden directories beside `place` that were made on its behalf."""
    start, length = f".{place.name}.", len(f".{place.name}.") + 8 + len(suffix)
    return [
        path
        for path in place.parent.iterdir()
        if path.name.startswith(start) and path.name.endswith(suffix) and len(path.name) == length
    ]


def check_place(place: Path, *, force: bool) -> None:
    """Hold a destination to be free, or with `force` a bundle.

    Raises:
        BundleError: if it is neither.
    """
    if not os.path.lexists(place):
        return
    if not _is_bundle(place):
        raise BundleError(
            f"{place} exists and is not a bundle, so it is not replaced. Move it away, or choose "
            "another place."
        )
    if not force:
        raise BundleError(f"{place} exists. Replace it with --force, or choose another place.")


def _is_bundle(path: Path) -> bool:
    """Whether `path` is a directory with a manifest of ours."""
    try:
        content = read_json(path / FILE_NAME)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"schema_version", "intaglio"} <= content.keys()


def _lock(path: Path) -> int | None:
    """Lock a directory for as long as this process lives; None if another process has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _if_unlocked(path: Path) -> Iterator[bool]:
    """Whether no living process works on `path`; if none does, hold it for a while."""
    try:
        descriptor = _lock(path)
    except FileNotFoundError:  # its process has just finished
        descriptor = None
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _sync(folder: Path) -> None:
    """Wait until `folder` and all that is in it is on disk."""
    for path in (*folder.rglob("*"), folder):
        _sync_entry(path)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, place: Path) -> None:
    """Rename `new` to `place`; what was there goes, or comes back if the renaming fails."""
    lock = _lock(place) if place.exists() else None
    retired = place.with_name(f".{place.name}.{secrets.token_hex(4)}{RETIRED}")
    try:
        if not place.exists():
            new.rename(place)
        elif not exchange(new, place):
            replace_by_two_renames(new, place, retired)
        _sync_entry(place.parent)
    finally:
        for old in (new, retired):
            shutil.rmtree(old, ignore_errors=True)
        if lock is not None:
            os.close(lock)
