"""Hidden state that a module keeps in itself between calls: ``self.h = ...`` in `forward`.

What changes from call to call, and what it then returns depends on, is a state.  A module is run a
few times to tell: tables that it fills once, and what it keeps for others to look at, are none.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from intaglio.errors import SourceError
from intaglio.exporter.sources.outputs import leaves

from .grown import longer_along

RESETS = (
    "reset reset_state reset_states reset_hidden reset_memory init_hidden init_state clear_state"
).split()
_MACHINERY = frozenset(vars(nn.Module()))
CLOSE = 1e-5

Run = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Slot:
    """Where a module keeps something: the path of a submodule, and its attribute or buffer."""

    path: str
    name: str

    @property
    def words(self) -> str:
        """As the user's code has it."""
        return ".".join(filter(None, ("self", self.path, self.name)))


@dataclass(frozen=True, kw_only=True)
class KeptValue:
    """What `slot` keeps: an example, and the value before the first call, of the same structure.

    What `grows` along that axis of its first tensor, call by call, starts as it is held.
    """

    slot: Slot
    example: Any
    initial: Any
    grows: int | None = None


class HeldValues:
    """All that a module keeps beside its parameters and submodules, to be put back.

    Hooks that a call registers are taken away with whatever it keeps to know that it did.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take note of what `module` keeps now; tensors are copied."""
        self._parts = dict(module.named_modules())
        self.held = {
            Slot(path, name): tree_map(copied, value)
            for path, part in self._parts.items()
            for name, value in _own(part)
        }
        self._hooks = _Hooks(module)

    def put_back(self) -> None:
        """Let the module keep what it kept."""
        for path, part in self._parts.items():
            for name, _ in list(_own(part)):
                if Slot(path, name) not in self.held:
                    delattr(part, name)
        for slot, value in self.held.items():
            put(self._parts[slot.path], slot.name, tree_map(copied, value))
        self._hooks.put_back()


class _Hooks:
    """The hooks of all parts of a module."""

    def __init__(self, module: nn.Module) -> None:
        self._before = [
            (held, dict(held))
            for part in module.modules()
            for name, held in vars(part).items()
            if name in _MACHINERY and "hooks" in name and isinstance(held, dict)
        ]

    def put_back(self) -> None:
        for held, before in self._before:
            held.clear()
            held.update(before)


@contextlib.contextmanager
def as_it_was(module: nn.Module) -> Iterator[None]:
    """Whatever `module` keeps while the context is open, it keeps what it kept before."""
    parts = [(part, dict(_own(part))) for part in module.modules()]
    hooks = _Hooks(module)
    try:
        yield
    finally:
        hooks.put_back()
        for part, before in parts:
            for name, value in list(_own(part)):
                if name not in before:
                    vars(part).pop(name, None)
                elif value is not before[name]:
                    put(part, name, before[name])


def put(part: nn.Module, name: str, value: Any) -> None:
    """Let `part` keep `value`, as a buffer where it is one."""
    holder = part._buffers if name in part._buffers else vars(part)  # noqa: SLF001
    holder[name] = value


def get(part: nn.Module, name: str) -> Any:
    """What `part` keeps."""
    return part._buffers[name] if name in part._buffers else vars(part)[name]  # noqa: SLF001


def _own(part: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from part._buffers.items()  # noqa: SLF001
    yield from ((name, x) for name, x in vars(part).items() if name not in _MACHINERY)


def copied(value: Any) -> Any:
    """A copy of a tensor; anything else is itself."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def find_kept(module: nn.Module, run: Run) -> list[KeptValue]:
    """What `module` keeps from call to call; `run` calls it on example inputs.

    Raises:
        SourceError: if what it keeps has no value to start from that is known.
    """
    start = HeldValues(module)
    try:
        with torch.no_grad():
            return list(_find(module, run, start))
    finally:
        start.put_back()


def _find(module: nn.Module, run: Run, start: HeldValues) -> Iterator[KeptValue]:
    with contextlib.suppress(AttributeError, TypeError):  # no state before `reset` was called
        run()
    if not _changed(start.held, HeldValues(module).held):
        return
    start.put_back()
    if _reset(module):
        start = HeldValues(module)
    first = run()
    after = HeldValues(module).held
    candidates = _changed(start.held, after)
    if not candidates:
        return
    second = run()
    grows = _growing(candidates, after, HeldValues(module).held)
    if not grows and _same(second, first):  # by one example twice, what grows may show nothing
        return
    slots = [
        slot
        for slot in candidates
        if slot in grows or _matters(module, run, start, slot, (first, after))
    ]
    held = {slot: start.held.get(slot) for slot in slots}
    initial = {s: x if s in grows else _initial(x, after[s]) for s, x in held.items()}
    start.put_back()
    for slot, value in initial.items():
        put(module.get_submodule(slot.path), slot.name, tree_map(copied, value))
    if not _same(run(), first):
        raise SourceError(
            f"The module keeps {slots[0].words} from call to call, and what it starts from is "
            "neither zeros nor what it holds now. Let it hold its first value, a tensor of the "
            "shape that it has after a call, when it is exported; or make it an input and output."
        )
    for slot in slots:
        yield KeptValue(
            slot=slot, example=after[slot], initial=initial[slot], grows=grows.get(slot)
        )


def _growing(
    candidates: Sequence[Slot], first: Mapping[Slot, Any], second: Mapping[Slot, Any]
) -> dict[Slot, int]:
    """Those of `candidates` that the second call appended entries to, and along which axis."""
    found = {}
    for slot in candidates:
        before, after = ([x for _, x in leaves(each[slot])] for each in (first, second))
        if len(before) != len(after) or not all(isinstance(x, Tensor) for x in after):
            continue
        axes = [longer_along(a, b) for a, b in zip(before, after, strict=True)]
        if axes[0] is not None and None not in axes:
            found[slot] = axes[0]
    return found


def _changed(before: Mapping[Slot, Any], after: Mapping[Slot, Any]) -> list[Slot]:
    """Where there are tensors now that were none, or others."""
    found = []
    for slot, value in after.items():
        now = [entry for _, entry in leaves(value)]
        was = [entry for _, entry in leaves(before.get(slot))]
        if now and all(isinstance(entry, Tensor) for entry in now) and not _equal(now, was):
            found.append(slot)
    return found


def _equal(now: list[Any], was: list[Any]) -> bool:
    return len(now) == len(was) and all(
        isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(now, was, strict=True)
    )


def _reset(module: nn.Module) -> bool:
    """Call what brings the module to its start, where it has such a method without arguments."""
    for name in RESETS:
        method = getattr(module, name, None)
        if callable(method):
            needed = [
                p for p in inspect.signature(method).parameters.values() if p.default is p.empty
            ]
            if not needed:
                method()
                return True
    return False


def _matters(
    module: nn.Module,
    run: Run,
    start: HeldValues,
    slot: Slot,
    fresh: tuple[Mapping[str, Tensor], Mapping[Slot, Any]],
) -> bool:
    """Whether what a call left in `slot` changes what a first call returns or keeps.

    A table that is filled once does not: it is what the call would have made.
    """
    start.put_back()
    first, after = fresh
    part = module.get_submodule(slot.path)
    put(part, slot.name, tree_map(copied, after[slot]))
    try:
        outputs = run()
    except Exception:  # noqa: BLE001  whatever it says, the value was looked at
        return True
    held = HeldValues(module).held
    return not _same(outputs, first) or bool(_changed(after, held))


def _initial(held: Any, after: Any) -> Any:
    """What is held before the first call, in the structure and shapes of `after`; or zeros."""
    known = [entry for _, entry in leaves(held)]
    wanted, tree = tree_flatten(after)
    try:
        values = [
            was.to(now.dtype).expand(now.shape).clone()
            for was, now in zip(known, wanted, strict=True)
        ]
    except (RuntimeError, ValueError, AttributeError):  # nothing yet, or something else
        values = [torch.zeros_like(now) for now in wanted]
    return tree_unflatten(values, tree)


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].shape == b[n].shape
        and torch.allclose(
            a[n].double(), b[n].double(), rtol=CLOSE, atol=CLOSE * 1e-2, equal_nan=True
        )
        for n in a
    )
