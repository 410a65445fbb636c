"""A source: what was trained, with its weights, and inputs to trace and to check it with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn
from torch.export import ExportedProgram

from intaglio.errors import SourceError
from intaglio.passes.base import OwnState

from .examples import Sampler
from .text import Text

# Example sizes are odd primes: a batch or time of 1, or one equal to a dimension of the module,
# could be frozen into the graph.
EXAMPLE_BATCH = 3
EXAMPLE_TIME = 7


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained model, whatever it was saved as.

    `body` is a module in eval mode and float32 with gradients off, a program of `torch.export`, or
    a graph in training form.  `dynamic` names the free axes of each input, `aliases` maps the
    further names of tied parameters to the name that `module.named_parameters` lists, `model` says
    what the weights are of where that was named, `config` holds JSON values, `notes` what loading
    decided.  `whole` says that the model takes whole sequences, in which tokens see later ones, or
    gives one result for all: it is exported without states.  `states` are those that the model
    takes and gives back itself, as a cell does; it computes one step then.  `defaults` holds the
    value of each input that may be left out, `text` the tokenizer that belongs to the model.
    `others` are the further graphs of the bundle by name, the same module with another method as
    its body.
    """

    path: Path
    name: str
    format: str
    sha256: str
    body: nn.Module | ExportedProgram | ir.Model
    dynamic: dict[str, dict[int, str]]
    sample: Sampler
    model: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    whole: bool = False
    states: tuple[OwnState, ...] = ()
    defaults: dict[str, float] = field(default_factory=dict)
    text: Text | None = None
    others: Mapping[str, "Source"] = field(default_factory=dict)

    @cached_property
    def module(self) -> nn.Module:
        """The module, or a program as one.

        Raises:
            SourceError: if the source is a graph, which PyTorch cannot run.
        """
        if isinstance(self.body, ir.Model):
            raise SourceError(f"{self.path} is a graph: what needs PyTorch's module cannot use it.")
        return self.body if isinstance(self.body, nn.Module) else self.body.module()

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Example inputs, always the same, of at least two rows and two steps."""
        return self.sample(EXAMPLE_BATCH, EXAMPLE_TIME, 0)

    def random_inputs(self, batch: int, time: int, seed: int) -> dict[str, Tensor]:
        """Draw inputs of `batch` rows and `time` steps, the same for the same seed."""
        return self.sample(batch, time, seed)
