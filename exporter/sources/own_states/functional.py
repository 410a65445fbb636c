"""A module in the form that a graph has: flat inputs by name to flat outputs by name.

What is nested in an argument or a result, as the ``(h, c)`` of an LSTM, becomes tensors of their
own, and what the module keeps in itself becomes an input and an output.  The module stays the one
that it is, with its names; only its `forward` is another.
"""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from intaglio.exporter.sources.outputs import leaves, name_outputs

from .kept import KeptValue, Slot, as_it_was, get, put

OWN_FORWARD = "own_forward"  # where the module's own `forward` is, once it has another


@dataclass(frozen=True)
class Nested:
    """An argument, or what is kept in a place: names of its tensors, and how they are nested."""

    names: tuple[str, ...]
    tree: TreeSpec

    @classmethod
    def of(cls, name: str, value: Any) -> "tuple[Nested, dict[str, Tensor]]":
        """The names of the tensors in `value`, and these by name."""
        found, tree = tree_flatten(value)
        names = tuple("_".join(map(str, (name, *path))) for path, _ in leaves(value))
        return cls(names, tree), dict(zip(names, found, strict=True))

    def build(self, flat: Mapping[str, Tensor]) -> Any:
        """The value of the tensors in `flat`."""
        return tree_unflatten([flat[name] for name in self.names], self.tree)


@dataclass
class Functional:
    """What a module takes and gives in its flat form; `slots` are where it keeps some of it.

    What it keeps in `grows` is longer along that axis with each call; `starts` are values before
    the first.
    """

    arguments: dict[str, Nested] = field(default_factory=dict)
    slots: dict[Slot, Nested] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    initial: dict[str, Tensor] = field(default_factory=dict)
    starts: dict[Slot, Any] = field(default_factory=dict)
    grows: dict[Slot, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Whether the flat form is another than the module's own."""
        plain = all(entry.names == (name,) for name, entry in self.arguments.items())
        return bool(self.slots or self.renamed or not plain)

    @property
    def given(self) -> list[str]:
        """The inputs that are arguments."""
        return [name for nested in self.arguments.values() for name in nested.names]

    def after(self, name: str) -> str:
        """What the input `name`, which the module keeps, is called after a call."""
        return f"{name}_out"


def flatten(arguments: Mapping[str, Any], kept: Sequence[KeptValue]) -> Functional:
    """The flat form of a call with `arguments` of a module that keeps `kept`."""
    form = Functional()
    for name, value in arguments.items():
        form.arguments[name], found = Nested.of(name, value)
        form.inputs |= found
    for entry in kept:
        name = "_".join(filter(None, (*entry.slot.path.split("."), entry.slot.name.lstrip("_"))))
        while name in form.inputs:
            name += "_kept"
        form.slots[entry.slot], found = Nested.of(name, entry.example)
        form.inputs |= found
        form.starts[entry.slot] = entry.initial
        if entry.grows is not None:
            form.grows[entry.slot] = entry.grows
        else:
            form.initial |= Nested.of(name, entry.initial)[1]
    return form


def present(module: nn.Module, form: Functional) -> None:
    """Let `module` take and give what `form` says."""

    def forward(self: nn.Module, *given: Tensor, **flat: Tensor) -> dict[str, Tensor]:
        flat = dict(zip(form.inputs, given, strict=False)) | flat
        with as_it_was(self):
            for slot, nested in form.slots.items():
                # It may be written in place, and the input is the caller's.
                own = {name: flat[name].clone() for name in nested.names}
                put(self.get_submodule(slot.path), slot.name, nested.build(own))
            arguments = {name: nested.build(flat) for name, nested in form.arguments.items()}
            outputs = name_outputs(self, own_forward(self)(**arguments))
            for slot, nested in form.slots.items():
                value = get(self.get_submodule(slot.path), slot.name)
                for name, (_, entry) in zip(nested.names, leaves(value), strict=True):
                    outputs[form.after(name)] = entry
        return {form.renamed.get(name, name): value for name, value in outputs.items()}

    keep_slots(module, form)
    take_forward(module, forward, list(form.inputs))


def keep_slots(module: nn.Module, form: Functional) -> None:
    """Let `module` keep in no buffer what it keeps from call to call.

    The tracer would take a write to a buffer for the buffer's new value.
    """
    for slot in form.slots:
        part = module.get_submodule(slot.path)
        if slot.name in part._buffers:  # noqa: SLF001
            vars(part)[slot.name] = part._buffers.pop(slot.name)  # noqa: SLF001


def take_forward(module: nn.Module, forward: Callable[..., Any], names: Sequence[str]) -> None:
    """Let the `forward` of `module` be another, which takes `names`; its own one is kept."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in ("self", *names)]
    )
    vars(module)[OWN_FORWARD] = own_forward(module)
    vars(module)["forward"] = types.MethodType(forward, module)


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """The `forward` that a module was given with."""
    found: Callable[..., Any] = getattr(module, OWN_FORWARD, module.forward)
    return found


def give_back(module: nn.Module) -> None:
    """Let `module` have its own `forward` again."""
    own = own_forward(module)
    vars(module).pop("forward", None)
    vars(module).pop(OWN_FORWARD, None)
    if own != module.forward:  # the module had one beside that of its class
        vars(module)["forward"] = own
