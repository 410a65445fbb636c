"""The graphs of a bundle, as a program or a model of ours declares them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Graph:
    """One graph of a bundle: a method of a module, or a module within it by its dotted path.

    `inputs` are example inputs of its own, and `axes` their dimensions, in place of those that are
    given for all graphs, in any form that `export` takes.
    """

    method: str = "forward"
    inputs: Any = None
    axes: Mapping[str, Any] = field(default_factory=dict)
