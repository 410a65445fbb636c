"""Files of weights: `torch.save` and safetensors, with the model that the weights belong to."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from intaglio.errors import SourceError
from intaglio.exporter.options.config import read_config
from intaglio.exporter.options.layout_text import read_layouts
from intaglio.exporter.options.loading import Inputs, LoadOptions, names_code
from intaglio.exporter.sources.axes import Sizes
from intaglio.exporter.sources.checkpoint import Checkpoint, read_checkpoint
from intaglio.exporter.sources.factory import build_from_factory, importable_from
from intaglio.exporter.sources.guess_axes import EXAMPLE
from intaglio.exporter.sources.input_spec import Takes
from intaglio.exporter.sources.methods import with_methods
from intaglio.exporter.sources.own_states.find import Described, describe
from intaglio.exporter.sources.reparametrized import settle
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.state_dict import check_fit, load_weights, tied_names
from intaglio.models import find
from intaglio.state import BATCH, TIME

from . import module as modules

PARAMETERS = 1000  # that a model may have beyond twice the entries of its file


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
    wanted = options.model or checkpoint.model
    if wanted is None:
        raise SourceError(
            f"{path} holds weights and does not say which model they belong to. Say it: --model "
            "NAME (see intaglio list models) or --model package.module:factory, with --config FILE."
        )
    if not options.model and names_code(wanted) and not options.allow_code:
        raise SourceError(
            f"{path} asks to be built by the code {wanted!r}. Where that is trusted, name it with "
            f"--model {wanted}, or allow it with --allow-code."
        )
    values = read_config(options.config if options.config is not None else checkpoint.config)
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
        module, given, said_by_model = _from_models(wanted, values, checkpoint)
        options = replace(options, **said_by_model)
    notes = load_weights(module, checkpoint.tensors, checkpoint.path)
    module.eval().requires_grad_(requires_grad=False)
    notes += settle(module)
    if isinstance(given, Takes):
        found = Described(takes=given)
    elif options.graphs:
        found = Described(takes=Takes.of(()))
    else:  # only now: what a state starts from may be a weight
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
            *notes,
            *found.notes,
            *_overrides(checkpoint, wanted, values),
        ),
    )
    examples = None if isinstance(given, Takes) else given
    return with_methods(source, options, examples) if options.graphs else source


def _from_models(
    name: str, config: Mapping[str, Any], checkpoint: Checkpoint
) -> tuple[nn.Module, Inputs | Takes, Mapping[str, Any]]:
    """A model of ours: the module, what it takes, and what it says in the place of options.

    Where it names the axes of its inputs, examples of them take the place of what it takes.
    """
    model = find(name)
    values = model.configure(config)
    with _told(name), torch.device("meta"), _at_most(PARAMETERS + 2 * len(checkpoint.tensors)):
        outline = model.build(values)  # takes no memory, however large the config says
    check_fit(outline, checkpoint.tensors, checkpoint.path)
    with _told(name):
        module = model.build(values).eval()

    def sample(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return model.inputs(values, sizes[BATCH], sizes[TIME], generator)

    with _told(name):
        said: dict[str, Any] = {"graphs": {} if model.graphs is None else model.graphs(values)}
        if model.axes is not None:
            said["axes"] = read_layouts(model.axes(values))
            return module, sample(EXAMPLE, 0), said
        dynamic = {name: {0: BATCH, 1: TIME} for name in sample(EXAMPLE, 0)}
    return module, Takes(dynamic=dynamic, sample=sample), said


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever a model of ours raises while it is built, its config is at fault."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        said = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise SourceError(
            f"The model {name!r} cannot be built with this config: {said}."
        ) from error


@contextlib.contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Stop the building of a module once it has more parameters than a file could hold."""
    left = count

    def register(_module: nn.Module, _name: str, _parameter: nn.Parameter) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise SourceError(
                f"The config asks for more than {count} parameters, far more than the file holds. "
                "Check its number of layers."
            )

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


def _overrides(checkpoint: Checkpoint, model: str, config: Mapping[str, Any]) -> list[str]:
    """Say where what the user typed replaced what the checkpoint names."""
    name, notes = checkpoint.path.name, []
    if checkpoint.model is not None and checkpoint.model != model:
        notes.append(f"{name} names the model {checkpoint.model!r}; built as {model!r} instead.")
    if checkpoint.config is not None and dict(checkpoint.config) != config:
        notes.append(f"{name} names another config, which was not used.")
    return notes
