"""From stages that were trained apart to one checkpoint: `intaglio assemble`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.options.clock import Clock, Progress
from intaglio.exporter.options.config import Config, read_config
from intaglio.exporter.sources.known_model import outline
from intaglio.exporter.sources.staged import HeldStages, read_stages
from intaglio.exporter.sources.state_dict import check_finite
from intaglio.models import FORMAT, MODELS, Model, find
from intaglio.models.model import Staged
from intaglio.places import require_file
from intaglio.whole_files import output

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AssembleReport:
    """What was put together: of which file each stage is, and how deep it is there."""

    out: Path
    model: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    depths: tuple[int, ...]
    parameters: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        rows = zip(self.files, self.depths, self.parameters, strict=True)
        return {
            "out": str(self.out),
            "model": self.model,
            "config": dict(self.config),
            "stages": [{"file": str(f), "depth": d, "parameters": n} for f, d, n in rows],
            "notes": list(self.notes),
        }


def assemble(
    stages: Sequence[str | Path],
    out: str | Path,
    *,
    model: str | None = None,
    config: Config | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> AssembleReport:
    """Put stages in a row into one checkpoint, which `export` takes.

    Args:
        stages: a file for each, in order: its state dict alone, or a checkpoint of a whole model,
            whose stage at the same place is taken.
        out: the file to write.
        model: the model that falls into these stages; found out otherwise.
        config: values of its config that no shape tells, or that are to be others.
        force: replace what is at `out`.
        progress: is told each phase.

    Raises:
        OptionError: if there are no stages, or `out` is there, one of them or no place for a file.
        SourceError: if a file cannot be read, stages are in another order, a tensor is there twice
            with other values, or stages do not fit each other; the first difference is named.
    """
    paths, out = [Path(path) for path in stages], Path(out)
    _check(paths, out, force=force)
    clock = Clock(progress)
    with clock.phase("load"):
        of, staged = _staged(model)
        files = {path: read_stages(path, of, staged) for path in dict.fromkeys(paths)}
    held = [files[path] for path in paths]
    _check_places(held, staged)
    taken = [each.stage(place, len(held)) for place, each in enumerate(held)]
    _check_ends(held, taken, staged)
    values = _values(held, read_config(config), staged)
    shapes = [{name: tuple(x.shape) for name, x in stage.items()} for stage in taken]
    made = _config(of, staged, values, shapes, held)
    notes = [
        f"No file says {name}; it is taken to be {made[name]!r}. Give another with --config."
        for name in staged.unseen
        if name not in values
    ]
    notes += _fit(of, staged, made, taken, held)
    state = {
        f"stages.{place}.{name}": tensor.detach().clone()
        for place, stage in enumerate(taken)
        for name, tensor in stage.items()
    }
    with clock.phase("write"):
        _write({"format": FORMAT, "model": of.name, "config": made, "state_dict": state}, out)
    return AssembleReport(
        out=out,
        model=of.name,
        config=made,
        files=tuple(paths),
        depths=tuple(map(staged.depth, shapes)),
        parameters=tuple(sum(x.numel() for x in stage.values()) for stage in taken),
        notes=tuple(notes),
    )


def _check(paths: Sequence[Path], out: Path, *, force: bool) -> None:
    if not paths:
        raise OptionError("Assembling takes stages: intaglio assemble STAGE0 STAGE1 ... -o OUT.")
    require_file(out, force=force)
    if out.exists() and out.resolve() in [path.resolve() for path in paths]:
        raise OptionError(f"{out} is one of the stages. Choose another place.")


def _staged(name: str | None) -> tuple[Model, Staged]:
    """The model that falls into stages."""
    able = [model for model in MODELS if model.staged is not None]
    named = able if name is None else [find(name)]
    if len(named) != 1 or named[0].staged is None:
        said = "Say which model the stages are of" if name is None else f"{name} has no stages"
        raise SourceError(f"{said}: --model {' or '.join(model.name for model in able)}.")
    return named[0], named[0].staged


def _check_places(held: Sequence[HeldStages], staged: Staged) -> None:
    """A file in which one stage alone was made deeper than the others is given for that one."""
    given: dict[Path, list[int]] = {}
    for place, each in enumerate(held):
        given.setdefault(each.path, []).append(place)
    for each in held:
        grown = each.grown(staged)
        if grown is not None and grown not in given[each.path]:
            raise SourceError(
                f"{each.path} is given for the stage {given[each.path][0]}, and the stage {grown} "
                f"is the one that is deeper in it than the others. Give the files in the order of "
                f"their stages, or the stage's state dict alone."
            )


def _check_ends(
    held: Sequence[HeldStages], taken: Sequence[Mapping[str, Tensor]], staged: Staged
) -> None:
    """What only the first stage has stands in the first, and so for the last.

    Raises:
        SourceError: if not: the stages are in another order, or some are missing.
    """
    count = len(taken)
    for place, (file, stage) in enumerate(zip(held, taken, strict=True)):
        for word, starts, here in (
            ("first", staged.first, place == 0),
            ("last", staged.last, place == count - 1),
        ):
            found = next((name for name in stage if name.startswith(starts)), None)
            lacks = next((s for s in starts if not any(n.startswith(s) for n in stage)), None)
            order = f"It is number {place} of {count}, counted from 0: give the stages in order."
            if found is not None and not here:
                raise SourceError(
                    f"{file.path} holds the {word} stage of a model, as it has {found!r}. {order}"
                )
            if lacks is not None and here:
                raise SourceError(
                    f"{file.path} is not the {word} stage of a model, as it lacks "
                    f"{lacks.rstrip('.')!r}. {order}"
                )


def _values(held: Sequence[HeldStages], given: Mapping[str, Any], staged: Staged) -> dict[str, Any]:
    """The values given, with those that no shape tells of the files that say them.

    Raises:
        SourceError: if two say otherwise.
    """
    values = dict(given)
    said: dict[str, str] = dict.fromkeys(given, "the config that is given")
    for each in held:
        for name in staged.unseen:
            if name not in (each.config or {}):
                continue
            own = (each.config or {})[name]
            if values.setdefault(name, own) != own:
                raise SourceError(
                    f"{name} is {own!r} in {each.path} and {values[name]!r} in {said[name]}: these "
                    "stages do not fit each other."
                )
            said.setdefault(name, str(each.path))
    return values


def _config(
    model: Model,
    staged: Staged,
    values: Mapping[str, Any],
    shapes: Sequence[Mapping[str, Shape]],
    held: Sequence[HeldStages],
) -> dict[str, Any]:
    """The config of all stages; of what is given, nothing may be left out of it."""
    try:
        made = staged.configure(values, shapes)
    except KeyError as error:
        raise SourceError(f"{held[0].path} lacks {error.args[0]!r}.") from error
    except (ValueError, IndexError) as error:
        raise SourceError(f"The shapes in {held[0].path} are no stage's: {error}.") from error
    model.configure({**made, **{name: x for name, x in values.items() if name not in made}})
    other = next((n for n, x in values.items() if made[n] != x), None)
    if other is not None:
        raise SourceError(
            f"The config has {other} = {values[other]!r}, and the stages have {made[other]!r}."
        )
    return made


def _fit(
    model: Model,
    staged: Staged,
    config: Mapping[str, Any],
    taken: Sequence[dict[str, Tensor]],
    held: Sequence[HeldStages],
) -> list[str]:
    """Hold all stages to the model of their config, in place; notes on what was resized.

    Raises:
        SourceError: if they do not fit; the first difference is named.
    """
    module = outline(model, model.configure(config), sum(map(len, taken)))
    expected = {name: tuple(x.shape) for name, x in module.state_dict().items()}
    notes = []
    for place, (file, stage) in enumerate(zip(held, taken, strict=True)):
        start = f"stages.{place}."
        own = {n.removeprefix(start): x for n, x in expected.items() if n.startswith(start)}
        for name in [*own, *stage]:
            if name not in stage:
                raise SourceError(f"{file.path}, stage {place}, lacks {name!r}.")
            if name not in own:
                raise SourceError(
                    f"{file.path}, stage {place}, has {name!r}, which is no tensor of this model."
                )
            shape = tuple(stage[name].shape)
            if shape == own[name]:
                continue
            resized = _resized(staged, file, name, stage[name], own[name])
            if resized is None:
                raise SourceError(
                    f"{name} of the stage {place} is {list(shape)} in {file.path}, and "
                    f"{list(own[name])} would fit {held[0].path}: they are not of one model."
                )
            stage[name] = resized
            notes.append(f"{start}{name} is resized from {list(shape)} to {list(own[name])}.")
        check_finite(stage, (), file.path)
    return notes


def _resized(
    staged: Staged, file: HeldStages, name: str, tensor: Tensor, shape: Shape
) -> Tensor | None:
    try:
        return staged.resize(name, tensor, shape)
    except SourceError as error:
        raise SourceError(f"{file.path}: {error}.") from error


def _write(content: Mapping[str, Any], out: Path) -> None:
    """Write beside `out` first, so that nothing is left half-written."""
    with output(out) as draft:
        torch.save(content, draft)
