"""What a Hugging Face directory holds: its config, and where its weights lie.

Weights are one file or shards with an index, ``model.safetensors`` before ``pytorch_model.bin``;
last comes ``true_quant.pth``, which decoupleQ leaves beside a config.
Files are read here and handed to the library, which is never given a path to look things up at;
pickled weights go through `exporter.container` and run no code.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
from torch import Tensor

from intaglio.errors import SourceError, reason
from intaglio.exporter.sources.container import read_container
from intaglio.exporter.sources.low_bit_formats import decoupleq
from intaglio.runtime.plain_files import read_json

CONFIG = "config.json"
SINGLE = (
    "model.safetensors",
    "pytorch_model.bin",
    decoupleq.FILE,
)  # in the order in which they are preferred
INDEX = ".index.json"
FORMAT = "huggingface/"  # what the formats of these sources begin with


@dataclass(frozen=True, kw_only=True)
class Directory:
    """A directory with a config and weights.

    `config` is what config.json says, `weights` are the files that hold tensors by name, `lists`
    by what config.json calls them further files that hold tensors.
    """

    path: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    lists: Mapping[str, Path] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of the lines that ``sha256sum config.json WEIGHTS... LISTS...`` prints."""
        lines = ""
        for path in (self.path / CONFIG, *self.weights, *self.lists.values()):
            with path.open("rb") as file:
                lines += f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n"
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def format(self) -> str:
        """What kind of files the weights lie in."""
        return FORMAT + self.weights[0].suffix.removeprefix(".")

    def names(self) -> list[str]:
        """Names of the tensors, of files of safetensors without reading those.

        Raises:
            SourceError: as `tensors` does.
        """
        return [name for path in self.weights for name in _names(path)]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in the files; those of safetensors are mapped, not copied.

        Raises:
            SourceError: if a file is truncated, of another kind than its name says, or holds
                a name twice or something else than tensors.
        """
        found: dict[str, Tensor] = {}
        for path in self.weights:
            for name, value in _read(path):
                if name in found:
                    raise SourceError(f"{self.path} holds {name!r} in two of its weight files.")
                if not isinstance(value, Tensor):
                    raise SourceError(f"{path}: {name!r} is no tensor but {type(value).__name__}.")
                found[name] = value
        for name, path in self.lists.items():
            found |= _read_beside(path, name)
        return found

    def beside(self, names: Collection[str]) -> "Directory":
        """With the files that these values of its config name, wherever they lay when it was made.

        Raises:
            SourceError: if one is not beside it, or its name is no name.
        """
        lists = {}
        for name in names:
            said = self.config.get(name)
            if said is None:
                continue
            file = self.path / PurePosixPath(str(said).replace("\\", "/")).name
            if not isinstance(said, str) or not file.is_file():
                raise SourceError(
                    f"{self.path / CONFIG} names the file {said!r} in {name}, and {self.path} has "
                    "none of that name. Copy it there."
                )
            lists[name] = file
        return replace(self, lists=lists)


def is_directory(path: Path) -> bool:
    """Whether `path` is meant as a Hugging Face directory: it has a config, or weights at least."""
    names = (CONFIG, *SINGLE, *(name + INDEX for name in SINGLE))
    return path.is_dir() and any((path / name).exists() for name in names)


def read_directory(path: Path) -> Directory:
    """Read the config at `path` and find the weights that belong to it.

    Raises:
        SourceError: if config or weights are missing or cannot be read, or a shard is missing.
    """
    config = _json(path / CONFIG)
    return Directory(path=path, config=config, weights=tuple(_find_weights(path)))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SourceError(
            f"{path.parent} has no {path.name}, which says what its weights are of. Copy it from "
            "where they came from, or give the weights file itself with --model."
        )
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is not valid JSON: {error}. Copy it again.") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} is no table of keys and values.")
    return values


def _find_weights(path: Path) -> list[Path]:
    for name in SINGLE:
        if (path / name).is_file():
            return [path / name]
        if (path / (name + INDEX)).is_file():
            return _shards(path / (name + INDEX))
    others = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", ".bin", ".gguf"))
    has = f"it has {', '.join(others[:6])}" if others else "no weights are there at all"
    raise SourceError(
        f"{path} has none of {', '.join(SINGLE)} or an index of shards ({has}). "
        "Download the weights, or save the model there with save_pretrained."
    )


def _shards(index: Path) -> list[Path]:
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise SourceError(f"{index} has no weight_map, which says where each tensor lies.")
    names = sorted({str(name) for name in places.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise SourceError(f"{index} names {outside[0]!r}, which is no file beside it.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise SourceError(
            f"{index.parent} lacks {len(missing)} of the {len(names)} files that {index.name} "
            f"names: {', '.join(missing[:6])}. Download them."
        )
    return [index.parent / name for name in names]


def _read(path: Path) -> Iterator[tuple[str, object]]:
    if path.suffix != ".safetensors":
        _, content = read_container(path)
        if not isinstance(content, Mapping):
            raise SourceError(f"{path} holds {type(content).__name__}, not tensors by name.")
        yield from content.items()
        return
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                yield name, file.get_tensor(name)
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _read_beside(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a further file: one as ``NAME``, a list or a state dict as ``NAME.k``."""
    _, content = read_container(path)
    if isinstance(content, Tensor):
        return {name: content}
    named = dict(enumerate(content)) if isinstance(content, list) else content
    held: dict[Any, Any] = dict(named) if isinstance(named, Mapping) else {}
    if not held or not all(isinstance(each, Tensor) for each in held.values()):
        raise SourceError(f"{path} holds no tensors, as {name} of {CONFIG} says it does.")
    return {f"{name}.{place}": each for place, each in held.items()}


def _names(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return [name for name, _ in _read(path)]
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SourceError:
    said = reason(error) if isinstance(error, OSError) else error
    return SourceError(f"{path} is not a whole safetensors file ({said}). Copy it again.")


def stored_bytes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of the tensors by their type."""
    sizes: defaultdict[str, int] = defaultdict(int)
    for tensor in tensors.values():
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return dict(sizes)
