"""How far rounding alone takes a source from itself: as it is, and in float64.

A recurrence may make more of a difference with each token; then the last bit of one token is seen
in every later one, and no two programs in float32 agree for long.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.exporter.sources.outputs import name_outputs
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.running import as_written
from intaglio.quiet import quiet

from .reference import Array


def own_rounding(
    source: Source, inputs: Mapping[str, Tensor], wanted: Mapping[str, Array]
) -> dict[str, float]:
    """max|a - b| / max|b| of each output as it is, a, and in float64, b; nothing where it is one.

    It is infinite where the output is finite in float64 alone.

    Args:
        source: a module; of others nothing is known.
        inputs: what it ran on, [batch, time, ...] each.
        wanted: its outputs in float64.
    """
    if not isinstance(source.body, nn.Module):
        return {}
    with torch.no_grad(), quiet(), as_written():
        outputs = name_outputs(source.module, source.module(**inputs), inputs)
    found = {}
    for name, exact in wanted.items():
        value = outputs[name].to(torch.float64).numpy()
        if exact.dtype == np.float64 and outputs[name].dtype != torch.float64 and exact.size:
            found[name] = float(np.abs(value - exact).max() / max(np.abs(exact).max(), 1e-30))
            if np.isfinite(exact).all() and not np.isfinite(value).all():
                found[name] = math.inf
    return {name: error for name, error in found.items() if not math.isnan(error)}
