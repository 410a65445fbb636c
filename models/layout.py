"""Layouts: how checkpoints that other code wrote are read into a model here.

A layout is a record at the end of the model's file; `renamed` is all that most need of weights:
``renamed(tensors, {"A_log": "encoder.A_log"})``.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from intaglio.errors import SourceError

from ._values import fits, words

REQUIRED = object()
Values = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class CheckpointLayout:
    """The names, shapes and config values of checkpoints of a model that other code wrote.

    `fits` is asked first, of the config that came with the weights ({} without one) and the names
    in the file: it answers for any values, and tells by as few as possible whose file it is.
    `configure` makes the values of `Model.configure` of the config and the shapes by name,
    `weights` the tensors by our names of those in the file and of the config that came out.

    Both raise `SourceError` for what they refuse, and may leave a `KeyError` that names the value
    or the tensors that are missing.  Whatever tensor is not asked for is unexpected in the file.
    `source` is the repository, its commit and the file that all this was read from.  `beside` are
    values of the config that name further files of the same directory, each a list of tensors: the
    k-th is given as ``VALUE.k``.
    """

    name: str
    source: str
    fits: Callable[[Values, Collection[str]], bool]
    configure: Callable[[Values, Shapes], dict[str, Any]]
    weights: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]
    beside: tuple[str, ...] = ()


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors under new names, of new name -> name in the file.

    Raises:
        KeyError: the file lacks some; they are its arguments.
    """
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    if missing:
        raise KeyError(*missing)
    return {ours: tensors[theirs] for ours, theirs in names.items()}


def read_value(values: Values, name: str, kind: Any, default: Any = REQUIRED) -> Any:
    """The config's value `name` of an annotation as a config has it, as ``int | None``.

    Raises:
        KeyError: it is missing and has no default.
        SourceError: it is of another kind.
    """
    found = values[name] if default is REQUIRED else values.get(name, default)
    if name in values and not fits(found, kind):
        raise SourceError(f"its config has {name} = {found!r}; it should be {words(kind)}")
    return found


def refuse(values: Values, supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Hold options to the values that are supported, by name; one that is absent passes.

    Raises:
        SourceError: one has another value.
    """
    for name, known in supported.items():
        if name in values and not any(_same(values[name], value) for value in known):
            choices = " or ".join(map(repr, known))
            raise SourceError(
                f"its config has {name} = {values[name]!r}, of which only {choices} is supported"
            )


def _same(found: object, known: object) -> bool:
    """Equal and of one kind: 1 is not true."""
    return found == known and isinstance(found, bool) == isinstance(known, bool)
