"""How a bundle is made from its source, as the manifest holds it and a file repeats it.

Every bundle holds its recipe as `recipe.toml`; exporting the same source with it makes the same
bundle again.  What is the user's own to decide each time (where to write, what code to trust,
where files lie) is not part of it.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypedDict, get_type_hints

from intaglio.errors import OptionError
from intaglio.graphs import Graph
from intaglio.passes import pipeline
from intaglio.passes.base import Pass
from intaglio.passes.lower.ort_low_bit import Accuracy
from intaglio.runtime.plain_files import read_bytes, read_text

from .config import read_config
from .inputs_in_words import holds_words
from .loading import (
    LoadKeywords,
    LoadOptions,
    SourceOptions,
    as_graphs,
    names_code,
)
from .pixels import Pixels
from .served_shapes import ServedShapes
from .toml_text import parse_toml
from .user_passes import PASS_KEYS, as_entry, build_entry, describe_pass

FILE_NAME = "recipe.toml"
TEXT_FOLDER, TOKENIZER = "tokenizer", "tokenizer.json"  # of a bundle
BARE = re.compile(r"[A-Za-z0-9_-]+")
FolderLayout = Literal["bundle", "genai", "triton"]

PLAIN: Mapping[str, Callable[[Any], Any]] = {
    "config": read_config,
    "graphs": lambda given: {n: _told(graph) for n, graph in as_graphs(given).items()},
    "pixels": lambda given: Pixels.read(given).to_json(),
    "passes": lambda given: [as_entry(entry) for entry in given],
    "shapes": lambda given: ServedShapes.of(given).to_json(),
}
"""How an option becomes what a recipe holds, where it is given in another form."""

MEANT = {
    "targets": 'names in a list: ["ort", "trt"]',
    "sm": "whole numbers in a list, [90] for 9.0",
    "steps": "a whole number",
}
LEAST_SM = 10  # of capability 1.0: what is below is 8.7 or 9 where 87 or 90 is meant


@dataclass(frozen=True, kw_only=True)
class Recipe(SourceOptions):
    """The options of `export` that decide what is in a bundle, with their defaults.

    `hashes` are those of the data that it was made with, `calib` and `data`: where data lies is the
    user's own.
    """

    targets: Sequence[str] = ("ort",)
    passes: Sequence[Any] = ()
    kv: Literal["static", "grow"] = "static"
    ort_accuracy: Accuracy = "auto"
    shapes: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "fp32"
    flavour: Literal["auto", "tensorrt", "rtx"] = "auto"
    sm: Sequence[int] = ()
    portable: bool = True
    layout: FolderLayout = "bundle"
    check_passes: bool = False
    verify: bool = True
    steps: int = 512
    tolerance: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a recipe of TOML.

        Raises:
            OptionError: if it is missing or malformed, or has an unknown key or a wrong value.
            SourceError: if a config that it names cannot be read.
        """
        try:
            text = read_text(path)
            values = parse_toml(text)
        except OSError as error:
            raise OptionError(f"The recipe {path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise OptionError(f"The recipe {path} is not TOML: {error}.") from error
        return cls.of(values, f"The recipe {path}", text)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str, text: str | None = None) -> Self:
        """The recipe that holds `values`, which messages call `where`, and whose file says `text`.

        Raises:
            OptionError: if it has an unknown key or a wrong value.
            SourceError: if a config that it names cannot be read.
        """
        kinds = get_type_hints(cls)
        for name, value in values.items():
            _check_key(name, tuple(kinds), where, text)
            if not pipeline.fits(value, kinds[name]):
                raise OptionError(f"{where}{_line(name, text)}: {name} should not be {value!r}.")
        for entry in values.get("passes", ()):
            for name in entry if isinstance(entry, Mapping) else ():
                _check_key(name, PASS_KEYS, where, text)
        return cls().override(values)

    def override(self, given: Mapping[str, Any]) -> Self:
        """The recipe with those of `given` in place of its own that are of it and not None.

        Raises:
            SourceError: if a config cannot be read.
            PassError: if a pass is not known, or has wrong options.
        """
        known = [entry.name for entry in fields(self)]
        values = {n: v for n, v in given.items() if n in known and v is not None}
        return replace(self, **{n: PLAIN[n](v) if n in PLAIN else v for n, v in values.items()})

    def require_types(self) -> None:
        """Refuse options of a program that are of another type: a file's are checked as read.

        Raises:
            OptionError: if one is, or a compute capability is none.
        """
        kinds = get_type_hints(type(self))
        for name, meant in MEANT.items():
            value = getattr(self, name)
            small = name == "sm" and isinstance(value, list | tuple) and value
            if not pipeline.fits(_plain(value), kinds[name]) or (small and min(value) < LEAST_SM):
                raise OptionError(f"{name} is {value!r}; give {meant}.")

    def of_loading(self) -> dict[str, Any]:
        """The options that say how to load the source."""
        return {entry.name: getattr(self, entry.name) for entry in fields(SourceOptions)}

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the manifest: what says nothing is left out."""
        values = {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}
        if "null" in json.dumps(values["config"]) and isinstance(values["config"], dict):
            values["config"] = json.dumps(values["config"])  # TOML has no null
        no_keys = {"config"} if values["config"] == {} else set()  # which is not the source's own
        return {n: v for n, v in values.items() if v not in (None, "", {}, []) or n in no_keys}

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
        return [build_entry(entry, allow_code=allow_code) for entry in self.passes]


class RecipeKeywords(TypedDict, total=False):
    """What decides what is in a bundle, as keywords of `export`; None is as the recipe says."""

    targets: Annotated[
        Sequence[str] | None, "the engines to lower for: ort, which is in every bundle, and trt."
    ]
    passes: Annotated[
        Sequence[str | Pass | Callable[..., Any]] | None,
        "the user's passes, as ``NAME:OPTIONS``, objects or functions; run before statefulize.",
    ]
    kv: Annotated[
        Literal["static", "grow"] | None,
        "layout of key-value caches: one buffer written in place, or past and present.",
    ]
    ort_accuracy: Annotated[
        Accuracy | None,
        "how ONNX Runtime multiplies by weights of few bits: ``fast`` rounds activations to 8 "
        "bits, ``fine`` takes them in two parts of 8 bits; ``auto`` is fine where rounding shows "
        "on calibration data, and everywhere if it alone fails parity; ``exact`` has full "
        "precision, slowly, for verification only.",
    ]
    shapes: Annotated[
        ServedShapes | Mapping[str, Any] | None,
        "what the bundle has to serve, by input one shape or least, usual and largest: "
        '``{"input_ids": [(1, 1), (1, 16), (1, 512)]}``; a batch fixed to 1 allows faster '
        "attention.",
    ]
    dtype: Annotated[
        str | None,
        "what TensorRT takes products, attention, convolutions and recurrences in, fp32 or fp16, "
        "and stores their weights and caches in; ONNX Runtime computes in fp32.",
    ]
    flavour: Annotated[
        Literal["auto", "tensorrt", "rtx"] | None,
        "which TensorRT builds: the full one, which needs a GPU, TensorRT-RTX, or the first that "
        "can here.",
    ]
    sm: Annotated[
        Sequence[int] | None,
        "compute capabilities that the kernels of TensorRT's plugins are compiled for, 87 for "
        "8.7; by default those of RTX 30, 40 and 50 and of A100.",
    ]
    portable: Annotated[bool | None, "keep `model.onnx`, the graph for any runtime."]
    layout: Annotated[
        FolderLayout | None,
        "whether the folder is a bundle alone, one that onnxruntime-genai opens as well, or a "
        "model of Triton as well, for the repository that it lies in.",
    ]
    check_passes: Annotated[bool | None, "hold every exact pass to its promise on random inputs."]
    verify: Annotated[bool | None, "compare the written bundle with the source."]
    steps: Annotated[int | None, "how many steps to compare."]
    tolerance: Annotated[
        Mapping[str, float] | None, "limits of parity by name, instead of the defaults."
    ]


class ExportKeywords(LoadKeywords, RecipeKeywords, total=False):
    """All that `export` shares: how to load the source, and what to make of it."""


def decide(recipe: Recipe | str | Path | None, given: ExportKeywords) -> tuple[Recipe, LoadOptions]:
    """What to make and how to load its source: as `given`, else as the recipe says, or its file.

    Raises:
        OptionError: if the file cannot be read, or the recipe names code and that is not allowed.
        SourceError: if a config cannot be read.
        PassError: if a pass is not known, or has wrong options.
    """
    read = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    how = read.override({n: v for n, v in given.items() if n != "inputs"})
    said = how.of_loading()
    if isinstance(how.text, Mapping) and not given.get("text"):
        said["text"] = _text_beside(recipe, how.text)
    said["graphs"] = given.get("graphs") or how.graphs  # with example inputs as they were given
    if given.get("inputs") is not None:
        del said["inputs"]
    loading = LoadOptions.of(given, said)
    if not given.get("model"):
        require_consent(how.model, loading)
    return how, loading


def _text_beside(recipe: Recipe | str | Path | None, words: Mapping[str, Any]) -> Path | Any:
    """The tokenizer of the bundle that a recipe is of, if it is the one that the recipe means."""
    if isinstance(recipe, Recipe | None):
        return words
    folder = Path(recipe).parent / TEXT_FOLDER
    try:
        same = hashlib.sha256(read_bytes(folder / TOKENIZER)).hexdigest() == words.get("sha256")
    except OSError:
        same = False
    return {**words, "folder": folder} if same else words


def completed(how: Recipe, asked: SourceOptions | None) -> Recipe:
    """The recipe that tells, too, what to trace a source with that was loaded as `asked`."""
    if asked is None:
        return how
    return how.override({entry.name: getattr(asked, entry.name) for entry in fields(SourceOptions)})


def require_consent(model: str | None, loading: LoadOptions) -> None:
    """Refuse a factory that a recipe names: it comes with a bundle, and no user typed it.

    Raises:
        OptionError: if it names one, and code is not allowed.
    """
    if names_code(model) and not loading.allow_code:
        raise OptionError(
            f"The recipe has the model built by the code {model!r}. Where that is trusted, name "
            f"it with --model {model}, or allow it with --allow-code."
        )


def _told(graph: Graph) -> dict[str, Any]:
    """A graph as a recipe holds it: example inputs once they are in words."""
    plan = {} if graph.generates is None else {"generates": asdict(graph.generates)}
    inputs = {} if not holds_words(graph.inputs) else {"inputs": graph.inputs}
    axes = {"axes": graph.axes} if graph.axes else {}
    return {"method": graph.method, **axes, **inputs, **plan}


def read_recipe(recipe: str | Path | None) -> Recipe:
    """The recipe of a file, or the default one."""
    return Recipe() if recipe is None else Recipe.read(recipe)


def _check_key(name: str, known: Sequence[str], where: str, text: str | None) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"perhaps {near[0]!r}" if near else f"the keys are: {', '.join(known)}"
    raise OptionError(f"{where}{_line(name, text)}: unknown key {name!r}; {hint}.")


def _line(key: str, text: str | None) -> str:
    """Where `key` stands in a file, in words behind its name; nothing where there is no file."""
    if text is None:
        return ""
    start = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}\b")
    numbers = (n for n, line in enumerate(text.splitlines(), 1) if start.match(line))
    return f", line {next(numbers, '?')}"


def _plain(value: Any) -> Any:
    """Records and sequences as JSON holds them."""
    if isinstance(value, Pass):
        return _plain(describe_pass(value))
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
