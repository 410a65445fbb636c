"""`manifest.json`: what a bundle holds, how it was made, and how its step graph is fed.

`manifest.schema.json` beside this file says which keys there are; the classes here give them
types.  Writing is deterministic: equal manifests are equal byte for byte.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

from intaglio.errors import BundleError
from intaglio.runtime.contradictions import contradictions
from intaglio.runtime.schema import faults
from intaglio.state import StateSpec
from intaglio.version import __version__

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"  # `TargetEntry.parity`
LARGEST = 64 << 20  # bytes


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the source; `dtype` is numpy's name, `shape` ints and symbols.

    An input with a `default` may be left out of a step: it is then filled with that.
    `below` bounds an input that picks rows of a table, as token ids do: from 0 to below it.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    default: float | None = None
    below: int | None = None


@dataclass(frozen=True, kw_only=True)
class TargetEntry:
    """What one engine runs: the graph at `path`, its external tensors in the files `data`.

    Paths are relative to the bundle, and so are the locations of external tensors in the graph.
    `parity` is "passed", "failed", or "not run" with the reason in brackets; `dtype` is what the
    graph computes in and keeps caches in, as numpy calls it.
    """

    path: str
    opset: int
    data: tuple[str, ...] = ()
    parity: str = NOT_RUN
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The tokens that the position tables allow, and a fixed batch; None where free."""

    max_context: int | None = None
    batch: int | None = None


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

    `source` holds name, sha256 and format, and model and config where known; `passes` the records
    of the passes in order; `inputs` and `outputs` are the source's own, without states and without
    past_length; `past_length` says whether the graph takes that; `files` maps every file of the
    bundle but the manifest and report.json, by its path with forward slashes.  `whole` says that
    each call takes a whole sequence, as an encoder does, and nothing is carried to the next.
    `text` holds what turns text into tokens, empty where the source had no tokenizer:
    ``tokenizer`` and ``template``, paths of files; ``eos``, the tokens that end a text.
    """

    source: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    past_length: bool
    targets: Mapping[str, TargetEntry]
    files: Mapping[str, FileRecord]
    limits: Limits = field(default_factory=Limits)
    whole: bool = False
    text: Mapping[str, Any] = field(default_factory=dict)
    passes: tuple[Mapping[str, Any], ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    intaglio: str = __version__

    def states_of(self, target: str) -> tuple[StateSpec, ...]:
        """The states as the graph of a target has them."""
        return tuple(spec.stored_in(self.targets[target].dtype) for spec in self.states)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values.

        Raises:
            BundleError: if a value does not fit the schema.
        """
        entry = {
            "schema_version": SCHEMA_VERSION,
            "intaglio": self.intaglio,
            "source": dict(self.source),
            "passes": list(self.passes),
            "recipe": dict(self.recipe),
            "inputs": [_tensor_to_json(spec) for spec in self.inputs],
            "outputs": [_tensor_to_json(spec) for spec in self.outputs],
            "states": [spec.to_json() for spec in self.states],
            "past_length": self.past_length,
            "whole": self.whole,
            "text": dict(self.text),
            "limits": asdict(self.limits),
            "targets": {
                name: {**asdict(target), "data": list(target.data)}
                for name, target in self.targets.items()
            },
            "parity": dict(self.parity),
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
        _check(entry, name)
        return cls(
            intaglio=entry["intaglio"],
            source=entry["source"],
            passes=tuple(entry["passes"]),
            recipe=entry["recipe"],
            inputs=tuple(_tensor_from_json(spec) for spec in entry["inputs"]),
            outputs=tuple(_tensor_from_json(spec) for spec in entry["outputs"]),
            states=tuple(StateSpec.from_json(spec) for spec in entry["states"]),
            past_length=entry["past_length"],
            whole=entry.get("whole", False),
            text=entry.get("text", {}),
            limits=Limits(**entry["limits"]),
            targets={
                key: TargetEntry(**{**target, "data": tuple(target["data"])})
                for key, target in entry["targets"].items()
            },
            parity=entry["parity"],
            versions=entry["versions"],
            files={key: FileRecord(**record) for key, record in entry["files"].items()},
        )

    def save(self, path: str | Path) -> None:
        """Write to `path`, which holds the old manifest or the new one at every instant."""
        path = Path(path)
        text = json.dumps(
            self.to_json(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
        )
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with draft.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())  # so that a crash cannot put the name before the content
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the manifest at `path`.

        Raises:
            BundleError: if it is absent, no JSON, of a newer schema, or does not fit the schema.
        """
        path = Path(path)
        try:
            if path.stat().st_size > LARGEST:
                raise BundleError(f"{path} has more than {LARGEST} bytes, which no manifest needs.")
            entry = json.loads(
                path.read_text(encoding="utf-8"),
                object_pairs_hook=_unique,
                parse_constant=_refuse_constant,
            )
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}.") from error
        except RecursionError as error:
            raise BundleError(f"{path} is nested too deeply for a manifest.") from error
        except ValueError as error:
            raise BundleError(f"{path} is not JSON: {error}. Export the bundle again.") from error
        return cls.from_json(entry, str(path))


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
    if isinstance(version, int) and version > SCHEMA_VERSION:
        writer = entry.get("intaglio", "a newer version")
        raise BundleError(
            f"{name} has schema version {version}; intaglio {__version__} reads versions up to "
            f"{SCHEMA_VERSION}. It was written by intaglio {writer}: install that or a later one."
        )


def _check(entry: Any, name: str) -> None:
    found = list(faults(entry, schema(), schema())) or list(contradictions(entry))
    if found:
        more = f" ({len(found) - 3} more)" if len(found) > 3 else ""
        raise BundleError(
            f"{name} is not a valid manifest: {' '.join(found[:3])}{more} "
            "Export the bundle again, or restore the file."
        )


def _tensor_to_json(spec: TensorSpec) -> dict[str, Any]:
    entry = {**asdict(spec), "shape": list(spec.shape)}
    return {key: value for key, value in entry.items() if value is not None}


def _tensor_from_json(entry: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(**{**entry, "shape": tuple(entry["shape"])})
