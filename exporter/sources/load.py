"""Load a source: what a path holds decides which kind it is, and each kind has its file."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Unpack

import numpy as np
from torch import Tensor, nn
from torch.export import ExportedProgram

from intaglio.exporter.options.inputs_in_words import in_words
from intaglio.exporter.options.loading import LoadKeywords, LoadOptions, SourceOptions, as_graphs
from intaglio.keywords import spelled_out
from intaglio.runtime.arrays import read_npz

from .adapted import with_adapters
from .examples import read_inputs
from .kinds import (
    exported_program as program,
)
from .kinds import (
    huggingface_directory as huggingface,
)
from .kinds import (
    joined,
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
from .own_text import text_in_words, with_text
from .source import Source

Kind = tuple[Callable[[Path], bool], Callable[[Path, LoadOptions], Source]]
Unloaded = str | Path | nn.Module | ExportedProgram


def _joined(path: Path, options: LoadOptions) -> Source:
    return joined.load(path, options, load)


KINDS: tuple[Kind, ...] = (
    (huggingface.fits, huggingface.load),
    (program.fits, program.load),
    (graph.fits, graph.load),
    (joined.fits, _joined),
)
"""How to tell each kind of source, the first that fits; all other paths are files of weights."""


@spelled_out
def load_source(path: Unloaded, **options: Unpack[LoadKeywords]) -> Source:
    """Load a trained model and what it takes to trace it.

    Args:
        path: a file of ``torch.save``, safetensors, ``torch.export.save`` or ONNX, a Hugging Face
            directory, a TOML file that names several of these, or a module or program in memory.
        **options: those of `LoadKeywords`.

    Raises:
        SourceError: if the file, the model or the config cannot be read, or do not fit together.
        OptionError: if an option says nothing about a source of this kind.
    """
    return load(path, LoadOptions.of(options))


def load(source: Unloaded | Source, options: LoadOptions) -> Source:
    """As `load_source`; what is loaded already is given back, whatever the options say."""
    if isinstance(source, Source):
        return source
    if isinstance(source, nn.Module):
        loaded = modules.in_memory(source, options)
    elif isinstance(source, ExportedProgram):
        loaded = program.in_memory(source, options)
    else:
        fitting = (load for fits, load in KINDS if fits(Path(source)))
        loaded = next(fitting, weights.load)(Path(source), options)
    loaded = with_text(with_adapters(loaded, options), options)
    loaded = replace(loaded, asked=_asked(options, loaded))
    return loaded if options.whole is None else replace(loaded, whole=options.whole)


def _asked(options: LoadOptions, source: Source) -> SourceOptions:
    """The options as a recipe repeats them: examples in words, by the axes that are free."""
    free = {
        n: axes for each in (source, *source.others.values()) for n, axes in each.dynamic.items()
    }
    inputs = options.inputs
    if isinstance(inputs, str | Path):
        inputs = read_npz(inputs)
    elif isinstance(inputs, list | tuple | Tensor | np.ndarray):  # in the order of forward
        inputs = read_inputs(inputs, source.module)
    graphs = {
        name: replace(graph, inputs=None if graph.inputs is None else in_words(graph.inputs, free))
        for name, graph in as_graphs(options.graphs).items()
    }
    said = {entry.name: getattr(options, entry.name) for entry in fields(SourceOptions)}
    own = {"inputs": None if inputs is None else in_words(inputs, free), "graphs": graphs}
    if options.text is not None and source.text is not None:
        own["text"] = text_in_words(source.text)
    return SourceOptions(**{**said, **own})
