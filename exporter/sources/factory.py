"""Build the module that a checkpoint's weights belong to.

A model is one of ours, by name, or ``package.module:factory``: a callable of the user's own code
that takes the config and returns a module, or a module and its example inputs.
"""

import contextlib
import dataclasses
import importlib
import inspect
import shlex
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.spelling import perhaps


def build_from_factory(
    spec: str, config: Mapping[str, Any], import_from: Sequence[Path] = ()
) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
    """Import ``package.module:factory``, call it, return the module and the inputs it gave.

    The module is looked for in `import_from`, in the working directory, then where Python looks.
    The factory gets the config's keys as keywords; if it takes one positional argument instead,
    it gets the mapping, or the dataclass made from it which that argument is annotated with.

    Raises:
        SourceError: if it cannot be found, or it or its import raises, or it returns other things.
    """
    with importable_from(import_from):
        factory = _import(spec)
        try:
            made = _call(factory, spec, config)
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(
                f"The factory {spec!r} raised {type(error).__name__}: {error}"
            ) from error
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise SourceError(
            f"The factory {spec!r} returned {type(module).__name__}; it should return a "
            "torch.nn.Module, or a pair of one and its example inputs."
        )
    if inputs is not None and not isinstance(inputs, Mapping):
        raise SourceError(
            f"The factory {spec!r} returned example inputs as {type(inputs).__name__}; they "
            "should be a dict of the names of forward's arguments to tensors."
        )
    return module, inputs


@contextlib.contextmanager
def importable_from(folders: Sequence[str | Path]) -> Iterator[None]:
    """Put `folders`, and the working directory, in front of the import path for a while."""
    before = list(sys.path)
    sys.path[:0] = [str(Path(folder).resolve()) for folder in (*folders, Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def _import(spec: str) -> Callable[..., Any]:
    name, _, attribute = spec.partition(":")
    if name.endswith(".py") or "/" in name:
        raise SourceError(
            f"--model {spec!r} names a file; name its module: --model "
            f"{Path(name).stem}:{attribute} --import-from {shlex.quote(str(Path(name).parent))}"
        )
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise SourceError(f"Importing {name!r} failed: {error}.") from error
        raise SourceError(
            f"--model {spec!r}: there is no module {error.name!r} in {Path.cwd()} or on Python's "
            "path. Say where it is with --import-from DIR."
        ) from error
    except Exception as error:
        raise SourceError(
            f"Importing {name!r} failed with {type(error).__name__}: {error}"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        has = [k for k, v in vars(module).items() if getattr(v, "__module__", None) == name]
        raise SourceError(
            f"--model {spec!r}: {name} has no callable {attribute!r}{perhaps(attribute, has)} "
            f"(it has {', '.join(has[:8])})."
        )
    return typing.cast(Callable[..., Any], factory)


def _call(factory: Callable[..., Any], spec: str, config: Mapping[str, Any]) -> Any:
    signature = inspect.signature(factory)
    try:
        signature.bind(**config)
    except TypeError as mismatch:
        argument = _only_argument(signature, config)
        if argument is None:
            raise SourceError(
                f"The factory {spec!r} takes {signature}, the config has "
                f"{', '.join(map(repr, config)) or 'no keys'}: {mismatch}."
            ) from mismatch
        return factory(_as_one(factory, argument, config))
    return factory(**config)


def _only_argument(signature: inspect.Signature, config: Mapping[str, Any]) -> str | None:
    """Name the one argument that must be given, unless keys of the config are arguments."""
    parameters = signature.parameters
    required = [p for p in parameters.values() if p.default is p.empty]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if (
        len(required) != 1
        or required[0].kind not in positional
        or config.keys() & parameters.keys()
    ):
        return None
    return required[0].name


def _as_one(factory: Callable[..., Any], argument: str, config: Mapping[str, Any]) -> Any:
    """Make the config what `argument` is annotated with: a dataclass, or a plain dict."""
    function = vars(factory)["__init__"] if inspect.isclass(factory) else factory
    wanted = typing.get_type_hints(function).get(argument)
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        return wanted(**config)
    return dict(config)
