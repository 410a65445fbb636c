"""From several models of one kind to one: `intaglio merge`."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.options.clock import Clock, Progress
from intaglio.exporter.options.loading import LoadKeywords, LoadOptions
from intaglio.exporter.sources.huggingface.directory import FORMAT as HUGGINGFACE
from intaglio.exporter.sources.load import load
from intaglio.exporter.sources.source import Source
from intaglio.keywords import spelled_out
from intaglio.models import FORMAT
from intaglio.places import require_free, require_writable
from intaglio.runtime.arrays import Array
from intaglio.runtime.plain_files import copy_folder
from intaglio.whole_files import output, replacing_folder

from .coupled import couplings, require_alike
from .merging.alignment import alignment, distance
from .merging.losses import Data, Loss, has_statistics, loss, read_data, recalibrate
from .merging.matching import Matched, match_many, mean

POINTS = 11  # of the path between two models
WEIGHTS = (".safetensors", ".bin", ".index.json")  # endings in a folder of Hugging Face
NEAR = 1e-4  # of the largest output: what sums in another order make
Tensors = dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class LossPath:
    """Losses along the line from the first model to the second, and accuracies, by t."""

    t: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float | None, ...]

    @property
    def barrier(self) -> float:
        """How far the loss rises at most above the line between the losses at both ends."""
        first, last = self.loss[0], self.loss[-1]
        rises = (x - (1 - t) * first - t * last for t, x in zip(self.t, self.loss, strict=True))
        return max(rises)


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What merging did: by pair with the first model, before matching and after.

    `moved` are units that were given another place, by group; `losses` those of each model and,
    last, of the merged one.
    """

    out: Path
    names: tuple[str, ...]
    groups: int
    moved: tuple[Mapping[str, int], ...]
    distances: tuple[tuple[float, float], ...]
    alignments: tuple[tuple[float, float], ...]
    losses: tuple[Loss, ...] = ()
    before: LossPath | None = None
    after: LossPath | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        paths = {"before": self.before, "after": self.after}
        return {
            "out": str(self.out),
            "models": list(self.names),
            "groups": self.groups,
            "moved": [dict(each) for each in self.moved],
            "distance": [{"before": a, "after": b} for a, b in self.distances],
            "alignment": [{"before": a, "after": b} for a, b in self.alignments],
            "losses": [{"loss": a, "accuracy": b} for a, b in self.losses],
            "paths": {
                name: {"t": path.t, "loss": path.loss, "barrier": path.barrier}
                for name, path in paths.items()
                if path is not None
            },
            "notes": list(self.notes),
        }


@spelled_out
def merge(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    matched: bool = True,
    t: float = 0.5,
    data: str | Path | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
    **options: Unpack[LoadKeywords],
) -> MergeReport:
    """Merge models of one kind into one, of the same form as the first.

    Args:
        models: their paths, at least two.
        out: the file or folder to write.
        matched: put the units of the others in the order of the first one's before.
        t: how far from the first model to the second, where there are two; the mean otherwise.
        data: inputs with labels, or text: what losses are measured on, and statistics of norms
            taken anew from.
        seed: of the order in which groups are visited.
        force: replace what is at `out`.
        progress: is told each phase.
        **options: how all of them are loaded.

    Raises:
        OptionError: if there is one model, or `t` is for more than two or not between 0 and 1.
        SourceError: if they are not of one kind; the first difference is named.
        InputError: if the data cannot be read or does not fit.
    """
    _check(models, t, Path(out), force=force)
    if seed < 0:
        raise OptionError(f"--seed is {seed}; it should be 0 or more.")
    clock = Clock(progress)
    with clock.phase("load"):
        sources = [load(Path(path), LoadOptions.of(options)) for path in models]
        weights = [_weights(source) for source in sources]
        for source, each in zip(sources[1:], weights[1:], strict=True):
            _require_alike(sources[0], weights[0], source, each)
        read = None if data is None else read_data(data, sources[0])
    groups = []
    made = [Matched(weights=each, orders={}, sweeps=0) for each in weights]
    if matched:
        with clock.phase("couplings"):
            groups = couplings(sources[0])
        with clock.phase("match"):
            made = match_many(weights, groups, seed)
        for source, before, after in zip(sources, weights, made, strict=True):
            _require_same(source, before, after.weights)
    shares = [1 - t, t] if len(models) == 2 else None
    merged = mean([each.weights for each in made], shares)
    module = copy.deepcopy(sources[0].module)
    with clock.phase("losses"):
        losses, paths = _losses(module, weights, [m.weights for m in made], merged, read)
    notes = []
    _put(module, merged)
    if has_statistics(module):
        if read is None:
            notes.append(
                "The model has batch norms, whose statistics are those of the models averaged, "
                "and not of the merged one. Give data to take them anew: --data FILE.npz."
            )
        else:
            recalibrate(module, read)
    with clock.phase("write"):
        _write(Path(models[0]), sources[0], module, Path(out))
    first = weights[0]
    return MergeReport(
        out=Path(out),
        names=tuple(source.name for source in sources),
        groups=len(groups),
        moved=tuple(_moved(each) for each in made[1:]),
        distances=tuple(
            (distance(first, a), distance(first, b.weights))
            for a, b in zip(weights[1:], made[1:], strict=True)
        ),
        alignments=tuple(
            (alignment(first, a), alignment(first, b.weights))
            for a, b in zip(weights[1:], made[1:], strict=True)
        ),
        losses=losses,
        before=paths[0],
        after=paths[1],
        notes=tuple(notes),
    )


def _check(models: Sequence[str | Path], t: float, out: Path, *, force: bool) -> None:
    if len(models) < 2:
        raise OptionError("Merging takes at least two models: intaglio merge A B -o OUT.")
    if not 0 <= t <= 1:
        raise OptionError(f"t is {t}; it should be from 0, the first model, to 1, the second.")
    if len(models) > 2 and t != 0.5:
        raise OptionError("--t is a place between two models; more are averaged.")
    if out.exists() and out.resolve() in [Path(path).resolve() for path in models]:
        raise OptionError(f"{out} is one of the models. Choose another place.")
    first = Path(models[0])
    if first.is_dir() and out.resolve().is_relative_to(first.resolve()):
        raise OptionError(f"{out} lies within {first}, which is copied. Choose another place.")
    if out.is_dir() and not (first.is_dir() and (out / "config.json").is_file()):
        raise OptionError(f"{out} is a folder, and no model's. Choose another place.")
    if not force:
        require_free(out)
    require_writable(out)


def _weights(source: Source) -> Tensors:
    """All tensors of a source's state dict."""
    if not isinstance(source.body, nn.Module):
        raise SourceError(f"{source.name} is a graph; merging takes weights or modules.")
    return {n: x.detach().cpu().numpy().copy() for n, x in source.module.state_dict().items()}


def _require_alike(first: Source, own: Tensors, second: Source, weights: Tensors) -> None:
    require_alike(first, own, second, weights)
    if first.config != second.config:
        raise SourceError(
            f"{first.path} and {second.path} were built with other configs: {first.config} and "
            f"{second.config}."
        )


def _require_same(source: Source, before: Tensors, after: Tensors) -> None:
    """Hold a model with its units in another order to what it was.

    Raises:
        SourceError: if it computes something else.
    """
    module, inputs = copy.deepcopy(source.module), source.inputs
    outputs = []
    for weights in (before, after):
        _put(module, weights)
        with torch.no_grad():
            outputs.append(_all_outputs(module(**inputs)))
    for a, b in zip(*outputs, strict=True):
        if float(np.abs(a - b).max(initial=0)) > NEAR * max(float(np.abs(a).max(initial=0)), 1e-30):
            raise SourceError(
                f"{source.path} computes something else with its units in another order, beyond "
                f"{NEAR:g} of its largest output. Merge it as it is: --no-match."
            )


def _all_outputs(value: Any) -> list[Array]:
    if isinstance(value, torch.Tensor):
        return [value.double().numpy()]
    entries = value.values() if isinstance(value, Mapping) else value
    return [array for entry in entries or () for array in _all_outputs(entry)]


def _put(module: nn.Module, weights: Tensors) -> None:
    module.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in weights.items()})


def _moved(made: Matched) -> dict[str, int]:
    counts = {n: int((o != np.arange(len(o))).sum()) for n, o in made.orders.items()}
    return {name: count for name, count in counts.items() if count}


def _losses(
    module: nn.Module,
    weights: Sequence[Tensors],
    made: Sequence[Tensors],
    merged: Tensors,
    data: Data | None,
) -> tuple[tuple[Loss, ...], tuple[LossPath | None, LossPath | None]]:
    """Losses of each model and the merged one; of two, along the paths before and after."""
    if data is None:
        return (), (None, None)
    ends = [_loss(module, each, data, anew=False) for each in weights]
    found = [*ends, _loss(module, merged, data, anew=True)]
    if len(weights) > 2:
        return tuple(found), (None, None)
    before, after = (
        _path(module, weights[0], second, data, (ends[0], ends[1]))
        for second in (weights[1], made[1])
    )
    return tuple(found), (before, after)


def _path(
    module: nn.Module,
    first: Tensors,
    second: Tensors,
    data: Data,
    ends: tuple[Loss, Loss],
) -> LossPath:
    places = tuple(float(t) for t in np.linspace(0, 1, POINTS))
    between = [
        _loss(module, mean([first, second], [1 - t, t]), data, anew=True) for t in places[1:-1]
    ]
    found = [ends[0], *between, ends[1]]
    return LossPath(t=places, loss=tuple(x for x, _ in found), accuracy=tuple(x for _, x in found))


def _loss(module: nn.Module, weights: Tensors, data: Data, *, anew: bool) -> Loss:
    _put(module, weights)
    if anew and has_statistics(module):
        recalibrate(module, data)
    return loss(module, data)


def _write(path: Path, source: Source, module: nn.Module, out: Path) -> None:
    """Write the module in the form of the first model: its format, with its names."""
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    if source.format.startswith(HUGGINGFACE):
        from safetensors.torch import save_file

        with replacing_folder(out) as draft:
            copy_folder(path, draft, without=WEIGHTS)
            kept = {n: x.contiguous() for n, x in state.items() if n not in source.aliases}
            save_file(kept, draft / "model.safetensors", {"format": "pt"})
        return
    for alias, name in source.aliases.items():
        if alias in state and name in state:
            state[alias] = state[name]
    with output(out) as draft:
        if source.format == "safetensors":
            from safetensors.torch import save_file

            save_file({n: x for n, x in state.items() if n not in source.aliases}, draft)
        elif source.format == FORMAT:
            named = {"format": FORMAT, "model": source.model, "config": source.config}
            torch.save({**named, "state_dict": state}, draft)
        else:
            torch.save(state, draft)
