"""A model repository of Triton Inference Server, written from a bundle.

    repository/NAME/config.pbtxt           sequence batching, inputs and outputs
    repository/NAME/1/model.py             the model over streams, for the Python backend
    repository/NAME/1/bundle/              a copy of the bundle
    repository/NAME-onnxruntime/           on request: the graph alone, its states carried by Triton

A bundle may be such a model itself, with config.pbtxt and 1/model.py in its own folder.

Source: triton-inference-server/server, docs/user_guide/model_repository.md.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from intaglio.errors import BundleError, OptionError, reason
from intaglio.places import require_writable
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.engines import ORT
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.streaming.bank import width_of
from intaglio.whole_files import replacing_folder

from . import model_config
from .model_config import Serving
from .triton_model import BUNDLE

VERSION = "1"
CONFIG = "config.pbtxt"
PLAIN = "-onnxruntime"  # after the name of the model, where Triton carries the states
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

MODEL = '''\
"""The bundle beside this file or around it, for Triton's Python backend.

That backend's Python has intaglio installed.
"""

from intaglio.runtime.serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_repository(
    bundle: str | os.PathLike[str] | Bundle,
    out: str | os.PathLike[str],
    serving: Serving,
    *,
    name: str | None = None,
    implicit_state: bool = False,
    force: bool = False,
) -> list[Path]:
    """Write a bundle's models into the model repository `out`, beside those that it has.

    Args:
        bundle: the folder that `intaglio export` wrote; it is copied.
        out: the repository.
        serving: how the server runs it.
        name: of the model; the name of the bundle's folder otherwise.
        implicit_state: whether to write a plain model of ONNX Runtime as well.
        force: whether to replace models of these names.

    Returns:
        The folders of the models.

    Raises:
        BundleError: if the bundle is damaged, cannot be streamed, or has what Triton cannot carry.
        OptionError: if the name is none, or is taken.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    name = opened.root.name if name is None else name
    _check_name(name, "Give one with --name.")
    out = Path(out)
    if out.resolve().is_relative_to(opened.root):
        raise OptionError(f"The repository {out} lies within the bundle. Give another folder.")
    graph = opened.graph()
    entry = graph.entry
    config = _of_streams(name, entry, serving)
    content: dict[str, tuple[str, Callable[[Path], None]]] = {
        name: (config, lambda to: _streams(opened, to))
    }
    if implicit_state:
        plain = f"{name}{PLAIN}"
        config = model_config.of_implicit_state(plain, entry, graph.entry.states_of(ORT), serving)
        content[plain] = config, lambda to: _plain(opened, to)
    for each in content:
        _check_place(out / each, force=force)
    for file in opened.manifest.files:
        opened.check(file)
    return [_write(out / each, config, fill) for each, (config, fill) in content.items()]


def add_model(folder: Path, entry: GraphEntry, name: str) -> None:
    """Make the bundle that is being written in `folder` a model, as `Serving` has it.

    Args:
        folder: of the bundle; as `name`, it goes into a model repository.
        entry: of the graph that is served.
        name: the last part of the folder's path once it is in its place.

    Raises:
        BundleError: if the graph has no sequences, or has what Triton cannot carry.
        OptionError: if the name is none of a model.
    """
    _check_name(name, "Name the bundle's folder so.")
    config = _of_streams(name, entry, Serving())
    (folder / VERSION).mkdir()
    (folder / VERSION / "model.py").write_text(MODEL, encoding="utf-8")
    (folder / CONFIG).write_text(config, encoding="utf-8")


def _check_name(name: str, advice: str) -> None:
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"{name!r} is no name for a model: it should be letters, digits, '_', '-' and '.'. "
            f"{advice}"
        )


def _of_streams(name: str, entry: GraphEntry, serving: Serving) -> str:
    """The config of a model over streams, of as many rows as the graph takes."""
    if entry.whole:
        raise BundleError(
            "Each call of this bundle takes whole inputs, so it has no sequences to batch."
        )
    if entry.limits.batch is not None:
        serving = replace(serving, rows=width_of(entry, entry.states, serving.rows, None))
    return model_config.of_streams(name, entry, serving)


def _check_place(place: Path, *, force: bool) -> None:
    """Hold a place to be free, or with `force` a model, and to be one where a folder can be."""
    if place.exists() and not force:
        raise OptionError(f"{place} exists. Replace it with --force, or give --name.")
    if place.exists() and not (place / CONFIG).is_file():
        raise OptionError(
            f"{place} exists and is no model, so it is not replaced. Move it away, or give --name."
        )
    require_writable(place)


def _write(place: Path, config: str, fill: Callable[[Path], None]) -> Path:
    """A model's folder, which is there whole or not at all."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(place) as draft:
            (draft / VERSION).mkdir()
            fill(draft / VERSION)
            (draft / CONFIG).write_text(config, encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{place} cannot be written: {reason(error)}.") from error
    return place


def _streams(bundle: Bundle, folder: Path) -> None:
    bundle.copy_to(folder / BUNDLE)
    (folder / "model.py").write_text(MODEL, encoding="utf-8")


def _plain(bundle: Bundle, folder: Path) -> None:
    """The graph and its weights, whose locations are relative to the bundle's root."""
    target = bundle.graph().target(ORT)
    shutil.copyfile(bundle.root / target.path, folder / "model.onnx")
    for file in target.data:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.root / file, folder / file)
