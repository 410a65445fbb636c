"""Hugging Face directories: the library's own module, traced as it is."""

import importlib.util
from pathlib import Path

from intaglio.errors import MissingExtraError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.huggingface.directory import is_directory, read_directory
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.state_dict import tied_names

fits = is_directory


def load(path: Path, options: LoadOptions) -> Source:
    """Load the module that the directory at `path` describes, with its weights.

    Raises:
        SourceError: if the directory is incomplete, the library does not know its model, the
            weights do not fit it, or it takes something else than token ids.
        OptionError: if an option says what the directory says itself.
        MissingExtraError: if the library is not installed.
    """
    said = f"{path}, whose config.json says how it is built"
    options.take(said)
    directory = read_directory(path)
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError(f"The Hugging Face directory {path}", "hf")
    from intaglio.exporter.sources.huggingface import encoder_decoder, inputs
    from intaglio.exporter.sources.huggingface.forward import plain_forward
    from intaglio.exporter.sources.huggingface.model import build
    from intaglio.exporter.sources.huggingface.tokenizer import read_text

    module, notes = build(directory, allow_code=options.allow_code)
    if encoder_decoder.is_encoder_decoder(module):
        taken = encoder_decoder.taken(module)
    else:
        taken = inputs.taken(module, directory.config)
    plain_forward(module, list(taken.shapes))
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
        notes=(*notes, *said_of_text),
        whole=taken.whole,
        defaults=taken.defaults,
        text=text,
    )
