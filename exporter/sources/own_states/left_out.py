"""States that `forward` takes only where they are given: ``def forward(self, x, state=None)``.

Example inputs often hold what the first call takes.  Called without its state such a module starts
from zeros, and exported so it would forget everything; so what it gives back is tried as what it
takes next.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from intaglio.errors import OptionError
from intaglio.exporter.sources.outputs import leaves, name_outputs
from intaglio.state import TIME

from .functional import flatten
from .grown import longer_along
from .kept import as_it_was
from .paired_names import pair, says_state
from .returned import returned_names
from .state_axes import LIMIT, Sizing, settle


@dataclass(frozen=True)
class LeftOut:
    """Arguments that are states, nested as they are, and the output of each tensor in them."""

    arguments: Mapping[str, Any]
    outputs: Mapping[str, str]


def states_left_out(
    module: nn.Module,
    arguments: Mapping[str, Any],
    axes: Mapping[str, Sequence[int | str]],
    asked: Mapping[str, str],
) -> LeftOut | None:
    """The states that `arguments` leave out, of a module that takes one step in each call.

    A module that takes many tokens in a call is traced over them, and its states are found there.

    Raises:
        OptionError: if a state may be one output or another, or starts from what is no zero.
    """
    names = [name for name in _optional(module, arguments) if says_state(name)]
    if not names:
        return None
    first = _call(module, arguments)
    entries = _entries(first)
    if len(entries) < 2:  # a result and a state
        return None
    fitting = [each for each in _choices(module, names, entries, asked)
               if _is_taken(module, arguments, first, each, entries)]  # fmt: skip
    found = [_described(module, arguments, first, each, entries) for each in fitting]
    found = [each for each in found if not _has_time(module, arguments, each, axes)]
    if not found:
        return None
    if len(found) > 1:
        raise _ambiguous(found)
    told = any(":" in asked.get(name, "") for name in found[0].outputs)
    if not told and not _same(_call(module, {**arguments, **found[0].arguments}), first):
        called = ", ".join(found[0].arguments)
        lines = " ".join(f"--state {n}={x}:INITIAL" for n, x in found[0].outputs.items())
        raise OptionError(
            f"`forward` takes a state ({called}), which the example inputs leave out, and does not "
            f"start it from zeros. Say what it starts from, a number, a file .npz or a method: "
            f"{lines}; or --state none, to export the model without it."
        )
    return found[0]


def caches_left_out(module: nn.Module, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Caches that `arguments` leave out, as one call gives them to the next; {} without any."""
    names = [name for name in _optional(module, arguments) if says_state(name)]
    entries = _entries(_call(module, arguments)) if names else {}
    for choice in _choices(module, names, entries, {}) if len(entries) > 1 else ():
        given = {name: entries[key] for name, key in choice.items()}
        after = _entries(_call(module, {**arguments, **given}))
        if after and all(_is_longer(given[name], after[key]) for name, key in choice.items()):
            return given
    return {}


def _is_longer(before: Any, after: Any) -> bool:
    """Whether all tensors in `before` come back in `after` with entries behind them."""
    a, b = _tensors(before), _tensors(after)
    return len(a) == len(b) > 0 and all(
        isinstance(x, Tensor) and isinstance(y, Tensor) and longer_along(x, y) is not None
        for x, y in zip(a, b, strict=True)
    )


def _optional(module: nn.Module, arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of `forward` that are None where they are not given, and are not."""
    found = inspect.signature(module.forward).parameters.values()
    return [p.name for p in found if p.default is None and p.name not in arguments]


def _call(module: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """What the module returns; None where it does not run."""
    try:
        with as_it_was(module), torch.no_grad():
            return module(**arguments)
    except Exception:  # noqa: BLE001  a module fails in its own ways on what it does not take
        return None


def _entries(result: Any) -> dict[int | str, Any]:
    """The entries of what a module returns, by place or key."""
    if isinstance(result, Mapping):
        return {str(key): value for key, value in result.items()}
    return dict(enumerate(result)) if isinstance(result, tuple | list) else {}


Choice = dict[str, int | str]  # the entry that each argument is next


def _choices(
    module: nn.Module,
    names: Sequence[str],
    entries: Mapping[int | str, Any],
    asked: Mapping[str, str],
) -> Iterator[Choice]:
    """What may be: as asked; all of them by name, or in order at the end; or each alone."""
    words = returned_names(module)
    called = [
        {str(key)} if isinstance(key, str) else {words[key]} if key < len(words) else set()
        for key in entries
    ]
    keys = list(entries)
    if asked:
        wanted = {name: text for name in names for flat, text in asked.items()
                  if flat == name or flat.startswith(f"{name}_")}  # fmt: skip
        for name, text in wanted.items():
            yield from ({name: key} for key in keys if _is_of(text, key))
        return
    paired = {name: keys[place] for name, place in pair(names, called).items()}
    if len(paired) == len(names):
        yield paired
    elif 1 < len(names) < len(keys):
        yield dict(zip(names, keys[-len(names) :], strict=True))
    else:
        yield from ({name: key} for name in names for key in keys)


def _is_of(text: str, key: int | str) -> bool:
    """Whether an output that was typed is one of the entry `key`."""
    stem = key if isinstance(key, str) else f"output_{key}"
    output = text.partition(":")[0]
    return output == stem or output.startswith(f"{stem}_")


def _is_taken(
    module: nn.Module,
    arguments: Mapping[str, Any],
    first: Any,
    choice: Choice,
    entries: Mapping[int | str, Any],
) -> bool:
    """Whether the module goes on from these entries, gives such ones back, and they matter."""
    given = {name: entries[key] for name, key in choice.items()}
    second = _call(module, {**arguments, **given})
    if second is None or not _alike(first, second) or _same(first, second):
        return False
    without = [{n: x for n, x in given.items() if n != name} for name in given if len(given) > 1]
    return not any(_same(_call(module, {**arguments, **each}), second) for each in without)


def _tensors(value: Any) -> list[Tensor]:
    return [entry for _, entry in leaves(value)] if not isinstance(value, Tensor) else [value]


def _alike(one: Any, other: Any) -> bool:
    """Whether both are nested alike, of tensors of the same shapes and dtypes."""
    a, b = _tensors(one), _tensors(other)
    ways = [[way for way, _ in leaves(each)] for each in (one, other)]
    return ways[0] == ways[1] and all(
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and x.shape == y.shape
        and x.dtype == y.dtype
        for x, y in zip(a, b, strict=True)
    )


def _same(one: Any, other: Any) -> bool:
    """Whether both are equal, up to rounding."""
    if one is None or other is None or not _alike(one, other):
        return False
    return all(
        torch.allclose(x.double(), y.double(), rtol=0, equal_nan=True,
                       atol=LIMIT * float(y.double().abs().amax()) if y.numel() else 0.0)
        for x, y in zip(_tensors(one), _tensors(other), strict=True)
    )  # fmt: skip


def _described(
    module: nn.Module,
    arguments: Mapping[str, Any],
    first: Any,
    choice: Choice,
    entries: Mapping[int | str, Any],
) -> LeftOut:
    """The states of a choice, at zero, and the output of each of their tensors."""
    zeros = {n: tree_map(torch.zeros_like, entries[key]) for n, key in choice.items()}
    form = flatten({**arguments, **zeros}, ())
    ways = [way for way, _ in leaves(first)]
    outputs = list(name_outputs(module, first))
    named: dict[str, str] = {}
    for name, key in choice.items():
        mine = [output for way, output in zip(ways, outputs, strict=True) if way[0] == key]
        named |= dict(zip(form.arguments[name].names, mine, strict=True))
    return LeftOut(zeros, named)


def _has_time(
    module: nn.Module,
    arguments: Mapping[str, Any],
    found: LeftOut,
    axes: Mapping[str, Sequence[int | str]],
) -> bool:
    form = flatten({**arguments, **found.arguments}, ())

    def run(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: nested.build(flat) for name, nested in form.arguments.items()}
        with as_it_was(module):
            return name_outputs(module, module(**given))

    sizing = Sizing(run=run, examples=form.inputs, states=found.outputs)
    return any(TIME in shape for shape in settle(sizing, axes).values())


def _ambiguous(found: Sequence[LeftOut]) -> OptionError:
    lines = " or ".join(
        " ".join(f"--state {name}={output}" for name, output in each.outputs.items())
        for each in found
    )
    names = ", ".join(dict.fromkeys(name for each in found for name in each.arguments))
    return OptionError(
        f"`forward` takes a state ({names}), which the example inputs leave out, and which output "
        f"it becomes cannot be told from names and shapes. Say it: {lines}; or --state none, to "
        "export the model without it."
    )
