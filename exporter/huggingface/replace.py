"""Exchange the library's recurrences for operators while a module is traced.

A function is found under its name in the Python modules that the classes of a model come from; a
model of a family that is not listed anywhere is served as well, if it uses such a function.  What
is found is never trusted by its name: the module runs once as it is, and every call is made twice,
with the original and with its replacement.
"""

import contextlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intaglio.errors import TraceError
from intaglio.exporter.capture import quiet, summary
from intaglio.exporter.modules import ModuleStack, named

from .mixers import MIXERS

LIMIT = 1e-4  # of the largest entry; sums over chunks and over tokens round differently


class _Place(NamedTuple):
    """Where a function of the library is looked up: a Python module, or a module of PyTorch."""

    owner: Any
    name: str
    original: Callable[..., Any]
    mixer: str


@contextlib.contextmanager
def replaced(module: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[bool]:
    """Let `module` use the replacements of `MIXERS` while the context is open.

    The context yields whether there is one to use.  Before that it runs on `inputs` once, and each
    call is held to its replacement.

    Raises:
        TraceError: if one gives something else; it names the function, the module that called it
            and the version of the library.
    """
    places = list(_places(module))
    if places:
        _compare(module, inputs, places)
    with _patched(places, lambda place: MIXERS[place.mixer]):
        yield bool(places)


def _places(module: nn.Module) -> Iterator[_Place]:
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    originals: dict[Callable[..., Any], str] = {}
    for file in sorted({kind.__module__ for kind in kinds}):
        for name in MIXERS:
            original = getattr(sys.modules.get(file), name, None)
            if original is not None:
                originals[original] = name
                yield _Place(sys.modules[file], name, original, name)
    for part in module.modules():  # a class may keep the function that it found best
        for name, value in vars(part).items():
            if callable(value) and value in originals:
                yield _Place(part, name, value, originals[value])


@contextlib.contextmanager
def _patched(places: list[_Place], substitute: Callable[[_Place], Any]) -> Iterator[None]:
    with contextlib.ExitStack() as undo:
        for place in places:
            undo.callback(setattr, place.owner, place.name, place.original)
            setattr(place.owner, place.name, substitute(place))
        yield


def _compare(module: nn.Module, inputs: Mapping[str, Tensor], places: list[_Place]) -> None:
    """Run `module` as it is, and each replacement on what the original is given."""
    stack = ModuleStack(module)

    def compared(place: _Place) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            wanted = place.original(*args, **given)
            fault = _difference(lambda: MIXERS[place.mixer](*args, **given), wanted)
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
    except Exception as error:  # noqa: BLE001  other arguments than known fail in many ways
        return summary(error)
    for got, right in pairs:
        if (got.shape, got.dtype) != (right.shape, right.dtype):
            return f"{list(got.shape)} {got.dtype} instead of {list(right.shape)} {right.dtype}"
        distance, largest = (got - right).abs().max(), right.abs().max()
        if not distance <= LIMIT * largest:
            return f"they differ by {float(distance):.1e}, the largest being {float(largest):.1e}"
    return ""


def _tensors(result: Any) -> list[Tensor]:
    results = result if isinstance(result, tuple) else (result,)
    return [x for x in results if isinstance(x, Tensor)]


def _refusal(place: _Place, path: str, fault: str) -> str:
    where, library = place.original.__module__, place.original.__module__.partition(".")[0]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        library = f"{library} {importlib.metadata.version(library)}"
    return (
        f"In {named(path)}, {where}.{place.original.__qualname__} of {library} does not compute "
        f"what intaglio knows it to ({fault}); traced as it is, it would fix the number of tokens. "
        "Install a version of the library that has it as it is known, such as transformers 5.23."
    )
