"""A source: what was trained, with its weights, and inputs to trace and to check it with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn
from torch.export import ExportedProgram

from intaglio.errors import SourceError
from intaglio.exporter.options.loading import SourceOptions
from intaglio.graphs import Generation
from intaglio.passes.base import OwnState
from intaglio.runtime.graph_entry import Below
from intaglio.state import BATCH, TIME

from .axes import Sizes, Span
from .bundled import Bundled
from .guess_axes import EXAMPLE
from .input_spec import Sampler
from .tokenizer_files import Text

EXAMPLE_BATCH, EXAMPLE_TIME = EXAMPLE[BATCH], EXAMPLE[TIME]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained model, whatever it was saved as.

    `body` is a module in eval mode and float32 with gradients off, a program of `torch.export`, or
    a graph in training form.  `dynamic` names the free axes of each input, `sizes` holds a size of
    each at which the model runs, and `spans` those that it is asked to take, where that was said;
    `sample` draws inputs of given sizes, integers below their `bounds`.  `aliases` maps the further
    names of tied parameters to the name that `module.named_parameters` lists, `model` says what the
    weights are of where that was named, `config` holds JSON values, `notes` what loading decided.
    `whole` says that the model takes whole inputs, as pictures and encoders do: it is exported
    without states; `loosened` that its file fixes sizes which running it showed to be free.
    `states` are those that the model takes and gives back itself, as a cell does;
    it computes one step then.  `defaults` holds the value of each input that may be left out,
    `text` the tokenizer that belongs to the model, `adapters` those that a bundle carries along.
    `others` are the further graphs of the bundle by name, the same module with another method as
    its body; `beside` are the names of inputs that other graphs than this one take, which the
    user's data may hold as well; None where there is one graph.
    `caches` are the entries of each head that a compressed bundle keeps of a cache, by the path of
    the module and the port of the state: those of the source have zeros elsewhere.
    `generates` says how main and others make a whole together, where they do.
    `asked` is how it was loaded, with example inputs in words: what a recipe repeats of it.
    `pace` is how many entries along time make one token: sizes of time count tokens.
    `reweighted` says that `body` has other weights than the file at `path`.
    """

    path: Path
    name: str
    format: str
    sha256: str
    body: nn.Module | ExportedProgram | ir.Model
    dynamic: dict[str, dict[int, str]]
    sample: Sampler
    sizes: Sizes = field(default_factory=lambda: dict(EXAMPLE))
    spans: Mapping[str, Span] = field(default_factory=dict)
    bounds: Mapping[str, Below] = field(default_factory=dict)
    model: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    whole: bool = False
    loosened: bool = False
    states: tuple[OwnState, ...] = ()
    defaults: dict[str, float] = field(default_factory=dict)
    text: Text | None = None
    adapters: Bundled | None = None
    others: Mapping[str, "Source"] = field(default_factory=dict)
    beside: frozenset[str] | None = None
    generates: Generation | None = None
    pace: int = 1
    reweighted: bool = False
    caches: Mapping[tuple[str, str], Sequence[Sequence[int]]] = field(default_factory=dict)
    asked: SourceOptions | None = None

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
        """Example inputs, always the same, every free axis of at least two."""
        return self.draw({}, 0)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the free axes, in the order of the inputs."""
        return tuple(dict.fromkeys(s for axes in self.dynamic.values() for s in axes.values()))

    def draw(self, sizes: Sizes, seed: int) -> dict[str, Tensor]:
        """Draw inputs whose free axes have `sizes`, or those of the example; by `seed` alone."""
        return self.sample({**self.sizes, **sizes}, seed)

    def random_inputs(self, batch: int, time: int, seed: int) -> dict[str, Tensor]:
        """Draw inputs of `batch` rows and `time` steps, the same for the same seed.

        What is given once beside a stream has other sizes, and never as many as there are steps.
        """
        stepped = TIME in self.symbols and not self.whole
        other = 11 if time == EXAMPLE_TIME else 3 + time % 9
        own = {s: other for s in self.symbols if s not in (BATCH, TIME)} if stepped else {}
        return self.draw({**own, BATCH: batch, TIME: time}, seed)
