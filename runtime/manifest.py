"""`manifest.json`: what a bundle holds, how it was made, and how its graphs are fed.

`manifest.schema.json` beside this file says which keys there are; the classes here give them
types.  Writing is deterministic: equal manifests are equal byte for byte.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

from intaglio.errors import BundleError
from intaglio.runtime.contradictions import contradictions
from intaglio.runtime.graph_entry import MAIN, GraphEntry
from intaglio.runtime.manifest_versions import SCHEMA_VERSION, upgraded
from intaglio.runtime.plain_files import require_ordinary
from intaglio.runtime.schema import faults
from intaglio.version import __version__
from intaglio.whole_files import replacing

FILE_NAME = "manifest.json"
LARGEST = 64 << 20  # bytes


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of a file."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Record of the file at `path`, read in pieces."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return cls(digest.hexdigest(), file.tell())


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of one bundle.

    `graphs` holds the graphs by name, first the one called main; `source` name, sha256 and
    format, and model and config where known; `files` maps every file of the bundle but the
    manifest and report.json, by its path with forward slashes.
    `text` holds what turns text into tokens, empty where the source had no tokenizer:
    ``tokenizer`` and ``template``, paths of files; ``eos``, the tokens that end a text.
    """

    source: Mapping[str, Any]
    graphs: Mapping[str, GraphEntry]
    files: Mapping[str, FileRecord]
    text: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    intaglio: str = __version__

    def __repr__(self) -> str:
        """In short: ``Manifest('kws.pt', main, encode)``."""
        return f"Manifest({self.source.get('name', '')!r}, {', '.join(self.graphs)})"

    @property
    def main(self) -> GraphEntry:
        """The graph that a session steps unless it is told otherwise."""
        return self.graphs[MAIN]

    def with_graph(self, name: str, entry: GraphEntry) -> Self:
        """The manifest with `entry` as the graph of this name."""
        return replace(self, graphs={**self.graphs, name: entry})

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values.

        Raises:
            BundleError: if a value does not fit the schema.
        """
        entry = {
            "schema_version": SCHEMA_VERSION,
            "intaglio": self.intaglio,
            "source": dict(self.source),
            "recipe": dict(self.recipe),
            "text": dict(self.text),
            "graphs": {name: graph.to_json() for name, graph in self.graphs.items()},
            "versions": dict(self.versions),
            "files": {name: asdict(record) for name, record in self.files.items()},
        }
        _check(entry, "the manifest to be written")
        return entry

    @classmethod
    def from_json(cls, entry: Any, name: str = FILE_NAME) -> Self:
        """Back from JSON values; `name` is the file that errors speak of.

        Raises:
            BundleError: if `entry` is of a newer schema or does not fit the schema.
        """
        _check_version(entry, name)
        entry = upgraded(entry)
        _check(entry, name)
        return cls(
            intaglio=entry["intaglio"],
            source=entry["source"],
            recipe=entry["recipe"],
            text=entry.get("text", {}),
            graphs={
                key: GraphEntry.from_json(graph) for key, graph in _main_first(entry["graphs"])
            },
            versions=entry["versions"],
            files={key: FileRecord(**record) for key, record in entry["files"].items()},
        )

    def save(self, path: str | Path) -> None:
        """Write to `path`, which holds the old manifest or the new one at every instant."""
        path = Path(path)
        text = json.dumps(
            self.to_json(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
        )
        with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())  # so that a crash cannot put the name before the content

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the manifest at `path`.

        Raises:
            BundleError: if it is absent, no JSON, of a newer schema, or does not fit the schema.
        """
        return cls.parse(cls.read(path), str(path))

    @staticmethod
    def read(path: str | Path) -> bytes:
        """The bytes of the manifest at `path`.

        Raises:
            BundleError: if it is absent, or larger than any.
        """
        path = Path(path)
        try:
            if require_ordinary(path) > LARGEST:
                raise BundleError(f"{path} has more than {LARGEST} bytes, which no manifest needs.")
            return path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}.") from error

    @classmethod
    def parse(cls, content: bytes, name: str = FILE_NAME) -> Self:
        """The manifest that `content` is; `name` is the file that errors speak of.

        Raises:
            BundleError: if it is no JSON, of a newer schema, or does not fit the schema.
        """
        try:
            entry = json.loads(
                content.decode("utf-8"),
                object_pairs_hook=_unique,
                parse_constant=_refuse_constant,
            )
        except RecursionError as error:
            raise BundleError(f"{name} is nested too deeply for a manifest.") from error
        except ValueError as error:
            raise BundleError(f"{name} is not JSON: {error}. Export the bundle again.") from error
        return cls.from_json(entry, name)


def _main_first(graphs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Graphs in the order in which they are told: the file has them sorted by name."""
    return sorted(graphs.items(), key=lambda graph: (graph[0] != MAIN, graph[0]))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; readers disagree about a key that comes twice, so none may."""
    entry = dict(pairs)
    if len(entry) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in entry if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} comes twice in one object")
    return entry


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


@cache
def schema() -> Mapping[str, Any]:
    """The JSON Schema of the manifest."""
    text = Path(__file__).with_name("manifest.schema.json").read_text(encoding="utf-8")
    loaded: Mapping[str, Any] = json.loads(text)
    return loaded


def _check_version(entry: Any, name: str) -> None:
    version = entry.get("schema_version") if isinstance(entry, dict) else None
    if not isinstance(version, int) or SCHEMA_VERSION - 1 <= version <= SCHEMA_VERSION:
        return
    writer = entry.get("intaglio", "another version")
    advice = "install that or a later one" if version > SCHEMA_VERSION else "export it again"
    raise BundleError(
        f"{name} has schema version {version}; intaglio {__version__} reads versions "
        f"{SCHEMA_VERSION - 1} and {SCHEMA_VERSION}. It was written by intaglio {writer}: {advice}."
    )


def _check(entry: Any, name: str) -> None:
    found = list(faults(entry, schema(), schema())) or list(contradictions(entry))
    if found:
        more = f" ({len(found) - 3} more)" if len(found) > 3 else ""
        raise BundleError(
            f"{name} is not a valid manifest: {' '.join(found[:3])}{more} "
            "Export the bundle again, or restore the file."
        )
