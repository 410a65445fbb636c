"""Weights in the layout of other code: whose they are, and what they are by the names of ours.

A layout is a record of `intaglio.models`, code of ours: nothing of the file is run.
What does not fit is said in the names that the file and its config have, so each tensor is
followed from the file through what the layout makes of it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from intaglio import models
from intaglio.errors import SourceError
from intaglio.exporter.sources.known_model import outline
from intaglio.exporter.sources.state_dict import (
    MARKS,
    PARALLEL,
    check_finite,
    check_fit,
    check_names,
    check_shapes,
    tied_names,
    unreadable,
)
from intaglio.models import CheckpointLayout, Model
from intaglio.models.layout import Asked

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """A layout that fits, and the model that it belongs to."""

    model: Model
    layout: CheckpointLayout

    def __str__(self) -> str:
        return f"the layout {self.layout.name!r} of the model {self.model.name!r}"


class LazyNames(Collection[str]):
    """Names that are read only once something is asked of them."""

    def __init__(self, read: Callable[[], Collection[str]]) -> None:
        self._read = read
        self._found: Collection[str] | None = None

    def _names(self) -> Collection[str]:
        if self._found is None:
            self._found = frozenset(self._read())
        return self._found

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())


def find_layout(
    values: Values, keys: Collection[str], path: Path, named: Model | None = None
) -> Fitting | None:
    """Return the layout that fits a config and the names in a file, of the model `named` or of all.

    Raises:
        SourceError: if two fit.
    """
    plain = LazyNames(lambda: list(_names(keys).values()))
    found = [
        Fitting(model=model, layout=layout)
        for model in (models.MODELS if named is None else (named,))
        for layout in model.layouts
        if layout.fits(values, plain)
    ]
    if len(found) > 1:
        owners = list(dict.fromkeys(entry.model.name for entry in found))
        say = f" Say which: {' or '.join(f'--model {name}' for name in owners)}."
        raise SourceError(
            f"{path} fits {' and '.join(map(str, found))}.{say if len(owners) > 1 else ''}"
        )
    return found[0] if found else None


def is_ours(model: Model, values: Values, tensors: Mapping[str, Any], path: Path) -> bool:
    """Whether the config and the names and shapes of a file are those of the model itself."""
    try:
        check_fit(outline(model, model.configure(values), len(tensors)), tensors, path)
    except SourceError:
        return False
    return True


def read_layout(
    fitting: Fitting, values: Values, tensors: Mapping[str, Any], path: Path
) -> tuple[Any, dict[str, Tensor]]:
    """The config of the model and its tensors by its own names.

    Raises:
        SourceError: if a value of the config or a tensor is missing, unexpected or of another
            shape; it is named as the config and the file name it.
    """
    given = _plain(tensors, path)
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    with_config = f"{path} does not fit {fitting}"
    made = _tell(with_config, "config lacks", _configured, fitting.layout, values, shapes)
    config = fitting.model.configure(made)
    module = outline(fitting.model, config, len(given))
    read = _Read(given)
    with torch.no_grad(), _Followed(given) as followed:
        found = _tell(with_config, "file lacks", fitting.layout.weights, read, config)
    _check(module, found, read, followed, path)
    return config, found


def _configured(
    layout: CheckpointLayout, values: Values, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """What a layout makes of a config, none of whose values is passed over in silence."""
    asked = Asked(values)
    made = layout.configure(asked, shapes)
    if layout.immaterial is not None:
        asked.check(layout.immaterial)
    return made


def _tell(said: str, lacks: str, call: Callable[..., Any], *args: Any) -> Any:
    """What a function of a layout gives; what it raises becomes an error on the file."""
    try:
        return call(*args)
    except KeyError as error:
        names = ", ".join(map(repr, error.args[:8]))
        more = f" and {len(error.args) - 8} more" if len(error.args) > 8 else ""
        raise SourceError(f"{said}: its {lacks} {names}{more}.") from error
    except SourceError as error:
        raise SourceError(f"{said}: {str(error).rstrip('.')}.") from error
    except Exception as error:
        line = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise SourceError(f"{said}: {line}.") from error


def _plain(tensors: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a file without the marks of wrappers; what is no tensor is left out."""
    kept = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    found: dict[str, Tensor] = {}
    for key, name in _names(kept).items():
        value = kept[key]
        kind = unreadable(value)
        if kind and kind != "complex":
            raise SourceError(f"{path}: {key!r} is {kind}, which is not read. Save it dense.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise SourceError(f"{path}: {key!r} repeats the numbers that it holds. Save it dense.")
        if name in found:
            raise SourceError(f"{path} holds {name!r} twice, once as {key!r}.")
        found[name] = value.detach()
    return found


def _names(keys: Collection[str]) -> dict[str, str]:
    """What each name in a file is without the marks of wrappers."""
    wrapped = all(key.startswith(PARALLEL) for key in keys)
    plain = {key: key.removeprefix(PARALLEL) if wrapped else key for key in keys}
    return {
        key: ".".join(part for part in name.split(".") if part not in MARKS)
        for key, name in plain.items()
    }


class _Read(Mapping[str, Tensor]):
    """The tensors of a file, and which of them were asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.asked.add(name)
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _Followed(TorchDispatchMode):
    """Which tensors of the file each tensor was computed from, while the mode is on."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._from = {id(tensor): [name] for name, tensor in tensors.items()}
        self._alive: list[Tensor] = []  # so that no id is used twice

    def names(self, tensor: Tensor) -> list[str]:
        """Names in the file, in the order in which they were used."""
        return self._from.get(id(tensor), [])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        used = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        names = list(dict.fromkeys(name for x in used for name in self.names(x)))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and names:
                self._from[id(made)] = names
                self._alive.append(made)
        return result


def _check(
    module: nn.Module,
    found: Mapping[str, Tensor],
    read: _Read,
    followed: _Followed,
    path: Path,
) -> None:
    """Hold what a layout made to the model, one to one, in the names of the file."""
    expected = module.state_dict()
    ties = tied_names(module)
    groups = {name: {name, ties.get(name, name)} for name in expected}
    for alias, kept in ties.items():
        groups.setdefault(kept, {kept}).add(alias)

    def theirs(name: str) -> str:
        return " and ".join(followed.names(found[name])) or name

    surplus = [name for name in found if name not in expected]
    unexpected = [name for name in read if name not in read.asked] + list(map(theirs, surplus))
    missing = [name for name in expected if not groups[name] & found.keys()]
    known = {name for name in read if name not in unexpected}
    check_names([*known, *unexpected], [*known, *missing], path)
    wrong = [
        (theirs(name), tuple(value.shape), tuple(expected[name].shape))
        for name, value in found.items()
        if value.shape != expected[name].shape
    ]
    check_shapes(wrong, path)
    check_finite({name: read[name] for name in read}, (), path)
