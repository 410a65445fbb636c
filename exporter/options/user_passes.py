"""The user's own passes: as programs and the command line give them, and as recipes hold them."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from intaglio.errors import OptionError, PassError
from intaglio.passes import PASSES, pipeline
from intaglio.passes.base import Pass
from intaglio.passes.user import pass_of

PASS_KEYS = ("name", "options", "file", "function")  # of an entry of a recipe


def as_entry(
    given: str | Pass | Callable[..., Any] | Mapping[str, Any],
) -> Pass | Mapping[str, Any]:
    """A pass as a recipe holds it: given as text, an object, a function, or an entry already."""
    if isinstance(given, str):
        return describe_pass(given)
    if isinstance(given, Pass | Mapping):
        return given
    return pass_of(given, f"{given.__module__}.{given.__qualname__}")


def describe_pass(given: str | Pass) -> dict[str, Any]:
    """One of the user's passes as an entry of a recipe."""
    if isinstance(given, str):
        name, _, rest = given.partition(":")
        if name.endswith(".py"):
            return {"file": name, "function": rest}
        given = pipeline.parse(given)
    options = {entry.name: getattr(given, entry.name) for entry in fields(given)}  # type: ignore[arg-type]
    return {"name": given.name, **({"options": options} if options else {})}


def build_entry(entry: Pass | Mapping[str, Any], *, allow_code: bool) -> Pass:
    """The pass that a recipe holds as `entry`.

    Raises:
        PassError: if it is not known, has wrong options, or runs code without consent.
        OptionError: if it was an object of a program, which no file can repeat.
    """
    if isinstance(entry, Pass):
        return entry
    if "file" in entry:
        text = f"{entry['file']}:{entry.get('function', '')}"
        return pipeline.parse(text, allow_code=allow_code)
    name = str(entry.get("name"))
    if name not in {known.name for known in PASSES} and "." in name:
        raise OptionError(
            f"The pass {name!r} of the recipe was a function of a program. Export from that "
            "program again, or keep the function in a file and give it with --pass."
        )
    options = entry.get("options", {})
    if not isinstance(options, Mapping):
        raise PassError(
            f"The options of the pass {name!r} in the recipe are {options!r}; give a table."
        )
    return pipeline.build(name, options)
