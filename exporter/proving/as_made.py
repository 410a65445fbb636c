"""How to load the source of a bundle where the user does not say: as the bundle was made of it.

What a bundle says of its source is the word of whoever made it.  It tells what the model takes, and
never how strictly it is compared: no limit, no number of steps, and no values are read of it.
Floats are drawn anew, so that a range of zeros proves nothing.  A file that would change the
source, as an adapter does, is for the user to name.  Code that it names runs where
that is allowed.  A recipe that the user names is the user's word, but for code.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from intaglio.errors import OptionError
from intaglio.exporter.options.inputs_in_words import made_again
from intaglio.exporter.options.loading import LoadKeywords, LoadOptions, names_code
from intaglio.exporter.options.recipe import Recipe, read_recipe, require_consent
from intaglio.exporter.sources.huggingface.directory import FORMAT as HUGGINGFACE
from intaglio.models import FORMAT
from intaglio.runtime.manifest import Manifest

ASKED_OF_FILES = ("model", "config", "key")  # of weights alone, which a module holds itself


def as_made(
    given: LoadKeywords,
    manifest: Manifest,
    recipe: Recipe | str | Path | None = None,
    *,
    in_memory: bool = False,
    ranges: bool = False,
) -> LoadOptions:
    """The options `given`, and for the others those of `recipe`, or of the bundle without one.

    Args:
        given: what the user says.
        manifest: of the bundle.
        recipe: one that the user named.
        in_memory: whether the source is a module, which says how it is built itself.
        ranges: whether the ranges of the bundle's examples are taken, as for measuring alone.

    Raises:
        OptionError: if a recipe cannot be read, or names code that is not allowed, or the bundle's
            own names a file that would change the source.
    """
    if recipe is not None:
        read = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
        said = {n: x for n, x in read.of_loading().items() if n != "text"}  # which verifies nothing
        options = LoadOptions.of(said, given)
        if not given.get("model"):
            require_consent(read.model, options)
        return options
    own = Recipe.of(_without_files(manifest.recipe), "The recipe in the bundle's manifest")
    said = {n: x for n, x in own.of_loading().items() if n not in ("whole", "text") and x}
    typed = LoadOptions.of(given)
    if not ranges:
        _require_own_files(own, given)
    offered = None
    if in_memory or typed.model is not None or typed.config is not None:
        said = {n: x for n, x in said.items() if n not in ASKED_OF_FILES[:2]}
    else:
        model, config = _built_by(manifest, own, allow_code=typed.allow_code)
        offered = own.model if names_code(own.model) and model != own.model else None
        said |= {"model": model, "config": config}
    if in_memory:
        said.pop("key", None)
    said["inputs"] = _examples(own.inputs, ranges=ranges)
    said["graphs"] = {n: _graph(entry, ranges=ranges) for n, entry in own.graphs.items()}
    said = {n: x for n, x in said.items() if not _is_given(given, n)}
    said = {n: x for n, x in said.items() if x is not None and not (n == "graphs" and not x)}
    return LoadOptions.of(said, given, {"implied": [*said], "offered": offered})


def _without_files(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle's recipe but for a config or pixels that would be a file of the bundle's choice."""
    config = recipe.get("config")
    files = {"config"} if isinstance(config, str) and not config.startswith("{") else set()
    files |= set() if isinstance(recipe.get("pixels"), Mapping) else {"pixels"}
    return {n: x for n, x in recipe.items() if n not in files}


def _require_own_files(own: Recipe, given: LoadKeywords) -> None:
    """Refuse to compare with what a file of the bundle's choice would make of the source.

    Raises:
        OptionError: if an adapter or the start of a state is such a file, and the user named none.
    """
    said = {} if given.get("adapter") else own.adapter
    adapters = [f"--adapter {name}={file}" for name, file in said.items()]
    states = [] if given.get("states") else [own.states]
    states += [] if given.get("graphs") else [g.get("states") or {} for g in own.graphs.values()]
    starts = [f"--state {n}={x}" for g in states for n, x in g.items() if f"{x}".endswith(".npz")]
    if found := [*adapters, *starts]:
        raise OptionError(
            f"The bundle's recipe says that its source was changed by a file ({found[0]}), and a "
            f"bundle does not decide what it is compared with. Where the file is yours, type it: "
            f"{' '.join(found)}."
        )


def _is_given(given: LoadKeywords, name: str) -> bool:
    value: Any = given.get(name)
    return value is not None and (hasattr(value, "shape") or value not in ({}, (), []))


def _examples(inputs: Any, *, ranges: bool) -> Any:
    """Examples of a bundle: in words alone, since a path would be of the bundle's choice."""
    if isinstance(inputs, str | Path) or inputs is None:
        return None
    if ranges:
        return inputs
    return made_again(inputs, ranges=False)


def _graph(entry: Mapping[str, Any], *, ranges: bool) -> dict[str, Any]:
    inputs = _examples(entry.get("inputs"), ranges=ranges)
    rest = {n: x for n, x in entry.items() if n != "inputs"}
    return rest if inputs is None else {**rest, "inputs": inputs}


def _built_by(
    manifest: Manifest, own: Recipe, *, allow_code: bool
) -> tuple[str | None, Mapping[str, Any] | None]:
    """Model and config that the bundle names, for a file of weights alone.

    Only a model of intaglio's own, unless code is allowed: to build another runs code of the
    bundle's choice.
    """
    model, kind = manifest.source.get("model"), manifest.source["format"]
    if names_code(own.model):
        return (own.model, _config(own)) if allow_code else (None, None)
    if kind.startswith(HUGGINGFACE):  # its config.json says all but which of two layouts it is in
        return own.model, None
    if not model or names_code(model) or kind == FORMAT:
        return None, None
    return model, manifest.source.get("config")


def _config(own: Recipe) -> Mapping[str, Any] | None:
    return own.config if isinstance(own.config, Mapping) else None


def plainly(options: LoadOptions) -> dict[str, Any]:
    """The options that say anything, as another process is given them."""
    values = {entry.name: getattr(options, entry.name) for entry in fields(LoadOptions)}
    return {name: value for name, value in values.items() if value}
