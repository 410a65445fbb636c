"""Finished layers on disk, so that a run that was killed goes on where it stopped.

What a layer becomes depends on the graph, the calibration data, the options, and the layers before
it; its file is named by the hash of all of that, and appears whole or not at all.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.version import __version__
from intaglio.whole_files import replacing

Array = npt.NDArray[Any]


class Work:
    """Results of one run after the other; `folder` None keeps nothing."""

    def __init__(self, folder: Path | None, model: ir.Model, facts: Mapping[str, Any]) -> None:
        self._folder = folder
        self._key = ""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._key = _digest(model, facts)

    def advance(self, facts: Mapping[str, Any]) -> None:
        """Go on to the next result, which depends on `facts` and on all before it."""
        text = json.dumps(facts, sort_keys=True)
        self._key = hashlib.sha256(f"{self._key} {text}".encode()).hexdigest()

    def load(self) -> dict[str, Array] | None:
        """The result that an earlier run left, None if there is none."""
        if self._folder is None or not self._path.exists():
            return None
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, zipfile.BadZipFile):
            return None  # another program's, or damaged: it is made again

    def save(self, arrays: Mapping[str, Array]) -> None:
        """Keep a result."""
        if self._folder is None:
            return
        with replacing(self._path) as draft, draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())

    @property
    def _path(self) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._key[:24]}.npz"


def _digest(model: ir.Model, facts: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([__version__, facts], sort_keys=True).encode())
    for node in model.graph:
        digest.update(ir.serde.serialize_node(node).SerializeToString(deterministic=True))
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        digest.update(f"{name} {tensor.dtype if tensor else ''}".encode())
        if tensor is not None:
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()
