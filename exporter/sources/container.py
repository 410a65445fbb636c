"""Open the containers that hold weights, and refuse every other file by what it is.

A file is told by its first bytes, its name decides nothing but a message.  Two containers hold
weights: what ``torch.save`` writes, read with ``weights_only=True``, and safetensors.
"""

import argparse
import collections
import contextlib
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from intaglio.errors import SourceError

from . import foreign
from .untrusted import archive_names, read_head

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

SAVE_ADVICE = (
    "Where the model is trusted, save its weights alone, "
    "torch.save(model.state_dict(), 'weights.pt'), and say how it is built with --model "
    "NAME or --model package.module:factory."
)

PICKLE_ADVICE = (
    f"{SAVE_ADVICE} Or allow its code to run with --allow-pickle, and say with --import-from DIR "
    "where its classes lie."
)


def read_container(path: Path, *, allow_pickle: bool = False) -> tuple[str, object]:
    """Return the kind of the file, ``safetensors``, ``torch`` or ``torch-legacy``, and its content.

    With `allow_pickle` also what holds pickled objects is read, which runs their author's code.

    Raises:
        SourceError: if the file is missing, empty, truncated, of a kind that is not read, or would
            run code; none of it is run.
    """
    kind = _kind(path)
    if kind == "safetensors":
        return kind, _read_safetensors(path)
    if kind == "pickle" and allow_pickle:
        with path.open("rb") as file:
            return kind, _unpickle(path, lambda: pickle.load(file))  # noqa: S301  it was allowed
    if kind == "pickle" and (said := foreign.pickled(path)):
        raise SourceError(f"{path} {said}")
    if kind == "pickle":
        raise SourceError(
            f"{path} is a plain pickle, which can run any code when it is loaded. It was not "
            f"loaded. {PICKLE_ADVICE}"
        )
    return kind, _read_torch(path, allow_pickle=allow_pickle)


def _kind(path: Path) -> str:
    """Name the container by its first bytes: safetensors, torch or torch-legacy."""
    if path.is_dir():
        if said := foreign.folder(path):
            raise SourceError(f"{path} {said}")
        raise SourceError(f"{path} is a directory. {_directory_advice(path)}")
    head = read_head(path)
    if said := foreign.named(path, head):
        raise SourceError(f"{path} {said}")
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
        return "torch"
    if head.startswith(LEGACY_MAGIC):
        return "torch-legacy"
    if path.suffix == ".safetensors" or head[8:10] in (b'{"', b"{ "):
        return "safetensors"
    if head.startswith(b"\x80") and head[1] <= pickle.HIGHEST_PROTOCOL:
        return "pickle"
    raise SourceError(
        f"{path} is neither a file of torch.save nor safetensors (it begins with {head[:8]!r}). "
        "Give a checkpoint: .pt, .pth, .bin or .safetensors."
    )


def _directory_advice(path: Path) -> str:
    if (path / "manifest.json").exists():
        return "It looks like a bundle, which is exported already: try intaglio run or inspect."
    return (
        "Give a checkpoint, .pt, .pth, .bin or .safetensors, or a Hugging Face directory, which "
        "has a config.json beside its weights."
    )


def _check_archive(path: Path) -> None:
    """Refuse zip archives that do not hold a pickled state dict."""
    with contextlib.suppress(zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        if said := foreign.archive(zipfile.ZipFile(path).namelist()):
            raise SourceError(f"{path} {said}")
    names = [name.partition("/")[2] for name in archive_names(path)]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise SourceError(
            f"{path} is a TorchScript archive, which is not a source: it holds compiled code. "
            f"{SAVE_ADVICE}"
        )
    if "data.pkl" not in names:
        raise SourceError(f"{path} is a zip archive, but not one that torch.save writes.")


def _read_torch(path: Path, *, allow_pickle: bool) -> object:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if allow_pickle:
            return _unpickle(path, lambda: torch.load(path, map_location="cpu", weights_only=False))
        names = _unsafe_names(path, str(error))
        raise SourceError(
            f"{path} holds pickled objects{names}, not only tensors. Loading them can run any "
            f"code that the file's author chose, so nothing was loaded. {PICKLE_ADVICE}"
        ) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SourceError:
    """PyTorch raises whatever its reader stumbled over: RuntimeError, EOFError, KeyError, ..."""
    said = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
    if isinstance(error, MemoryError) or "allocate memory" in said:
        said = "it asks for more memory than there is"
    return SourceError(f"{path} is truncated or damaged: {said or error!r}. Copy it again.")


def _unpickle(path: Path, load: Callable[[], object]) -> object:
    """Load pickled objects, with the classes that they need."""
    try:
        return load()
    except (ImportError, AttributeError) as error:
        raise SourceError(
            f"{path} needs code that is not found ({error}). Say where it lies: --import-from DIR."
        ) from error
    except Exception as error:
        raise SourceError(f"{path} cannot be unpickled: {type(error).__name__}: {error}") from error


def _unsafe_names(path: Path, message: str) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001  the legacy container, or a damaged one
        names = re.findall(r"GLOBAL (\S+)", message)
    harmless = {
        f"{item.__module__}.{item.__qualname__}" for item in HARMLESS if hasattr(item, "mro")
    }
    shown = sorted(set(names) - harmless)[:4]
    return f" ({', '.join(shown)})" if shown else ""


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # SafetensorError, and KeyError for a type that PyTorch lacks
        raise SourceError(
            f"{path} is not a whole safetensors file ({error}). Copy it again."
        ) from error
