"""Which axes of inputs and states are batch and time, where nobody named them: by trying.

An axis is the batch if the module runs with more entries along it, in all inputs and states at
once, and each state comes back as large.  It is time if the module runs with more entries of the
inputs alone, states come back as they were, and entries in two parts give what all of them give.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intaglio.errors import OptionError
from intaglio.state import BATCH, TIME

MORE = 2  # entries that are added along an axis
LIMIT = 1e-3  # of the largest: parts of a sequence differ by far more where they do
TRIED = 256

Tensors = Mapping[str, Tensor]
Run = Callable[[Tensors], Tensors]
Shape = tuple[int | str, ...]
Places = dict[str, int]  # an axis of each input that has it


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """A module that can be run on `examples`, and which input of them becomes which output."""

    run: Run
    examples: Tensors
    states: Mapping[str, str]

    @property
    def plain(self) -> list[str]:
        """The inputs that are no states."""
        return [name for name in self.examples if name not in self.states]

    def grown(self, places: Places, by: int = MORE) -> Tensors | None:
        """Outputs with more entries along `places`; None where that does not run."""
        inputs = {n: longer(x, places.get(n), by) for n, x in self.examples.items()}
        return self.attempt(inputs)

    def attempt(self, inputs: Tensors) -> Tensors | None:
        """Outputs for `inputs`; None where they cannot be had."""
        try:
            with torch.no_grad():
                return self.run(inputs)
        except Exception:  # noqa: BLE001  a module fails in its own ways at sizes it does not take
            return None

    def comes_back(self, outputs: Tensors | None, places: Places) -> bool:
        """Whether each state has the shape that it went in with, grown along `places`."""
        return outputs is not None and all(
            outputs[after].shape == longer(self.examples[name], places.get(name), MORE).shape
            for name, after in self.states.items()
        )


def changes_per_call(sizing: Sizing) -> bool:
    """Whether the module takes any length, but not in parts: its states change once a call."""
    deepest = max((sizing.examples[name].ndim for name in sizing.plain), default=0)
    for axis in range(1, deepest):
        places = {n: axis for n in sizing.plain if sizing.examples[n].ndim > axis}
        if sizing.comes_back(sizing.grown(places), {}) and not _continues(sizing, places):
            return True
    return False


def settle(sizing: Sizing, given: Mapping[str, Sequence[int | str]]) -> dict[str, Shape]:
    """The shapes of all inputs, with `given` where the user said, else by trying.

    Raises:
        OptionError: if several axes of a state could be the batch.
    """
    shapes: dict[str, list[int | str]] = {
        name: list(given.get(name, value.shape)) for name, value in sizing.examples.items()
    }
    for places, symbol in ((batch_places(sizing, given), BATCH), (_time(sizing, given), TIME)):
        for name, axis in places.items():
            if name not in given and isinstance(shapes[name][axis], int):
                shapes[name][axis] = symbol
    return {name: tuple(shape) for name, shape in shapes.items()}


def _named(given: Mapping[str, Sequence[int | str]], symbol: str) -> Places:
    return {name: list(dims).index(symbol) for name, dims in given.items() if symbol in dims}


def batch_places(sizing: Sizing, given: Mapping[str, Sequence[int | str]]) -> Places:
    """The axis of the batch in each input that has one; `given` are those that the user named.

    Raises:
        OptionError: if several axes of a state could be it.
    """
    fixed = _named(given, BATCH)
    open_ = [n for n in sizing.plain if n not in given and sizing.examples[n].ndim]
    first = next((n for n in sizing.plain if n in fixed or n in open_), None)
    if first is None:
        return {}
    size = sizing.examples[first].shape[fixed.get(first, 0)]
    fixed |= {name: 0 for name in open_ if sizing.examples[name].shape[0] == size}
    free = [name for name in sizing.states if name not in given]
    choices = [
        [axis for axis, n in enumerate(sizing.examples[name].shape) if n == size] for name in free
    ]
    for shared in (False, True):  # a state without rows is one for all: only where nothing else is
        tried = itertools.product(
            *([*each, None] if shared or not each else each for each in choices)
        )
        found = list(_fitting(sizing, fixed, free, itertools.islice(tried, TRIED)))
        if len(found) > 1:
            name = next(n for n in free if len({places.get(n) for places in found}) > 1)
            shape = [*sizing.examples[name].shape]
            shape[found[0].get(name, 0)] = BATCH
            raise OptionError(
                f"Several axes of the state {name!r} {list(sizing.examples[name].shape)} could "
                f"be the batch. Say which: --axes {name}:{'x'.join(map(str, shape))}, for example."
            )
        if found:
            return found[0]
    return {}


def _fitting(
    sizing: Sizing, fixed: Places, free: Sequence[str], tried: Iterator[tuple[int | None, ...]]
) -> Iterator[Places]:
    for axes in tried:
        places = fixed | {n: axis for n, axis in zip(free, axes, strict=True) if axis is not None}
        if sizing.comes_back(sizing.grown(places), places):
            yield places


def _time(sizing: Sizing, given: Mapping[str, Sequence[int | str]]) -> Places:
    named = _named(given, TIME)
    free = [name for name in sizing.plain if name not in given]
    deepest = max((sizing.examples[name].ndim for name in free), default=0)
    for axis in range(1, deepest):
        places = named | {name: axis for name in free if sizing.examples[name].ndim > axis}
        if _continues(sizing, places):
            return places
    return named


def _continues(sizing: Sizing, places: Places) -> bool:
    """Whether entries along `places` in two parts give what all of them give at once."""
    length = max(sizing.examples[name].shape[axis] for name, axis in places.items()) + MORE
    whole = {
        name: cut(longer(x, places.get(name), MORE), places.get(name), 0, length)
        for name, x in sizing.examples.items()
    }
    at_once = sizing.attempt(whole)
    if not sizing.comes_back(at_once, {}) or at_once is None:
        return False
    middle = length // 2
    first = sizing.attempt({n: cut(x, places.get(n), 0, middle) for n, x in whole.items()})
    if first is None:
        return False
    rest = {n: cut(x, places.get(n), middle, length) for n, x in whole.items()}
    carried = {name: first[after] for name, after in sizing.states.items()}
    second = sizing.attempt(rest | carried)
    return second is not None and _joined(at_once, first, second, sizing.states)


def _joined(whole: Tensors, first: Tensors, second: Tensors, states: Mapping[str, str]) -> bool:
    grew = False
    for name, wanted in whole.items():
        a, b = first[name], second[name]
        axes = [i for i in range(wanted.ndim) if wanted.shape[i] != b.shape[i]] if (
            wanted.ndim == a.ndim == b.ndim
        ) else [0, 0]  # fmt: skip
        if len(axes) > 1:
            return False
        if axes and name not in states.values():
            grew = True
            if a.shape[axes[0]] + b.shape[axes[0]] != wanted.shape[axes[0]]:
                return False
            b = torch.cat((a, b), axes[0])
        if not close(b, wanted):
            return False
    return grew


def close(a: Tensor, b: Tensor) -> bool:
    """Whether `a` has the shape of `b`, and its values up to a small part of the largest."""
    scale = float(b.double().abs().max()) if b.numel() else 0.0
    same = a.shape == b.shape
    return same and torch.allclose(
        a.double(), b.double(), rtol=0, atol=LIMIT * scale, equal_nan=True
    )


def longer(x: Tensor, axis: int | None, by: int) -> Tensor:
    """`x` with `by` more entries along `axis`, its first ones again."""
    if axis is None:
        return x
    return x.index_select(axis, torch.arange(x.shape[axis] + by) % x.shape[axis])


def cut(x: Tensor, axis: int | None, start: int, stop: int) -> Tensor:
    """The entries from `start` to `stop` along `axis`."""
    return x if axis is None else x.narrow(axis, start, min(stop, x.shape[axis]) - start)
