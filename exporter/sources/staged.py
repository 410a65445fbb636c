"""The stages that a file holds: one alone, or all of a model, some of which may be there twice."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.exporter.sources.checkpoint import STATE_KEYS, Checkpoint, read_checkpoint
from intaglio.exporter.sources.container import read_container
from intaglio.exporter.sources.layouts import find_layout, read_layout
from intaglio.exporter.sources.state_dict import unreadable
from intaglio.models import Model
from intaglio.models.model import Staged

Stage = dict[str, Tensor]
PREFIX = "stages."


@dataclass(frozen=True, kw_only=True)
class HeldStages:
    """Stages of a file, by names within each; `alone` where it is the state dict of one."""

    path: Path
    stages: tuple[Stage, ...]
    alone: bool = False
    config: Mapping[str, Any] | None = None

    def stage(self, place: int, count: int) -> Stage:
        """A copy of what the file holds of the stage at `place` of `count`.

        Raises:
            SourceError: if it holds another number of stages.
        """
        if not self.alone and len(self.stages) != count:
            raise SourceError(
                f"{self.path} has {len(self.stages)} stages, and files for {count} are given. Give "
                "one for each stage, in order; a file that holds several may be given again."
            )
        return dict(self.stages[0 if self.alone else place])

    def grown(self, staged: Staged) -> int | None:
        """Which stage is deeper than all others, which are alike; None without one."""
        depths = [
            staged.depth({name: tuple(x.shape) for name, x in stage.items()})
            for stage in self.stages
        ]
        deep = [place for place, depth in enumerate(depths) if depth == max(depths)]
        alike = len({depth for depth in depths if depth < max(depths)}) == 1
        return deep[0] if len(deep) == 1 and alike and len(depths) > 2 else None


def read_stages(path: Path, model: Model, staged: Staged) -> HeldStages:
    """Read the stages of `model` in a file.

    Raises:
        SourceError: if it cannot be read, is of another model, or has a tensor twice with other
            values.
    """
    content = read_container(path)[1]
    listed = content.get(staged.listed) if isinstance(content, Mapping) else None
    found: tuple[Stage, ...] = ()
    if isinstance(listed, list | tuple) and listed:
        if not all(isinstance(stage, Mapping) for stage in listed):
            raise SourceError(f"{path}: {staged.listed} should be a list of state dicts.")
        found = tuple(_tensors(stage, path) for stage in listed)
        if not any(isinstance(content, Mapping) and key in content for key in STATE_KEYS):
            return HeldStages(path=path, stages=found)
    del content
    checkpoint = read_checkpoint(path)
    if checkpoint.model not in (None, model.name):
        raise SourceError(f"{path} is of the model {checkpoint.model!r}, not {model.name!r}.")
    whole = _by_stage(checkpoint, model)
    if whole is None:
        if found:
            return HeldStages(path=path, stages=found)
        return HeldStages(path=path, stages=(_tensors(checkpoint.tensors, path),), alone=True)
    if found:
        _require_same(path, staged.listed, found, whole)
    return HeldStages(path=path, stages=whole, config=checkpoint.config)


def _by_stage(checkpoint: Checkpoint, model: Model) -> tuple[Stage, ...] | None:
    """The tensors by stage where their names tell it, None where the file holds one stage."""
    tensors: Mapping[str, Any] = checkpoint.tensors
    path = checkpoint.path
    if not any(name.startswith(PREFIX) for name in tensors):
        return None
    fitting = None
    if checkpoint.model is None:
        fitting = find_layout({}, tensors.keys(), path, model)
    if fitting is not None:
        tensors = read_layout(fitting, {}, tensors, path)[1]
    found: dict[str, Stage] = {}
    for name, tensor in _tensors(tensors, path).items():
        place, _, within = name.removeprefix(PREFIX).partition(".")
        if not name.startswith(PREFIX) or not within:
            raise SourceError(f"{path} has {name!r}, which is of no stage.")
        found.setdefault(place, {})[within] = tensor
    other = next((place for place in found if place not in map(str, range(len(found)))), None)
    if other is not None:
        raise SourceError(
            f"{path} has a stage {other!r}; its {len(found)} stages should be counted from 0."
        )
    return tuple(found[str(place)] for place in range(len(found)))


def _tensors(given: Mapping[Any, Any], path: Path) -> Stage:
    """The tensors of a state dict, each dense and with all its numbers.

    Raises:
        SourceError: if something is no such tensor.
    """
    for name, value in given.items():
        kind = unreadable(value) if isinstance(value, Tensor) else type(value).__name__
        if kind:
            raise SourceError(f"{path}: {name!r} is {kind}; each entry should be a dense tensor.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise SourceError(f"{path}: {name!r} repeats the numbers that it holds. Save it dense.")
    return {str(name): value for name, value in given.items()}


def _require_same(
    path: Path, listed: str, found: tuple[Stage, ...], whole: tuple[Stage, ...]
) -> None:
    """Hold the stages of the list to those among the tensors of the whole."""
    if len(found) != len(whole):
        raise SourceError(f"{path} has {len(found)} {listed}, and a model of {len(whole)} stages.")
    for place, (first, second) in enumerate(zip(found, whole, strict=True)):
        for name in dict.fromkeys((*first, *second)):
            once, again = f"{listed}[{place}] {name!r}", f"'{PREFIX}{place}.{name}'"
            if name not in first or name not in second:
                here, there = (again, once) if name not in first else (once, again)
                raise SourceError(f"{path} has {here} without {there}.")
            if not torch.equal(first[name], second[name]):
                raise SourceError(f"{path} has {once} and {again} with different values.")
