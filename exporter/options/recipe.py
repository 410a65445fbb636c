"""How a bundle is made from its source, as the manifest holds it and a file repeats it.

Every bundle holds its recipe as `recipe.toml`; exporting the same source with it makes the same
bundle again.  What is the user's own to decide each time (where to write, what code to trust,
where files lie) is not part of it.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

from intaglio.errors import OptionError
from intaglio.passes import PASSES, pipeline
from intaglio.passes.base import Pass
from intaglio.passes.lower.ort_low_bit import Accuracy
from intaglio.passes.user import pass_of

FILE_NAME = "recipe.toml"
BARE = re.compile(r"[A-Za-z0-9_-]+")
PASS_KEYS = ("name", "options", "file", "function")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of `export` that decide what is in a bundle, with their defaults."""

    targets: Sequence[str] = ("ort",)
    model: str = ""
    config: Mapping[str, Any] | str = field(default_factory=dict)
    key: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)
    passes: Sequence[Any] = ()
    kv: Literal["static", "grow"] = "static"
    ort_accuracy: Accuracy = "auto"
    shapes: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "fp32"
    flavour: Literal["auto", "tensorrt", "rtx"] = "auto"
    sm: Sequence[int] = ()
    portable: bool = True
    layout: Literal["bundle", "genai"] = "bundle"
    check_passes: bool = False
    verify: bool = True
    steps: int = 512
    tolerance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a recipe of TOML.

        Raises:
            OptionError: if it is missing or malformed, or has an unknown key or a wrong value.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            values = tomllib.loads(text)
        except OSError as error:
            raise OptionError(f"The recipe {path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise OptionError(f"The recipe {path} is not TOML: {error}.") from error
        kinds = get_type_hints(cls)
        for name, value in values.items():
            _check_key(name, tuple(kinds), path, text)
            if not pipeline.fits(value, kinds[name]):
                where = _line(name, text)
                raise OptionError(f"The recipe {path}, {where}: {name} should not be {value!r}.")
        for entry in values.get("passes", ()):
            for name in entry if isinstance(entry, Mapping) else ():
                _check_key(name, PASS_KEYS, path, text)
        return cls(**values)

    def override(self, **given: Any) -> Self:
        """The recipe with those of `given` in place of its own that are not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the manifest: what says nothing is left out."""
        values = {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}
        if "null" in json.dumps(values["config"]) and isinstance(values["config"], dict):
            values["config"] = json.dumps(values["config"])  # TOML has no null
        return {name: value for name, value in values.items() if value not in ("", {}, [])}

    def to_toml(self) -> str:
        """As a file that `read` takes."""
        values = self.to_json()
        passes = values.pop("passes", [])
        tables = {name: value for name, value in values.items() if isinstance(value, dict)}
        lines = [f"{n} = {_toml(v)}" for n, v in values.items() if n not in tables]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{_key(k)} = {_toml(v)}" for k, v in table.items())]
        for entry in passes:
            lines += ["", "[[passes]]", *(f"{_key(k)} = {_toml(v)}" for k, v in entry.items())]
        return "\n".join(lines) + "\n"

    def build_passes(self, *, allow_code: bool) -> list[Pass]:
        """The user's passes: those given as text or as entries of a file, and objects as they are.

        Raises:
            PassError: if one is not known, has wrong options, or runs code without consent.
            OptionError: if one was an object of a program, which no file can repeat.
        """
        return [_build(entry, allow_code=allow_code) for entry in self.passes]


def read_recipe(recipe: str | Path | None) -> Recipe:
    """The recipe of a file, or the default one."""
    return Recipe() if recipe is None else Recipe.read(recipe)


def as_entry(given: str | Pass | Callable[..., Any]) -> Pass | dict[str, Any]:
    """A pass as a program or the command line gives it: text, an object, or a function."""
    if isinstance(given, str):
        return describe_pass(given)
    if isinstance(given, Pass):
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
    return {"name": given.name, **({"options": _plain(options)} if options else {})}


def _build(entry: Pass | Mapping[str, Any], *, allow_code: bool) -> Pass:
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
    return pipeline.build(name, entry.get("options", {}))


def _check_key(name: str, known: Sequence[str], path: str | Path, text: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"perhaps {near[0]!r}" if near else f"the keys are: {', '.join(known)}"
    raise OptionError(f"The recipe {path}, {_line(name, text)}: unknown key {name!r}; {hint}.")


def _line(key: str, text: str) -> str:
    """Where `key` stands in a file, in words."""
    start = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}\b")
    numbers = (n for n, line in enumerate(text.splitlines(), 1) if start.match(line))
    return f"line {next(numbers, '?')}"


def _plain(value: Any) -> Any:
    """Records and sequences as JSON holds them."""
    if isinstance(value, Pass):
        return describe_pass(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(k)} = {_toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)
