"""Modules that hold their weights: those of a program that calls us, and pickled ones."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.checkpoint import Checkpoint
from intaglio.exporter.sources.input_spec import Takes
from intaglio.exporter.sources.marks import mark_where_needed, trained
from intaglio.exporter.sources.methods import with_methods
from intaglio.exporter.sources.own_states.find import Described, describe
from intaglio.exporter.sources.reparametrized import settle
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.state_dict import adopt_weights, copied, hash_tensors, tied_names

IN_MEMORY = "torch.nn.Module"
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Classes of PyTorch that stand around a module, and where they keep it."""


def in_memory(module: nn.Module, options: LoadOptions) -> Source:
    """Make a source of a copy of `module`, which itself stays as it is.

    Raises:
        SourceError: if its inputs are not known, or a weight is not finite.
    """
    options.take(
        "a module that holds its weights",
        *("inputs", "axes", "condition", "graphs", "states", "adapter", "adapters"),
    )
    name = type(_unwrapped(module)).__name__
    return _source(
        copied(module),
        Path(name),
        options,
        format=IN_MEMORY,
        sha256=hash_tensors(_unwrapped(module).state_dict()),
    )


def unpickled(checkpoint: Checkpoint, module: nn.Module, options: LoadOptions) -> Source:
    """Make a source of the module that was pickled in a file.

    Raises:
        SourceError: if it is a TorchScript module, its inputs are not known, or a weight is not
            finite.
    """
    taken = ("key", "import_from", "inputs", "axes", "graphs", "states", "adapter", "adapters")
    options.take("a module that holds its weights", *taken)
    return _source(
        module, checkpoint.path, options, format=checkpoint.format, sha256=checkpoint.sha256
    )


def _source(module: nn.Module, path: Path, options: LoadOptions, **origin: Any) -> Source:
    module = _unwrapped(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise SourceError(
            f"{path} is a TorchScript module: compiled code, which is not a source. Give the "
            "module that it was made from."
        )
    names = trained(module)
    notes = adopt_weights(module, path) + settle(module)
    found = Described(takes=Takes.of(()))
    if not options.graphs:
        mark_where_needed(module, names, options.inputs)
        found = describe(module, options.inputs, options, f"The module of {path}")
    source = Source(
        path=path,
        name=path.name,
        model=f"{type(module).__module__}:{type(module).__qualname__}",
        body=module,
        dynamic=found.takes.dynamic,
        aliases=tied_names(module),
        sample=found.takes.sample,
        sizes=found.takes.sizes,
        spans=found.takes.spans,
        bounds=found.takes.bounds,
        states=found.states,
        defaults=dict(found.defaults),
        notes=(*notes, *found.notes),
        **origin,
    )
    return with_methods(source, options, options.inputs) if options.graphs else source


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrappers for several devices, averages and compilation."""
    while type(module).__name__ in WRAPPERS and type(module).__module__.startswith("torch."):
        module = getattr(module, WRAPPERS[type(module).__name__])
    return module
