"""Linear layers that add to their result what an adapter adds to their weight.

A layer's class is exchanged for a subclass, so that its parameters keep their names.  What is
added comes from the arguments of the whole module's forward, which are at hand while it runs: the
adapter itself, or the number of one among those that the layer holds, for each row.

    rows      y[places] += x @ row_delta.T      S2FT's heads and channels of q, k, v, up, gate
    columns   y += x[columns] @ column_delta.T  of o and down
    low       y += (x @ down.T) @ up.T          LoRA
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.runtime.adapters import COLUMNS, LOW, NUMBER, PLACES, ROWS

GIVEN: ContextVar[Mapping[str, Tensor]] = ContextVar("GIVEN")
"""The adapter's arguments of the call of a module that runs, by name."""

Kind = tuple[str, str]
TURNED = "Conv1D"
PARTS: Mapping[Kind, tuple[str, str]] = {ROWS: (PLACES, ROWS[1]), COLUMNS: COLUMNS, LOW: LOW}
"""The two arrays of each kind of addition, as a layer takes them."""


def can_hold(layer: nn.Module, kinds: Collection[Kind]) -> bool:
    """Whether a layer is one to whose result additions of `kinds` can be added."""
    if isinstance(layer, nn.Linear):
        return True
    return is_turned(layer) and set(kinds) == {LOW}


def is_turned(layer: nn.Module) -> bool:
    """Whether it is the linear layer of transformers whose weight is [in, out]."""
    return type(layer).__name__ == TURNED and type(layer).__module__.startswith("transformers.")


def switched(layer: nn.Module, kinds: Mapping[Kind, Mapping[str, str]]) -> None:
    """Let `layer` add what the arguments hold.

    Args:
        layer: a linear layer.
        kinds: of each kind of addition, the argument's name by part.
    """
    turned = is_turned(layer)

    def added(_: nn.Module, x: Tensor) -> Tensor:
        given = GIVEN.get()
        held = {part: given[name] for names in kinds.values() for part, name in names.items()}
        parts = {part: _oriented(array, turned=turned) for part, array in held.items()}
        return sum_of(x, list(kinds), parts, turned=turned)

    _exchange(layer, added)


def parallel(path: str, layer: nn.Module, kinds: Mapping[Kind, Mapping[str, Tensor]]) -> None:
    """Let `layer` hold tables of adapters, and add to each row what its number says.

    A layer that is given tokens of all rows in one axis, [rows * tokens, in], is told by its first
    call, whose rows have more than one token.

    Args:
        path: of the layer, for messages.
        layer: a linear layer.
        kinds: of each kind of addition, the tables by part, the adapters along axis 0.
    """
    turned = is_turned(layer)
    tables = {part: table for found in kinds.values() for part, table in found.items()}
    for part, table in tables.items():
        index = table.ndim == 2  # one of each adapter
        made = table if index else _oriented(table, turned=turned).contiguous()
        layer.register_buffer(f"adapter_{part}", made)

    flat: list[bool] = []

    def added(own: nn.Module, x: Tensor) -> Tensor:
        number = GIVEN.get()[NUMBER]
        parts = {part: getattr(own, f"adapter_{part}")[number] for part in tables}
        if not flat:
            flat.append(_is_flat(path, x, len(number)))
        by_row = x.reshape(number.shape[0], -1, x.shape[-1]) if flat[0] else x
        made = sum_of(by_row, list(kinds), parts, turned=turned)
        return made.flatten(0, 1) if flat[0] else made

    _exchange(layer, added)


def _is_flat(path: str, x: Tensor, rows: int) -> bool:
    """Whether the first axis of x is that of rows and tokens in one.

    Raises:
        SourceError: if rows are along neither.
    """
    if x.ndim > 1 and x.shape[0] == rows:
        return False
    if x.ndim == 2 and x.shape[0] % rows == 0:
        return True
    raise SourceError(
        f"The layer {path} takes {list(x.shape)} for {rows} rows, which are not along its first "
        "axis, so that no row can have an adapter of its own there. Use --adapters switched."
    )


def sum_of(
    x: Tensor, kinds: Sequence[Kind], parts: Mapping[str, Tensor], *, turned: bool
) -> Tensor:
    """What is added to the result of a layer at x [..., in].

    Args:
        x: what the layer takes, rows along axis 0 where each has an adapter of its own.
        kinds: the kinds of addition.
        parts: the arrays by part, for all rows or with an axis of rows in front; matrices are
            those of the weight transposed, unless that is `turned`.
        turned: whether the weight is [in, out].
    """
    wide = x if x.ndim > 2 else x.unsqueeze(-2)
    total = _term(wide, kinds[0], parts, turned=turned)
    for kind in kinds[1:]:
        total = total + _term(wide, kind, parts, turned=turned)
    return total if x.ndim > 2 else total.squeeze(-2)


def _term(x: Tensor, kind: Kind, parts: Mapping[str, Tensor], *, turned: bool) -> Tensor:
    first, second = (parts[name] for name in PARTS[kind])
    second = second.to(x.dtype)
    if kind == LOW:
        first = first.to(x.dtype)
        return _times(_times(x, second), first) if turned else _times(_times(x, first), second)
    if kind == COLUMNS:
        return _times(_picked(x, first), second)
    made = _times(x, second)
    return _picked(torch.cat((torch.zeros_like(made[..., :1]), made), -1), first)


def _oriented(array: Tensor, *, turned: bool) -> Tensor:
    """A matrix of an adapter as inputs are multiplied by it; an index as it is."""
    return array if turned or array.ndim < 2 else array.mT


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """X [rows, ..., n] by one matrix [n, m], or by that of each row [rows, n, m]."""
    if matrix.ndim == 2:
        return x @ matrix
    return x @ matrix.reshape(matrix.shape[0], *(1,) * (x.ndim - 3), *matrix.shape[1:])


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """The entries of x [rows, ..., n] that `index` [k] names, or that of each row [rows, k]."""
    if index.ndim == 1:
        return x.index_select(-1, index)
    count = index.shape[-1]
    every = index.reshape(index.shape[0], *(1,) * (x.ndim - 2), count)
    return x.gather(-1, every.expand(*x.shape[:-1], count))


def _exchange(layer: nn.Module, added: Callable[[nn.Module, Tensor], Tensor]) -> None:
    kind = type(layer)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = kind.forward(self, x)
        return y + added(self, x)

    body = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    layer.__class__ = type(kind.__name__, (kind,), body)


def take_adapters(module: nn.Module, names: Sequence[str]) -> None:
    """Let the forward of the whole `module` take `names` by name, for its layers to find."""
    kind = type(module)

    def forward(self: nn.Module, *args: Any, **given: Any) -> Any:
        token = GIVEN.set({name: given.pop(name) for name in names})
        try:
            return kind.forward(self, *args, **given)
        finally:
            GIVEN.reset(token)

    own = list(inspect.signature(kind.forward).parameters.values())
    own = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
    by_name = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, by_name) for name in names]
    vars(forward)["__signature__"] = inspect.Signature([*own, *added])
    body = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    module.__class__ = type(kind.__name__, (kind,), body)
