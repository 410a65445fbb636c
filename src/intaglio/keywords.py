"""Options that several functions take, declared once and given as keywords.

They are declared as a `TypedDict`, each as ``Annotated[type, "what it says"]``, and taken as
``**options: Unpack[Options]``, from which type checkers know every one.  `spelled_out` shows them
to people as well: in the signature, in the docstring, and in the error about one that is not there.
"""

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_args, get_type_hints

from intaglio.spelling import perhaps

P = ParamSpec("P")
R = TypeVar("R")

WIDTH = 96  # of a line of help


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of `function`, with each shared option in place of ``**options``.

    One that may be left out is None then, or False if it is a bool.
    """
    found: list[inspect.Parameter] = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD:
            found.append(parameter)
            continue
        (options,) = get_args(parameter.annotation)
        found += [
            inspect.Parameter(
                name,
                parameter.KEYWORD_ONLY,
                default=False if getattr(kind, "__origin__", kind) is bool else None,
                annotation=kind,
            )
            for name, kind in get_type_hints(options, include_extras=True).items()
        ]
    return found


def spelled_out(function: Callable[P, R]) -> Callable[P, R]:
    """Let `function` show the options that it takes as ``**options``, and refuse others by name."""
    takes = parameters(function)
    names = {parameter.name for parameter in takes}
    shared = names - inspect.signature(function).parameters.keys()

    @functools.wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> R:
        unknown = next((name for name in given if name not in names), None)
        if unknown is not None:
            name = getattr(function, "__name__", "the function")
            raise TypeError(
                f"{name}() got an unexpected keyword argument {unknown!r}{perhaps(unknown, names)}"
            )
        return function(*args, **given)

    told = [p for p in takes if p.name in shared]
    plain = [_without_text(p) if p in told else p for p in takes]
    call.__dict__["__signature__"] = inspect.signature(function).replace(parameters=plain)
    call.__doc__ = _described(inspect.getdoc(function) or "", told)
    return call


def _without_text(parameter: inspect.Parameter) -> inspect.Parameter:
    kind = parameter.annotation
    return parameter.replace(annotation=getattr(kind, "__origin__", kind))


def _described(text: str, options: list[inspect.Parameter]) -> str:
    """The docstring `text` with a line for each of `options` in place of that on ``**options``."""
    lines = text.splitlines()
    place = next(i for i, line in enumerate(lines) if line.strip().startswith("**options:"))
    told = [
        textwrap.fill(
            f"{option.name}: {option.annotation.__metadata__[0]}",
            WIDTH,
            initial_indent=" " * 4,
            subsequent_indent=" " * 8,
        )
        for option in options
    ]
    return "\n".join([*lines[:place], *told, *lines[place + 1 :]])
