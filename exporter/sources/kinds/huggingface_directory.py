"""Hugging Face directories: the library's own module, traced as it is, or a model of ours."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from intaglio import models
from intaglio.errors import MissingExtraError, SourceError
from intaglio.exporter.options.loading import LoadOptions, names_code
from intaglio.exporter.sources import json_numbers
from intaglio.exporter.sources.axes import Layouts
from intaglio.exporter.sources.checkpoint import Checkpoint
from intaglio.exporter.sources.examples import name_axes
from intaglio.exporter.sources.guess_axes import example_sizes
from intaglio.exporter.sources.huggingface.directory import (
    Directory,
    is_directory,
    read_directory,
)
from intaglio.exporter.sources.input_spec import InputSpec, Takes
from intaglio.exporter.sources.layouts import Fitting, LazyNames, find_layout
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.state_dict import tied_names
from intaglio.state import BATCH, TIME

from .weights_file import of_checkpoint

ADAPTERS = ("adapter", "adapters")

fits = is_directory


def load(path: Path, options: LoadOptions) -> Source:
    """Load the module that the directory at `path` describes, with its weights.

    Raises:
        SourceError: if the directory is incomplete, no model here and none of the library fits, the
            weights do not fit it, or what it takes is not known.
        OptionError: if an option says what the directory says itself.
        MissingExtraError: if the library is not installed.
    """
    said = f"{path}, whose config.json says how it is built"
    directory = read_directory(path)
    if (fitting := _layout(directory, options)) is not None:
        options.take(said, "model", *ADAPTERS)
        return _in_layout(directory.beside(fitting.layout.beside), fitting, options)
    options.take(said, "axes", "condition", *ADAPTERS)
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError(f"The Hugging Face directory {path}", "hf")
    from intaglio.exporter.sources.huggingface import (
        encoder_decoder,
        features,
        given_pictures,
        inputs,
    )
    from intaglio.exporter.sources.huggingface.forward import plain_forward
    from intaglio.exporter.sources.huggingface.library_module import build
    from intaglio.exporter.sources.huggingface.tokenizer import read_text

    module, notes = build(directory, allow_code=options.allow_code)
    if encoder_decoder.is_encoder_decoder(module):
        taken = encoder_decoder.taken(module)
    else:
        tokens = inputs.vocabulary(module, directory.config)
        if tokens is None or not inputs.takes_tokens_alone(module, tokens):
            options.take(said, "axes", *ADAPTERS)
            return _of_features(directory, module, tokens, options, notes)
        named = list(options.condition)
        if named:
            layout = options.axes.get(features.PIXELS)
            taken = given_pictures.taken(module, tokens, directory.config, path, named, layout)
        else:
            taken = inputs.taken(module, tokens, directory.config)
            notes = (*notes, *given_pictures.left_out(module))
    seen = features.PIXELS in taken.shapes
    options.take(said, *ADAPTERS, *(["axes", "condition"] if seen else []))
    plain_forward(module, list(taken.shapes), taken.call, last=bool(options.last))
    text, said_of_text = read_text(directory, taken.tokens, allow_code=options.allow_code)
    return Source(
        path=path,
        name=path.resolve().name,
        format=directory.format,
        sha256=directory.sha256,
        model=type(module).__name__,
        config=dict(directory.config),
        body=module,
        dynamic=taken.dynamic,
        aliases=tied_names(module),
        sample=taken.sample,
        sizes=taken.sizes,
        notes=(*notes, *taken.notes, *said_of_text),
        whole=taken.whole,
        defaults=taken.defaults,
        text=text,
    )


def _layout(directory: Directory, options: LoadOptions) -> Fitting | None:
    """The layout of a model of ours that the directory is in."""
    named = options.model
    if named is not None and (names_code(named) or named not in {m.name for m in models.MODELS}):
        return None
    model = None if named is None else models.find(named)
    names = LazyNames(directory.names)
    fitting = find_layout(json_numbers.told(directory.config), names, directory.path, model)
    if model is not None and model.layouts and fitting is None:
        known = ", ".join(layout.name for layout in model.layouts)
        raise SourceError(
            f"{directory.path} is in no layout of the model {named!r} (it has: {known}). Leave "
            "--model out to have it built as its config.json says."
        )
    return fitting


def _in_layout(directory: Directory, fitting: Fitting, options: LoadOptions) -> Source:
    """A model of ours, with the tokenizer of the directory if it takes tokens."""
    from intaglio.exporter.sources.huggingface.tokenizer import read_text

    path = directory.path.resolve()
    checkpoint = Checkpoint(
        path=path,
        format=directory.format,
        sha256=directory.sha256,
        tensors=directory.tensors(),
        model=fitting.model.name,
        config=json_numbers.told(directory.config),
    )
    source = of_checkpoint(checkpoint, options)
    tokens = directory.config.get("vocab_size")
    if not isinstance(tokens, int):
        return source
    text, notes = read_text(directory, tokens, allow_code=False)
    return replace(source, path=directory.path, text=text, notes=(*source.notes, *notes))


def _of_features(
    directory: Directory,
    module: nn.Module,
    tokens: int | None,
    options: LoadOptions,
    notes: tuple[str, ...],
) -> Source:
    """A model of pictures, sound or series, which takes whole inputs."""
    from intaglio.exporter.sources.huggingface import features, inputs
    from intaglio.exporter.sources.huggingface.forward import plain_forward

    ids = [] if tokens is None else [
        InputSpec(inputs.TOKENS, torch.int64, (BATCH, TIME), below=tokens)
    ]  # fmt: skip
    found = features.describe(module, directory.config, directory.path, ids)
    layouts = Layouts.of(options.axes)
    specs = name_axes(found, layouts)
    plain_forward(module, [spec.name for spec in specs])
    own = {
        symbol: features.SIZES.get(symbol, size if isinstance(size, int) else 2)
        for spec, first in zip(specs, found, strict=True)
        for symbol, size in zip(spec.shape, first.shape, strict=True)
        if isinstance(symbol, str)
    }
    takes = Takes.of(specs, spans=layouts.spans)
    return Source(
        path=directory.path,
        name=directory.path.resolve().name,
        format=directory.format,
        sha256=directory.sha256,
        model=type(module).__name__,
        config=dict(directory.config),
        body=module,
        dynamic=takes.dynamic,
        sample=takes.sample,
        sizes=example_sizes(module, takes.sample, own, layouts.spans),
        spans=takes.spans,
        bounds=takes.bounds,
        aliases=tied_names(module),
        notes=notes,
        whole=True,
    )
