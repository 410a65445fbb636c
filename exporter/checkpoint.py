"""Read weights out of the files that people have, without running code from them.

A file is told by its first bytes, its name decides nothing but a message.  Two containers hold
weights: what ``torch.save`` writes (read with ``weights_only=True``) and safetensors.  Within the
first, a state dict stands alone, under one of `STATE_KEYS`, or in a checkpoint of ours, which
also names its model:

    {"format": "intaglio.checkpoint/1", "model": "llama", "config": {...}, "state_dict": {...}}
"""

import argparse
import collections
import hashlib
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.models import FORMAT

# Where a state dict is looked for, in this order.
STATE_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "ema_state_dict",
    "ema",
)

# Plain data that training scripts store beside the weights; building them runs none of their code.
HARMLESS: list[Any] = [
    argparse.Namespace,
    collections.defaultdict,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before PyTorch 1.6


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file holds: its weights, and its model and config where it names them."""

    path: Path
    format: str
    sha256: str
    tensors: Mapping[str, Any]
    model: str | None = None
    config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path, *, key: str | None = None) -> Checkpoint:
    """Read `path`; `key` (dotted) says where its state dict is, None finds it.

    Raises:
        SourceError: if the file is missing, empty, truncated, of a kind that is not read, would
            run code, or holds no state dict.
    """
    kind = _kind(path)
    content = _read_safetensors(path) if kind == "safetensors" else _read_torch(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(content, Mapping) and "format" in content and "state_dict" in content:
        return _named(path, content, sha256)
    where, tensors = _state_at(path, content, key) if key else _find_state(path, content)
    return Checkpoint(
        path=path,
        format=kind,
        sha256=sha256,
        tensors=tensors,
        notes=_note_alternatives(path, content, where) if not key else (),
    )


def _kind(path: Path) -> str:
    """Name the container by its first bytes: safetensors, torch or torch-legacy."""
    if not path.exists():
        raise SourceError(f"{path}: there is no such file.")
    if path.is_dir():
        raise SourceError(f"{path} is a directory. {_directory_advice(path)}")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise SourceError(f"{path} is empty: writing it was cut short. Save or copy it again.")
    if path.suffix in (".onnx", ".pt2"):
        raise SourceError(
            f"{path}: {path.suffix} files are not supported yet as a source. "
            "Export from the checkpoint (.pt, .pth, .bin or .safetensors) and its model instead."
        )
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
        return "torch"
    if head.startswith(LEGACY_MAGIC):
        return "torch-legacy"
    if path.suffix == ".safetensors" or head[8:10] in (b'{"', b"{ "):
        return "safetensors"
    if head.startswith(b"\x80") and head[1] <= pickle.HIGHEST_PROTOCOL:
        raise SourceError(
            f"{path} is a plain pickle, which can run any code when it is loaded. It was not "
            f"loaded. {SAVE_ADVICE}"
        )
    raise SourceError(
        f"{path} is neither a file of torch.save nor safetensors (it begins with {head[:8]!r}). "
        "Give a checkpoint: .pt, .pth, .bin or .safetensors."
    )


SAVE_ADVICE = (
    "Where the model is trusted, save its weights alone, "
    "torch.save(model.state_dict(), 'weights.pt'), and say how it is built with --model "
    "NAME or --model package.module:factory."
)


def _directory_advice(path: Path) -> str:
    if (path / "manifest.json").exists():
        return "It looks like a bundle, which is exported already: try intaglio run or inspect."
    if (path / "config.json").exists():
        return (
            "Hugging Face directories are not supported yet: give one weights file "
            "(model.safetensors) and the module that it belongs to with --model."
        )
    return "Give the checkpoint file itself: .pt, .pth, .bin or .safetensors."


def _check_archive(path: Path) -> None:
    """Refuse zip archives that do not hold a pickled state dict."""
    if not zipfile.is_zipfile(path):
        raise SourceError(f"{path} is truncated: the end of its archive is missing. Copy it again.")
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise SourceError(
            f"{path} is a TorchScript archive, which is not a source: it holds compiled code. "
            f"{SAVE_ADVICE}"
        )
    if "archive_format" in names or "models/model.json" in names:
        raise SourceError(
            f"{path} is an exported program (.pt2), which is not supported yet as a source. "
            "Export from the checkpoint and its model instead."
        )
    if "data.pkl" not in names:
        raise SourceError(f"{path} is a zip archive, but not one that torch.save writes.")


def _read_torch(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = _unsafe_names(path, str(error))
        raise SourceError(
            f"{path} holds pickled objects{names}, not only tensors. Loading them can run any "
            f"code that the file's author chose, so nothing was loaded. {SAVE_ADVICE}"
        ) from error
    except Exception as error:
        # PyTorch raises whatever its reader stumbled over: RuntimeError, EOFError, KeyError, ...
        raise SourceError(
            f"{path} is truncated or damaged: {str(error).partition('. ')[0]}. Copy it again."
        ) from error


def _unsafe_names(path: Path, message: str) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, pickle.UnpicklingError):  # the legacy container
        names = re.findall(r"GLOBAL (\S+)", message)
    harmless = {
        f"{item.__module__}.{item.__qualname__}" for item in HARMLESS if hasattr(item, "mro")
    }
    shown = sorted(set(names) - harmless)[:4]
    return f" ({', '.join(shown)})" if shown else ""


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise SourceError(
            f"{path} is not a whole safetensors file ({error}). Copy it again."
        ) from error


def _named(path: Path, content: Mapping[str, Any], sha256: str) -> Checkpoint:
    """Read a checkpoint of ours, which names its model."""
    if content["format"] != FORMAT:
        raise SourceError(
            f"{path} is a checkpoint of the format {content['format']!r}; this version of "
            f"intaglio reads {FORMAT!r}."
        )
    model, config = content.get("model"), content.get("config")
    if not isinstance(model, str) or not isinstance(config, Mapping):
        raise SourceError(f"{path}: a checkpoint of the format {FORMAT!r} needs model and config.")
    if not _is_state(content["state_dict"]):
        raise SourceError(f"{path}: its state_dict is not a mapping of names to tensors.")
    return Checkpoint(
        path=path,
        format=FORMAT,
        sha256=sha256,
        tensors=content["state_dict"],
        model=model,
        config=config,
    )


def _is_state(content: object) -> bool:
    """Whether `content` maps names to values of which at least one is a tensor."""
    return (
        isinstance(content, Mapping)
        and all(isinstance(key, str) for key in content)
        and any(isinstance(value, Tensor) for value in content.values())
    )


def _states(
    content: object, where: tuple[str, ...] = ()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the state dicts under `STATE_KEYS`, in that order, at most two levels deep."""
    if not isinstance(content, Mapping):
        return
    nested = False
    for key in STATE_KEYS if len(where) < 2 else ():
        for found in _states(content.get(key), (*where, key)):
            nested = True
            yield found
    if not nested and _is_state(content):
        yield ".".join(where), content


def _find_state(path: Path, content: object) -> tuple[str, Mapping[str, Any]]:
    if isinstance(content, Tensor):
        raise SourceError(f"{path} holds a single tensor, not a state dict.")
    found = next(_states(content), None)
    if found is not None:
        return found
    if not isinstance(content, Mapping) or not content:
        raise SourceError(f"{path} holds {type(content).__name__!s}, not a state dict.")
    others = [str(key) for key, value in content.items() if _is_state(value)]
    advice = (
        f"Weights stand under {', '.join(map(repr, others))}: choose with --key."
        if others
        else "Save the weights with torch.save(model.state_dict(), 'weights.pt')."
    )
    raise SourceError(
        f"{path} has no state dict at its top or under {', '.join(STATE_KEYS)} "
        f"(it has {', '.join(map(str, list(content)[:8]))}). {advice}"
    )


def _state_at(path: Path, content: object, key: str) -> tuple[str, Mapping[str, Any]]:
    value: Any = content
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            has = ", ".join(map(str, list(value)[:8])) if isinstance(value, Mapping) else "no keys"
            raise SourceError(f"{path} has nothing under --key {key!r}: {part!r} is not in {has}.")
        value = value[part]
    if not _is_state(value):
        raise SourceError(f"{path}: what stands under --key {key!r} is not a state dict.")
    return key, value


def _note_alternatives(path: Path, content: object, where: str) -> tuple[str, ...]:
    """Say which state dict was taken where the file holds several."""
    others = [other for other, _ in _states(content) if other != where]
    if not others:
        return ()
    return (f"{path.name}: weights taken from {where!r}, not from {', '.join(map(repr, others))}.",)
