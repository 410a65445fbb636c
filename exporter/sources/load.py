"""Load a source: what a path holds decides which kind it is, and each kind has its file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from intaglio.exporter.options.loading import Config, LoadOptions

from .kinds import (
    exported_program as program,
)
from .kinds import (
    huggingface_directory as huggingface,
)
from .kinds import (
    module as modules,
)
from .kinds import (
    onnx_file as graph,
)
from .kinds import (
    weights_file as weights,
)
from .source import Source

Kind = tuple[Callable[[Path], bool], Callable[[Path, LoadOptions], Source]]

KINDS: tuple[Kind, ...] = (
    (huggingface.fits, huggingface.load),
    (program.fits, program.load),
    (graph.fits, graph.load),
)
"""How to tell each kind of source, the first that fits; all other paths are files of weights."""


def load_source(
    path: str | Path | nn.Module | ExportedProgram,
    *,
    model: str | None = None,
    config: Config | None = None,
    key: str | None = None,
    import_from: Sequence[str | Path] = (),
    inputs: Mapping[str, Any] | str | Path | None = None,
    axes: Mapping[str, Sequence[int | str]] | None = None,
    allow_code: bool = False,
    allow_pickle: bool = False,
) -> Source:
    """Load a trained model and what it takes to trace it.

    Args:
        path: a file of ``torch.save``, safetensors, ``torch.export.save`` or ONNX, a Hugging Face
            directory, or a module or program in memory.
        model: a model of `intaglio.models`, or ``package.module:factory``: naming a factory
            is consent to run its code.  Needed unless the checkpoint names its model.
        config: what the model or factory is built with: a mapping, or a JSON or TOML file.
        key: where the file holds the state dict, if it holds several; dotted.
        import_from: folders in which the factory's module is looked for first.
        inputs: example inputs by name, ``[batch, time, ...]`` or ``[batch]`` each: tensors, arrays,
            or an ``.npz`` file.  Needed where the inputs are not token ids alone.
        axes: the dimensions of inputs that are laid out otherwise, ``batch`` and ``time`` by name:
            ``{"mel": ("batch", 80, "time")}``.
        allow_code: run a factory that the checkpoint names, not the user.
        allow_pickle: load pickled objects, which runs whatever code the file's author chose.

    Raises:
        SourceError: if the file, the model or the config cannot be read, or do not fit together.
        OptionError: if an option says nothing about a source of this kind.
    """
    options = LoadOptions(
        model=model,
        config=config,
        key=key,
        import_from=import_from,
        inputs=inputs,
        axes=axes,
        allow_code=allow_code,
        allow_pickle=allow_pickle,
    )
    if isinstance(path, nn.Module):
        return modules.in_memory(path, options)
    if isinstance(path, ExportedProgram):
        return program.in_memory(path, options)
    load = next((load for fits, load in KINDS if fits(Path(path))), weights.load)
    return load(Path(path), options)
