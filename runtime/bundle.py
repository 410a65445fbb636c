"""A bundle on disk: finding it, and opening its files only as the manifest describes them.

Where external tensors lie.  A graph gives the location of an external tensor relative to the
*root* of the bundle, whatever folder the graph itself is in: `model.onnx` and `ort/model.onnx` both
say `model.onnx.data`, with the same offset and length where the bytes are the same.  ONNX Runtime
1.32 refuses `../model.onnx.data` and symbolic links that leave a graph's folder, so the graph is
handed over as bytes, with the root as the folder of its external tensors (session option
`session.model_external_initializers_file_folder_path`): it confines them to the bundle itself.
A target's `data` in the manifest names the files that its graph opens in this way.  It is for
readers: what is hashed when a graph is opened follows from the graph (`external_files.py`).
"""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from intaglio.errors import BundleError
from intaglio.places import require_writable
from intaglio.runtime.external_files import external_files
from intaglio.runtime.graph_entry import MAIN, GraphEntry, TargetEntry
from intaglio.runtime.manifest import FILE_NAME, FileRecord, Manifest
from intaglio.runtime.plain_files import require_ordinary
from intaglio.runtime.protobuf import DamagedError
from intaglio.runtime.signing import FILE_NAME as SIGNATURE
from intaglio.runtime.signing import require, sign
from intaglio.spelling import perhaps
from intaglio.whole_files import is_draft, replacing

REPORT = "report.json"  # what was measured, which nothing that runs a bundle reads
UNHASHED = frozenset((FILE_NAME, REPORT, SIGNATURE))  # files that the manifest does not list
AGAIN = "Copy the bundle again from where it is whole, or export it again."


class _OwnFolder:
    """A folder of temporary files, which goes with the last object that holds this."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="intaglio-")).resolve()
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class Bundle:
    """The folder `root` with its manifest; open one with `Bundle.open`.

    `signer` is the fingerprint of the key whose signature was required; None where none was.
    `copy` holds the folder of a private copy, which goes with the last that holds it.
    """

    root: Path
    manifest: Manifest
    signer: str | None = None
    copy: "_OwnFolder | None" = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: "str | os.PathLike[str] | Bundle",
        *,
        require_signature: str | os.PathLike[str] | None = None,
    ) -> "Bundle":
        """Read the manifest of the bundle in the folder `path`.

        With `require_signature`, the file of a public key, every file is hashed as well, here and
        again when it is used.

        Raises:
            BundleError: if there is no bundle, or its manifest is broken, newer than this
                intaglio, or names a path that leaves the bundle; if a signature is required, also
                if there is none by that key, or a file is missing, changed or not listed.
            OptionError: if `require_signature` is no public key.
            MissingExtraError: if it is given and the extra ``sign`` is not installed.
        """
        if isinstance(path, Bundle):
            if require_signature is None:
                return path
            path = path.root
        root = Path(path)
        if not root.is_dir():
            state = "is a file" if root.exists() else "does not exist"
            raise BundleError(f"{root} {state}. Give the folder that intaglio export wrote.")
        if not (root / FILE_NAME).is_file():
            raise BundleError(
                f"{root} is not a bundle: it has no {FILE_NAME}. "
                "Give the folder that intaglio export wrote."
            )
        root = root.resolve()
        try:
            str(root).encode()
        except UnicodeEncodeError as error:
            raise BundleError(
                f"{root} is called by bytes that are no UTF-8, which no library opens. Rename it."
            ) from error
        content, signer = Manifest.read(_inside(root, FILE_NAME)), None
        if require_signature is not None:
            signer = require(content, _inside(root, SIGNATURE), require_signature)
        bundle = cls(root, Manifest.parse(content, str(root / FILE_NAME)), signer)
        for name in bundle.manifest.files:
            bundle.locate(name)
        for graph in bundle.manifest.graphs.values():
            for target in graph.targets.values():
                for name in (target.path, *target.data):
                    bundle.locate(name)
        if require_signature is not None:
            bundle.check_all()
        return bundle

    def private(self) -> "Bundle":
        """A copy of it that nobody else writes, in the folder of temporary files.

        Weights are mapped from their files, so that whoever cuts a file short ends the process
        that runs it, and whoever writes into one changes what it computes.

        Raises:
            BundleError: if a file is absent or changed, or there is no room.
        """
        folder = _OwnFolder()
        copy = replace(self, root=folder.path, copy=folder)
        try:
            self.copy_to(folder.path)
        except OSError as error:
            raise BundleError(f"{self.root} cannot be copied: {error.strerror}.") from error
        for name in self.manifest.files:
            copy.check(name)
        return copy

    def copy_to(self, folder: Path) -> None:
        """Copy the manifest and what it lists, and a signature: nothing else that lies there.

        Raises:
            BundleError: if the manifest lists what lies outside the bundle.
            OSError: if a file cannot be read or written.
        """
        signature = (SIGNATURE,) if (self.root / SIGNATURE).exists() else ()
        for name in (*self.manifest.files, FILE_NAME, *signature):
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            require_ordinary(self.locate(name))
            shutil.copyfile(self.locate(name), place)

    def check_all(self) -> None:
        """Hash every file that the manifest lists, and find that there are no others.

        Drafts of files that no hash covers are let be: a command that was killed leaves them, and
        nothing reads them.

        Raises:
            BundleError: if a file is missing, changed or not listed.
        """
        for name in self.manifest.files:
            self.check(name)
        listed = {*self.manifest.files, *UNHASHED}
        for folder, folders, files in os.walk(self.root):
            links = [name for name in folders if Path(folder, name).is_symlink()]
            for name in sorted((*files, *links)):
                path = Path(folder, name).relative_to(self.root).as_posix()
                if path not in listed and not is_draft(self.root, path, UNHASHED):
                    raise BundleError(
                        f"{self.root} holds {path!r}, which its manifest does not list, so that no "
                        "signature covers it. Remove it, or do not use this bundle."
                    )

    def sign(self, key: str | os.PathLike[str]) -> str:
        """Write the signature of this bundle by a private key; return the key's fingerprint.

        Raises:
            BundleError: if a file is missing, changed or not listed.
            OptionError: if nothing can be written, or the key cannot be read, or is no private
                Ed25519 key.
            MissingExtraError: if the extra ``sign`` is not installed.
        """
        require_writable(self.root / SIGNATURE)
        content = Manifest.read(_inside(self.root, FILE_NAME))
        replace(self, manifest=Manifest.parse(content, str(self.root / FILE_NAME))).check_all()
        signature, name = sign(content, key)
        path = self.root / SIGNATURE
        try:
            with replacing(path) as draft:
                draft.write_bytes(signature)
        except OSError as error:
            raise BundleError(f"{path} cannot be written: {error.strerror}.") from error
        return name

    def __repr__(self) -> str:
        """In short: ``Bundle('kws', main, encode)``."""
        return f"Bundle({self.root.name!r}, {', '.join(self.manifest.graphs)})"

    @property
    def graphs(self) -> Mapping[str, "BundleGraph"]:
        """The graphs of the bundle by name, `MAIN` among them."""
        return {name: BundleGraph(self, name) for name in self.manifest.graphs}

    def graph(self, name: str = MAIN) -> "BundleGraph":
        """The graph called `name`.

        Raises:
            BundleError: if there is none.
        """
        if name not in self.manifest.graphs:
            raise BundleError(
                f"{self.root} has no graph {name!r}{perhaps(name, self.manifest.graphs)}; it has: "
                f"{', '.join(self.manifest.graphs)}."
            )
        return BundleGraph(self, name)

    def locate(self, name: str) -> Path:
        """Where the file `name` of the bundle lies; it need not exist.

        Raises:
            BundleError: if the path leaves the bundle.
        """
        return _inside(self.root, name)

    def check(self, name: str) -> Path:
        """Where the file `name` lies, once its size and hash are those of the manifest.

        Raises:
            BundleError: if it is absent, unlisted or changed.
        """
        expected, path = self._sized(name)
        with self._told(name):
            found = FileRecord.of(path)
        self._compare(name, found, expected)
        return path

    def read(self, name: str) -> bytes:
        """The content of the file `name`, checked as by `check`: the very bytes that are used."""
        expected, path = self._sized(name)
        with self._told(name):
            content = path.read_bytes()
        found = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
        self._compare(name, found, expected)
        return content

    def _sized(self, name: str) -> tuple[FileRecord, Path]:
        """What a file should be and where it lies, once it is an ordinary file of that size."""
        expected, path = self.record(name), self.locate(name)
        with self._told(name):
            status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{self.root / name} is not an ordinary file. {AGAIN}")
        self._compare(name, FileRecord(expected.sha256, status.st_size), expected)
        return expected, path

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Turn what the file system says of a file into an error of ours."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a name with a null character
            said = getattr(error, "strerror", None) or error
            raise BundleError(f"{self.root} lacks the file {name!r}: {said}. {AGAIN}") from error

    def record(self, name: str) -> FileRecord:
        """Size and hash of the file `name`, as the manifest has them.

        Raises:
            BundleError: if it is not listed.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(
                f"{self.root / FILE_NAME} uses {name!r} but does not list it under files. {AGAIN}"
            )
        return record

    def _compare(self, name: str, found: FileRecord, expected: FileRecord) -> None:
        if found.bytes != expected.bytes:
            raise BundleError(
                f"{self.root / name} has {found.bytes} bytes, the manifest says {expected.bytes}. "
                f"{AGAIN}"
            )
        if found.sha256 != expected.sha256:
            raise BundleError(
                f"{self.root / name} was changed after export: its SHA-256 is not the one in the "
                f"manifest. {AGAIN}"
            )


@dataclass(frozen=True)
class BundleGraph:
    """The graph `name` of a bundle, see `Bundle.graph`."""

    bundle: Bundle
    name: str

    def __repr__(self) -> str:
        """In short: ``BundleGraph('kws', main)``."""
        return f"BundleGraph({self.root.name!r}, {self.name})"

    def __str__(self) -> str:
        """As messages and reports call it: the folder, and the name unless that is `MAIN`."""
        return str(self.bundle.root) + ("" if self.name == MAIN else f", graph {self.name!r},")

    @property
    def root(self) -> Path:
        """The folder of the bundle."""
        return self.bundle.root

    @property
    def entry(self) -> GraphEntry:
        """What the manifest says of it."""
        return self.bundle.manifest.graphs[self.name]

    def target(self, name: str) -> TargetEntry:
        """The entry of one target.

        Raises:
            BundleError: if the graph was not built for it.
        """
        targets = self.entry.targets
        if name not in targets:
            present = ", ".join(sorted(targets)) or "none"
            raise BundleError(
                f"{self} has no target {name!r}; it has: {present}. Export it with --target {name}"
            )
        return targets[name]

    def read(self, target: str) -> "GraphContent":
        """The graph that `target` runs, once every file that it reads has been hashed.

        Raises:
            BundleError: if one is absent, unlisted or changed, or the graph is none.
        """
        content, files = self._content(target)
        for name in files:
            self.bundle.check(name)
        return GraphContent(content, files, self._fingerprint(target, files))

    def fingerprint(self, target: str) -> str:
        """Hash of what `target` runs: equal for two graphs that compute the same, bit for bit.

        Raises:
            BundleError: if the graph is absent or changed, or reads a file that is not listed.
        """
        return self._fingerprint(target, self._content(target)[1])

    def _content(self, target: str) -> tuple[bytes, tuple[str, ...]]:
        """The bytes of the graph, and the files that it reads weights from."""
        path = self.target(target).path
        content = self.bundle.read(path)
        try:
            return content, external_files(content)
        except DamagedError as error:
            raise BundleError(
                f"{self.root / path} is no ONNX graph: {error}. Export the bundle again."
            ) from error

    def _fingerprint(self, target: str, files: Sequence[str]) -> str:
        digest = hashlib.sha256()
        for name in (self.target(target).path, *files):
            digest.update(f"{name} {self.bundle.record(name).sha256}\n".encode())
        return digest.hexdigest()

    def beside(self, target: str, file: str) -> str:
        """The path of a file called as `file` is that lies beside the graph of a target."""
        return str(PurePosixPath(self.target(target).path).with_name(PurePosixPath(file).name))


@dataclass(frozen=True)
class GraphContent:
    """A graph of a bundle as it was read: its bytes, the files of its weights, and their hash."""

    graph: bytes
    files: tuple[str, ...]
    fingerprint: str


def _inside(root: Path, name: str) -> Path:
    """Where the file `name` of the bundle at `root` lies, links followed only within it."""
    foreign = PureWindowsPath(name)
    outside = foreign.drive or foreign.root or ".." in foreign.parts or not foreign.parts
    path = root / PurePosixPath(name)
    try:
        outside = outside or not path.resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long, a null
        outside = True
    if outside:
        raise BundleError(
            f"{root / FILE_NAME} names {name!r}, which leaves the bundle. Paths must be relative "
            "and stay inside. Do not use this bundle unless you know its origin."
        )
    return path
