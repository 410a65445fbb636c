"""Files of weights: `torch.save` and safetensors, with the model that the weights belong to."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from intaglio.errors import SourceError
from intaglio.exporter.options.config import read_config
from intaglio.exporter.options.loading import Inputs, LoadOptions, names_code
from intaglio.exporter.sources.checkpoint import Checkpoint, read_checkpoint
from intaglio.exporter.sources.factored_projections import factored, told
from intaglio.exporter.sources.factory import build_from_factory, importable_from
from intaglio.exporter.sources.input_spec import Takes
from intaglio.exporter.sources.known_model import build, outline
from intaglio.exporter.sources.layouts import Fitting, find_layout, is_ours, read_layout
from intaglio.exporter.sources.low_bit_projections import put_in, split
from intaglio.exporter.sources.marks import mark_where_needed, trained
from intaglio.exporter.sources.methods import with_methods
from intaglio.exporter.sources.own_states.find import Described, describe
from intaglio.exporter.sources.reparametrized import settle
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.state_dict import check_fit, load_weights, tied_names
from intaglio.exporter.sources.supernets import at_bits
from intaglio.models import FORMAT, find

from . import module as modules


def load(path: Path, options: LoadOptions) -> Source:
    """Read the weights at `path` into their model.

    Raises:
        SourceError: if the file, the model or the config cannot be read, or do not fit together.
    """
    # Without consent not the working directory either: who made a file may have filled that too.
    code = (
        importable_from(options.import_from) if options.allow_pickle else contextlib.nullcontext()
    )
    with code:
        checkpoint = read_checkpoint(path, key=options.key, allow_pickle=options.allow_pickle)
    if checkpoint.module is not None:
        return modules.unpickled(checkpoint, checkpoint.module, options)
    if checkpoint.supernet is not None:
        checkpoint = at_bits(checkpoint, checkpoint.supernet, options.bits)
        options = replace(options, bits={})
    return of_checkpoint(checkpoint, options)


def of_checkpoint(checkpoint: Checkpoint, options: LoadOptions) -> Source:
    """The weights of `checkpoint` in their model, which it names, the options, or a layout.

    Raises:
        SourceError: if the model or the config cannot be read, or do not fit the weights.
    """
    path = checkpoint.path
    values = read_config(options.config if options.config is not None else checkpoint.config)
    fitting = _layout(checkpoint, options.model or checkpoint.model, values)
    wanted = options.model or checkpoint.model
    if fitting is not None:
        wanted = fitting.model.name
    if wanted is None and options.offered:
        raise SourceError(
            f"{path} holds weights, and the bundle was made of them by the code "
            f"{options.offered!r}. Where that is trusted, allow it with --allow-code, or name it "
            f"with --model {options.offered}"
        )
    if wanted is None:
        raise SourceError(
            f"{path} holds weights and does not say which model they belong to, and no layout that "
            "is known fits their names. Say it: --model NAME (see intaglio list models) or --model "
            "package.module:factory, with --config FILE."
        )
    if not options.model and names_code(wanted) and not options.allow_code:
        raise SourceError(
            f"{path} asks to be built by the code {wanted!r}. Where that is trusted, name it with "
            f"--model {wanted}, or allow it with --allow-code."
        )
    tensors, stored = split(path, checkpoint.tensors, None)
    given: Inputs | Takes | None
    if names_code(wanted):
        taken = (
            "model",
            "config",
            "key",
            "import_from",
            "inputs",
            "axes",
            "condition",
            "graphs",
            "states",
            "adapter",
            "adapters",
        )
        options.take(f"the model of the factory {wanted!r}", *taken)
        module, given = build_from_factory(wanted, values, [Path(p) for p in options.import_from])
        given = given if options.inputs is None else options.inputs
    else:
        said = f"the model {wanted!r}, whose inputs are known"
        options.take(said, "model", "config", "key", "import_from", "adapter", "adapters")
        model = find(wanted)
        if fitting is None:
            config = model.configure(values)
            shape = outline(model, config, len(tensors))
            factored(shape, tensors)
            check_fit(shape, tensors, path)
        else:
            config, tensors = read_layout(fitting, values, tensors, path)
        module, given, said_by_model = build(model, config)
        options = replace(options, **said_by_model)
    pairs = factored(module, tensors)
    notes = load_weights(module, tensors, checkpoint.path) + tuple(told(pairs))
    names = trained(module)
    module.eval().requires_grad_(requires_grad=False)
    notes += (*settle(module), *put_in(module, stored))
    if isinstance(given, Takes):
        found = Described(takes=given)
    elif options.graphs:
        found = Described(takes=Takes.of(()))
    else:  # only now: what a state starts from may be a weight
        mark_where_needed(module, names, given)
        found = describe(module, given, options, f"The model of {wanted!r}")
    source = Source(
        path=checkpoint.path,
        name=checkpoint.path.name,
        format=checkpoint.format,
        sha256=checkpoint.sha256,
        model=wanted,
        config=values,
        body=module,
        dynamic=found.takes.dynamic,
        aliases=tied_names(module),
        sample=found.takes.sample,
        sizes=found.takes.sizes,
        spans=found.takes.spans,
        bounds=found.takes.bounds,
        states=found.states,
        defaults=dict(found.defaults),
        notes=(
            *checkpoint.notes,
            *([] if fitting is None else [f"{checkpoint.path.name} is read in {fitting}."]),
            *notes,
            *found.notes,
            *_overrides(checkpoint, wanted, values),
        ),
    )
    examples = None if isinstance(given, Takes) else given
    return with_methods(source, options, examples) if options.graphs else source


def _layout(
    checkpoint: Checkpoint, wanted: str | None, values: Mapping[str, Any]
) -> Fitting | None:
    """The layout of other code that the weights are in, unless they are as a model has them."""
    names_itself = checkpoint.format == FORMAT and wanted == checkpoint.model
    if names_itself or (wanted is not None and names_code(wanted)):
        return None
    model = None if wanted is None else find(wanted)
    fitting = find_layout(values, checkpoint.tensors.keys(), checkpoint.path, model)
    if fitting is None or model is None:
        return fitting
    ours = is_ours(model, values, checkpoint.tensors, checkpoint.path)
    return None if ours else fitting


def _overrides(checkpoint: Checkpoint, model: str, config: Mapping[str, Any]) -> list[str]:
    """Say where what the user typed replaced what the checkpoint names."""
    name, notes = checkpoint.path.name, []
    if checkpoint.model is not None and checkpoint.model != model:
        notes.append(f"{name} names the model {checkpoint.model!r}; built as {model!r} instead.")
    if checkpoint.config is not None and dict(checkpoint.config) != config:
        notes.append(f"{name} names another config, which was not used.")
    return notes
