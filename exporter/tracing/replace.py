"""Exchange code that no tracer follows for operators, while a module is traced.

Two kinds of it are known.  A function of a library, as of transformers, is found under its name in
the Python modules that the classes of a model come from; a model of a family that is not listed
anywhere is served as well, if it uses such a function.  A layer of torch.nn is found by its class.
What is found is never trusted by its name: the module runs once as it is, and every call is made
twice, with the original and with its replacement.
"""

import contextlib
import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intaglio.errors import TraceError
from intaglio.exporter.sources.own_states.functional import OWN_FORWARD
from intaglio.quiet import quiet, summary

from .modules import ModuleStack, named

LIMIT = 1e-4  # of the largest entry; sums over chunks and over tokens round differently

Functions = Mapping[str, Callable[..., Any]]
Layers = Mapping[type[nn.Module], Callable[..., Any]]


class UnreplaceableError(Exception):
    """A layer is used in a way that its replacement does not serve; says which, after its name."""


class _Place(NamedTuple):
    """Where code is looked up: in a Python module, or in a module of PyTorch."""

    owner: Any
    name: str
    original: Callable[..., Any]
    substitute: Callable[..., Any]


@contextlib.contextmanager
def replaced(
    module: nn.Module, inputs: Mapping[str, Tensor], layers: Layers, functions: Functions
) -> Iterator[bool]:
    """Let `module` use the replacements while the context is open.

    The context yields whether there is one to use.  Before that it runs on `inputs` once, and each
    call is held to its replacement.

    Args:
        module: what is to be traced.
        inputs: what it runs on.
        layers: replacements of `forward`, by class; each takes the layer first.
        functions: replacements of functions, by the names that these bear.

    Raises:
        TraceError: if one gives something else, or does not serve the way in which it is used; it
            names the code, the module that called it and the version of the library.
    """
    places = [*_functions(module, functions), *_layers(module, layers)]
    # PyTorch's own shortcut through encoders would go around their layers.
    shortcut = torch.backends.mha.get_fastpath_enabled()
    try:
        if places:
            torch.backends.mha.set_fastpath_enabled(False)
            _compare(module, inputs, places)
        with _patched(places, lambda place: place.substitute):
            yield bool(places)
    finally:
        torch.backends.mha.set_fastpath_enabled(shortcut)


def _functions(module: nn.Module, functions: Functions) -> Iterator[_Place]:
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    originals: dict[Callable[..., Any], str] = {}
    for file in sorted({kind.__module__ for kind in kinds}):
        for name, substitute in functions.items():
            original = getattr(sys.modules.get(file), name, None)
            if original is not None:
                originals[original] = name
                yield _Place(sys.modules[file], name, original, substitute)
    for kind in kinds:
        for name in (name for name in functions if name.startswith(f"{kind.__name__}.")):
            method = name.rpartition(".")[2]
            if method in vars(kind) and kind.__module__.startswith("transformers."):
                yield _Place(kind, method, vars(kind)[method], functions[name])
    for part in module.modules():  # a class may keep the function that it found best
        for name, value in vars(part).items():
            if callable(value) and value in originals:
                yield _Place(part, name, value, functions[originals[value]])


def _layers(module: nn.Module, layers: Layers) -> Iterator[_Place]:
    for part in module.modules():
        for kind, substitute in layers.items():
            if isinstance(part, kind) and type(part).forward is kind.forward:
                name = OWN_FORWARD if OWN_FORWARD in vars(part) else "forward"
                yield _Place(part, name, getattr(part, name), functools.partial(substitute, part))


@contextlib.contextmanager
def _patched(places: list[_Place], choose: Callable[[_Place], Any]) -> Iterator[None]:
    with contextlib.ExitStack() as undo:
        for place in places:
            if place.name in vars(place.owner):
                undo.callback(setattr, place.owner, place.name, place.original)
            else:  # what the class has
                undo.callback(delattr, place.owner, place.name)
            setattr(place.owner, place.name, choose(place))
        yield


def _compare(module: nn.Module, inputs: Mapping[str, Tensor], places: list[_Place]) -> None:
    """Run `module` as it is, and each replacement on what the original is given."""
    stack = ModuleStack(module)

    def compared(place: _Place) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            wanted = place.original(*args, **given)
            try:
                fault = _difference(lambda: place.substitute(*args, **given), wanted)
            except UnreplaceableError as error:
                who, why = type(place.owner).__name__, str(error).rstrip(".")
                raise TraceError(f"In {named(stack.current)}, {who} {why}.") from error
            if fault:
                raise TraceError(_refusal(place, stack.current, fault))
            return wanted

        return call

    try:
        with torch.no_grad(), quiet(), stack, _patched(places, compared):
            module(**inputs)
    except TraceError:
        raise
    except Exception as error:
        who = named(stack.current)
        raise TraceError(f"The model does not run in {who}: {summary(error)}.") from error


def _difference(replacement: Callable[[], Any], wanted: Any) -> str:
    """In which way `replacement` does not give `wanted`; empty where it does."""
    try:
        pairs = list(zip(_tensors(replacement()), _tensors(wanted), strict=True))
    except UnreplaceableError:
        raise
    except Exception as error:  # noqa: BLE001  other arguments than known fail in many ways
        return summary(error)
    for got, right in pairs:
        if (got.shape, got.dtype) != (right.shape, right.dtype):
            return f"{list(got.shape)} {got.dtype} instead of {list(right.shape)} {right.dtype}"
        known = right.isfinite()
        if not torch.equal(got.isfinite(), known):
            return "they differ by nan, or by what is infinite"
        if not known.any():  # as good as the model is at its inputs
            continue
        distance, largest = (got - right)[known].abs().max(), right[known].abs().max()
        if not distance <= LIMIT * largest:
            return f"they differ by {float(distance):.1e}, the largest being {float(largest):.1e}"
    return ""


def _tensors(result: Any) -> list[Tensor]:
    """The tensors of nested tuples, in order."""
    if isinstance(result, tuple):
        return [x for part in result for x in _tensors(part)]
    return [result] if isinstance(result, Tensor) else []


def _refusal(place: _Place, path: str, fault: str) -> str:
    where, library = place.original.__module__, place.original.__module__.partition(".")[0]
    advice = ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        library = f"{library} {importlib.metadata.version(library)}"
    if library.startswith("transformers"):
        advice = ", such as transformers 5.23"
    return (
        f"In {named(path)}, {where}.{place.original.__qualname__} of {library} does not compute "
        f"what intaglio knows it to ({fault}); traced as it is, it would fix the number of tokens. "
        f"Install a version of the library that has it as it is known{advice}."
    )
