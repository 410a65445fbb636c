"""What a model is: a system of the literature as an ordinary module, its configs and its recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.graphs import Graph
from intaglio.whole_files import output

from ._values import fits, words
from .layout import CheckpointLayout, Shapes, Values
from .training import Training

FORMAT = "intaglio.checkpoint/1"


@dataclass(frozen=True, kw_only=True)
class Joint:
    """How a model is made of several others, each a source by itself.

    `parts` are their names; the first one's inputs are those of the whole.  `join` makes its module
    of theirs, and raises `SourceError` where they do not fit each other; `conditions` draws what it
    takes beside, [batch] each and given once for a sequence, of (batch, generator).
    """

    parts: tuple[str, ...]
    join: Callable[[Mapping[str, nn.Module]], nn.Module]
    conditions: Callable[[int, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Staged:
    """How a model falls into stages in a row, the k-th with its tensors under ``stages.k.``.

    `listed` is the entry where checkpoints of other code have the state dicts of their stages, as a
    list.  Names that begin with one of `first` are in the first stage alone, with one of `last` in
    the last.  `depth` is how many layers a stage of these shapes has; `configure` makes the values
    of `Model.configure` of those given and of the shapes of all stages, where `unseen` are values
    that no shape tells.  `resize` makes a tensor of a stage, by its name there, one of another
    shape, or gives None where that is another model's.
    """

    listed: str
    first: tuple[str, ...]
    last: tuple[str, ...]
    unseen: tuple[str, ...]
    depth: Callable[[Shapes], int]
    configure: Callable[[Values, Sequence[Shapes]], dict[str, Any]]
    resize: Callable[[str, Tensor, tuple[int, ...]], Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A system of the literature.

    `config` is a frozen dataclass of plain values, `build` makes the module from it, `inputs`
    draws example inputs of (config, batch, time, generator), and `presets` holds configs by name,
    each trained by `recipe`, or by its own of `recipes`, into a file of `models/checkpoints`.
    `axes` names the dimensions of each input as ``--axes`` does, as ``batchx3xheightxwidth``;
    without it every input is [batch, time, ...].  `graphs` gives the graphs that a bundle of it
    has, of a config, where there are several: one is called main.  `layouts` say how checkpoints of
    other code are read, `joint` how it is put together with other models, by a file that names
    them, `staged` how stages that were trained apart make one, and `adopt` makes the config of (a
    preset's, the checkpoint that the recipe begins from), where the one follows the sizes of the
    other.
    """

    name: str
    summary: str
    config: type
    build: Callable[[Any], nn.Module]
    inputs: Callable[[Any, int, int, torch.Generator], dict[str, Tensor]]
    presets: Mapping[str, Any]
    recipe: Training | None
    source: str
    axes: Callable[[Any], Mapping[str, str]] | None = None
    graphs: Callable[[Any], Mapping[str, Graph]] | None = None
    layouts: tuple[CheckpointLayout, ...] = ()
    joint: Joint | None = None
    adopt: Callable[[Any, Path], Any] | None = None
    staged: Staged | None = None
    recipes: Mapping[str, Training] = field(default_factory=dict)

    def configure(self, values: Mapping[str, Any]) -> Any:
        """The config of these values.

        Raises:
            SourceError: a value is missing, unknown or of another kind; it is named.
        """
        known = {each.name: each for each in fields(self.config)}
        unknown = [name for name in values if name not in known]
        needed = [
            name
            for name, each in known.items()
            if each.default is MISSING and each.default_factory is MISSING
        ]
        missing = [name for name in needed if name not in values]
        if unknown or missing:
            near = [
                f"{name!r}"
                + "".join(f" (perhaps {m!r})" for m in get_close_matches(name, known, 1))
                for name in unknown
            ]
            parts = [
                f"it lacks {', '.join(map(repr, missing))}" if missing else "",
                f"it has unknown {', '.join(near)}" if near else "",
            ]
            raise SourceError(
                f"The config of the model {self.name!r} does not fit: "
                f"{' and '.join(part for part in parts if part)}. "
                f"Its values are: {', '.join(known)}."
            )
        hints = get_type_hints(self.config)
        for name, value in values.items():
            if not fits(value, hints[name]):
                raise SourceError(
                    f"The config of the model {self.name!r} has {name} = {value!r}; it should be "
                    f"{words(hints[name])}."
                )
        plain = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        try:
            return self.config(**plain)
        except ValueError as error:  # of values that do not fit each other
            said = str(error).rstrip(".")
            raise SourceError(
                f"The config of the model {self.name!r} does not fit: {said}."
            ) from error


def token_ids(config: Any, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random token ids [batch, time] below `config.vocab_size`: the input of a language model."""
    return {"input_ids": torch.randint(config.vocab_size, (batch, time), generator=generator)}


def save(path: str | Path, model: str, config: Any, module: nn.Module) -> None:
    """Write a checkpoint that names its model; tied weights stay tied.

    Args:
        path: the file to write.
        model: name of the model, as in `MODELS`.
        config: its config, a dataclass or a mapping of plain values.
        module: the trained module, on any device.
    """
    values = dict(config) if isinstance(config, Mapping) else asdict(config)
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    with output(path) as draft:
        torch.save({"format": FORMAT, "model": model, "config": values, "state_dict": state}, draft)
