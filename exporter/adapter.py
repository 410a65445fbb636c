"""From a base and what was tuned of it to an adapter: `intaglio adapter`."""

from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np

from intaglio.errors import SourceError
from intaglio.exporter.options.loading import LoadKeywords, LoadOptions
from intaglio.exporter.sources.adapted import read_adapter
from intaglio.exporter.sources.differences import adapter_of, parameters
from intaglio.exporter.sources.load import load
from intaglio.exporter.sources.peft import is_peft
from intaglio.exporter.sources.source import Source
from intaglio.passes.analysis.coupling import Coupling
from intaglio.runtime.adapters import Adapter

from .coupled import couplings, require_alike
from .merging.matching import match


def make_adapter(
    base: str | Path, tuned: str | Path, **options: Unpack[LoadKeywords]
) -> tuple[Adapter, tuple[str, ...]]:
    """The adapter that makes the model `tuned` of `base`, and notes on how it was found.

    Where S2FT put channels and heads next to each other, those of `tuned` are in another order than
    its base's; they are put back.

    Args:
        base: the model before it was tuned, of any kind that `load_source` takes.
        tuned: the same model after it, or a directory of PEFT with a LoRA.
        **options: how both are loaded.

    Raises:
        SourceError: if they do not fit together, or differ in what no adapter holds.
        OptionError: if an option says nothing about them.
    """
    loading = LoadOptions.of(options)
    before = load(Path(base), loading)
    if is_peft(Path(tuned)):
        return replace(read_adapter(tuned, before.module), base=before.sha256), ()
    after = load(Path(tuned), loading)
    weights = parameters(after)
    require_alike(before, parameters(before), after, weights)
    try:
        return adapter_of(before, weights), ()
    except SourceError:
        found = match(parameters(before), weights, _of_parameters(before))
        moved = [name for name, order in found.orders.items() if (np.diff(order) != 1).any()]
        if not moved:
            raise
        said = f"Units were in another order than those of {before.name}: {', '.join(moved)}."
        return adapter_of(before, found.weights), (said,)


def _of_parameters(source: Source) -> list[Coupling]:
    """The groups whose members are all parameters, each by one of its names."""
    known = parameters(source)
    groups = [
        replace(group, members=tuple(m for m in group.members if m.name not in source.aliases))
        for group in couplings(source)
    ]
    return [group for group in groups if all(m.name in known for m in group.members)]
