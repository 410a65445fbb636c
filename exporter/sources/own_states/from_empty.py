"""Modules that are given caches, or keep them, and append to them what they make of each token.

The cache of an engine is found in the model of all tokens, by what attention is there.  So such a
module is exported as what it is from empty caches: called with all tokens at once, where this gives
what one call for each token gives; else, where a call takes one token, as those calls, which are a
loop over tokens.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.examples import describe_inputs
from intaglio.exporter.sources.input_spec import Takes
from intaglio.exporter.sources.outputs import leaves, name_outputs
from intaglio.state import BATCH, TIME

from .functional import Functional, give_back, keep_slots, own_forward, take_forward
from .grown import CACHE, Grown
from .initial import initial_of
from .kept import as_it_was, copied, get, put
from .state_axes import MORE, Places, Shape, Sizing, Tensors, batch_places, close, cut, longer

TRIED = (5, 19, 67)  # tokens, at once and one by one: a window of the module may be in between
ONE_BY_ONE = " The model is called for one token after the other."


@dataclass(frozen=True, kw_only=True)
class FromEmpty:
    """A module that is called for tokens 0 to T - 1, with caches that are empty at first.

    `along` tells where inputs have tokens: an axis, or None where a call takes one that has none.
    Those in `so_far` have entries for all tokens until then, as a mask over the cache has.  States
    of one size are carried beside the caches.
    """

    form: Functional
    caches: Mapping[str, Grown]
    states: Mapping[str, str]
    without: bool  # whether the first call is without the arguments that are caches
    starts: Tensors = field(default_factory=dict)  # one row of each state before the first call
    rows: Places = field(default_factory=dict)  # the axis of the batch, where there is one
    along: Mapping[str, int | None] = field(default_factory=dict)
    so_far: frozenset[str] = frozenset()
    many: bool = False  # whether a call takes more than one token
    example: int = 1  # tokens of the example

    @property
    def plain(self) -> list[str]:
        """The inputs that are neither caches nor states."""
        return [name for name in self.form.given if name not in self.carried]

    @property
    def carried(self) -> dict[str, str]:
        """The output that each cache and state is in the next call."""
        return {name: each.output for name, each in self.caches.items()} | dict(self.states)

    def at_once(self, module: nn.Module, flat: Tensors) -> Tensors:
        """What one call gives for all tokens, without what is carried."""
        with self._from_start(module):
            return self._rest(self._call(module, {**flat, **self._first(module, flat)}))

    def one_by_one(self, module: nn.Module, flat: Tensors) -> Tensors:
        """What one call for each token gives, put together along time."""
        carried, made = self._first(module, flat), list[Tensors]()
        with self._from_start(module):
            for t in range(self._length(flat)):
                given = {name: self._token(name, flat[name], t) for name in self.plain}
                outputs = self._call(module, {**given, **carried})
                carried = {name: outputs[after] for name, after in self.carried.items()}
                made.append(self._rest(outputs))
        return {name: self._joined([each[name] for each in made]) for name in made[0]}

    def appended(self, module: nn.Module, flat: Tensors) -> int | None:
        """How many entries a call gives to each cache; None if it does not run, or they differ."""
        try:
            with self._from_start(module), torch.no_grad():
                outputs = self._call(module, flat)
                found = {
                    outputs[each.output].shape[each.axis] - flat[name].shape[each.axis]
                    for name, each in self.caches.items()
                }
                for slot, axis in self.form.grows.items():
                    kept = get(module.get_submodule(slot.path), slot.name)
                    sizes = [_size(x, axis) for x in (self.form.starts[slot], kept)]
                    found.add(sizes[1] - sizes[0])
        except Exception:  # noqa: BLE001  a module fails in its own ways at sizes it does not take
            return None
        return found.pop() if len(found) == 1 else None

    def as_long(self, module: nn.Module, flat: Tensors) -> Tensors:
        """The outputs of a call, caches without what it gave to them."""
        with self._from_start(module):
            outputs = self._call(module, flat)
        short = {
            each.output: cut(outputs[each.output], each.axis, 0, flat[name].shape[each.axis])
            for name, each in self.caches.items()
        }
        return outputs | short

    def examples(self) -> dict[str, Tensor]:
        """Example inputs of all tokens; of a few where a call takes one that has no axis."""
        return {name: self._example(name, self.form.inputs[name]) for name in self.plain}

    def _example(self, name: str, x: Tensor) -> Tensor:
        if name not in self.along:
            return x
        axis = self.along[name]
        return torch.stack([x] * MORE, 1) if axis is None else x.narrow(axis, 0, self.example)

    @contextlib.contextmanager
    def _from_start(self, module: nn.Module) -> Iterator[None]:
        with as_it_was(module):
            for slot, value in self.form.starts.items():
                own = tree_map(lambda x: _as_floats_of(module, copied(x)), value)
                put(module.get_submodule(slot.path), slot.name, own)
            yield

    def _call(self, module: nn.Module, flat: Tensors) -> dict[str, Tensor]:
        """The outputs of a call with those arguments that `flat` has."""
        given = {
            name: nested.build(flat)
            for name, nested in self.form.arguments.items()
            if all(each in flat for each in nested.names)
        }
        return name_outputs(module, own_forward(module)(**given))

    def _rest(self, outputs: Tensors) -> dict[str, Tensor]:
        away = self.carried.values()
        return {name: value for name, value in outputs.items() if name not in away}

    def _length(self, flat: Tensors) -> int:
        name = next(n for n in self.along if n not in self.so_far)
        axis = self.along[name]
        return flat[name].shape[1 if axis is None else axis]

    def _token(self, name: str, x: Tensor, t: int) -> Tensor:
        axis = self.along.get(name, 0)
        if name not in self.along:
            return x
        if axis is None:
            return x.select(1, t)
        return x.narrow(axis, 0, t + 1) if name in self.so_far else x.narrow(axis, t, 1)

    def _joined(self, outputs: Sequence[Tensor]) -> Tensor:
        one = outputs[0]
        lies = any(axis is not None for axis in self.along.values())
        if lies and one.ndim > 1 and one.shape[1] == 1:
            return torch.cat(list(outputs), 1)
        return torch.stack(list(outputs), min(one.ndim, 1))

    def _first(self, module: nn.Module, flat: Tensors) -> dict[str, Tensor]:
        """Caches without entries, and states before the first call; nothing where it has none."""
        if self.without:
            return {}
        rows = next((flat[n].shape[a] for n, a in self.rows.items() if n in flat), 1)
        found = {}
        for name in self.carried:
            example = self.form.inputs[name]
            shape = list(example.shape)
            if name in self.rows:
                shape[self.rows[name]] = rows
            if name in self.caches:
                shape[self.caches[name].axis] = 0
                found[name] = example.new_zeros(shape)
            else:
                found[name] = self.starts[name].to(example.dtype).expand(shape).clone()
            found[name] = _as_floats_of(module, found[name], flat)
        return found


def _as_floats_of(module: nn.Module, value: Any, flat: Tensors | None = None) -> Any:
    """A tensor of floats in the precision that `module` computes in."""
    known = (*module.parameters(), *(flat or {}).values())
    kind = next((x.dtype for x in known if x.dtype.is_floating_point), None)
    floats = isinstance(value, Tensor) and value.dtype.is_floating_point
    return value.to(kind) if floats and kind is not None else value


def _size(kept: Any, axis: int) -> int:
    """Entries of the first tensor in what is kept."""
    return next((x.shape[axis] for _, x in leaves(kept)), 0)


def from_empty(
    module: nn.Module,
    form: Functional,
    caches: Mapping[str, Grown],
    states: Mapping[str, str],
    options: LoadOptions,
    owner: str,
) -> Takes | None:
    """Let `module` take all tokens and give what it gives from empty caches; what it then takes.

    None where its calls for one token and for several do not go together; it stays as it is.
    """
    calls = _settled(module, form, caches, states, options)
    if calls is None:
        return None
    keep_slots(module, form)
    if calls.many:
        takes = _taking(module, calls, FromEmpty.at_once, options, owner)
        if _agree(module, calls, takes):
            return replace(takes, notes=(*takes.notes, _note(calls)))
    if calls.example > 1:  # a call with several tokens is one of its own
        give_back(module)
        return None
    takes = _taking(module, calls, FromEmpty.one_by_one, options, owner)
    return replace(takes, notes=(*takes.notes, _note(calls) + ONE_BY_ONE))


def _settled(
    module: nn.Module,
    form: Functional,
    caches: Mapping[str, Grown],
    states: Mapping[str, str],
    options: LoadOptions,
) -> FromEmpty | None:
    """Where the tokens and rows of `module` are; None where its caches do not grow by tokens."""
    carried = {*caches, *states}
    mine = {name: {*nested.names} for name, nested in form.arguments.items()}
    given = [name for name, names in mine.items() if names & carried]
    if any(mine[name] - carried for name in given):
        return None
    takes = inspect.signature(own_forward(module)).parameters
    without = bool(given) and all(takes[name].default is None for name in given)
    calls = FromEmpty(form=form, caches=caches, states=states, without=without)
    examples = {name: form.inputs[name] for name in (*calls.plain, *carried)}
    count = calls.appended(module, examples)
    found = _tokens(module, calls, examples, count) if count else None
    if found is None:
        return None
    sizing = Sizing(
        run=lambda flat: calls.as_long(module, flat), examples=examples, states=calls.carried
    )
    rows = batch_places(sizing, options.axes or {})
    starts = {
        name: torch.as_tensor(
            initial_of(module, name, after, form, options, _in_rows(examples[name], rows.get(name)))
        )
        for name, after in states.items()
    }
    return replace(found, rows=rows, starts=starts)


def _in_rows(example: Tensor, axis: int | None) -> Shape:
    return tuple(BATCH if i == axis else size for i, size in enumerate(example.shape))


def _tokens(module: nn.Module, calls: FromEmpty, examples: Tensors, count: int) -> FromEmpty | None:
    """`calls` with the axes of tokens, of which the example has `count`."""
    plain = {name: examples[name] for name in calls.plain}
    past = next((examples[n].shape[each.axis] for n, each in calls.caches.items()), 0)
    for axis in range(1, max((x.ndim for x in plain.values()), default=0)):
        sized = {n: x.shape[axis] for n, x in plain.items() if x.ndim > axis}
        along = {n: axis for n, size in sized.items() if size in (count, past + count)}
        more = {n: longer(x, axis if n in along else None, MORE) for n, x in examples.items()}
        if count in sized.values() and calls.appended(module, more) == count + MORE:
            so_far = frozenset(n for n in along if sized[n] != count)
            return replace(calls, along=along, so_far=so_far, many=True, example=count)
    if count > 1:
        return None
    deep = [x for x in plain.values() if x.ndim > 1]
    lies = bool(deep) and all(x.shape[1] == 1 for x in deep)
    each = 1 if lies else None
    found = {name: each for name, x in plain.items() if x.ndim > lies}
    return replace(calls, along=found) if found else None


def _taking(
    module: nn.Module,
    calls: FromEmpty,
    way: Callable[[FromEmpty, nn.Module, Tensors], Tensors],
    options: LoadOptions,
    owner: str,
) -> Takes:
    """Let `module` be called that `way`, and describe what it takes."""
    names = calls.plain

    def forward(self: nn.Module, *given: Tensor, **flat: Tensor) -> Tensors:
        return way(calls, self, dict(zip(names, given, strict=False)) | flat)

    take_forward(module, forward, names)
    return describe_inputs(module, calls.examples(), options.axes, owner, options.condition)


def _agree(module: nn.Module, calls: FromEmpty, takes: Takes) -> bool:
    """Whether tokens at once and one by one give the same, by random inputs of all sizes it takes.

    The graph is then held to what the module gives at once, whatever the length.
    """
    if not any(TIME in axes.values() for axes in takes.dynamic.values()):
        return False
    agreed = False
    for size in TRIED:
        flat = takes.sample({**takes.sizes, TIME: size}, 0)
        once = _attempt(calls.at_once, module, flat)
        each = _attempt(calls.one_by_one, module, flat)
        if once is None and each is None:
            break
        if once is None or each is None:
            return False
        agreed = all(
            close(once[n], x) or close(once[n], x.select(min(x.ndim, 2) - 1, -1))
            for n, x in each.items()
        )
        if not agreed:
            return False
    return agreed


def _attempt(
    way: Callable[[nn.Module, Tensors], Tensors], module: nn.Module, flat: Tensors
) -> Tensors | None:
    """What a module gives; None where it does not take so many tokens."""
    try:
        with torch.no_grad():
            return way(module, flat)
    except Exception:  # noqa: BLE001  a module fails in its own ways at sizes it does not take
        return None


def _note(calls: FromEmpty) -> str:
    kept = [slot.words for slot in calls.form.grows]
    names = ", ".join([*map(repr, calls.caches), *kept])
    return (
        f"Each call gives further entries to {names}, {CACHE}: the engine has caches of its own in "
        "their place, which start empty. To leave the model as it is: --state none."
    )
