"""What the user says beside the source: how it is built, what it takes, what is allowed.

An option of loading is a field of one of the two records here and an entry of `LoadKeywords`: all
that loads a source takes the keywords, and hands on the record.  A kind of source names the options
that it takes, so that a new one is refused wherever nobody thought of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Self, TypedDict

import numpy.typing as npt
from torch import Tensor

from intaglio.errors import OptionError
from intaglio.graphs import Generation, Graph

from .config import Config
from .layout_text import Axes, read_layouts

States = Mapping[str, str]
OF_ALL = ("whole", "last", "text", "pixels")  # options that no kind of source has to name
FLAGS = {"graphs": "graph", "states": "state", "text": "tokenizer"}  # called otherwise where typed
Inputs = Mapping[str, Any] | Sequence[Any] | Tensor | npt.NDArray[Any] | str | Path


def as_graphs(given: Mapping[str, Any]) -> dict[str, Graph]:
    """Graphs by name, from records, from names of methods, or from what a recipe holds.

    Raises:
        OptionError: if axes are of no form that `read_layouts` takes.
    """
    found = {}
    for name, entry in given.items():
        graph = Graph(entry) if isinstance(entry, str) else entry
        graph = graph if isinstance(graph, Graph) else _plain(name, graph)
        found[name] = replace(graph, axes=read_layouts(graph.axes))
    return found


def _plain(name: str, entry: Any) -> Graph:
    """A graph as a recipe holds it."""
    try:
        plan = entry.get("generates")
        return Graph(**{**entry, "generates": None if plan is None else Generation(**plan)})
    except (AttributeError, TypeError):
        known = ", ".join(field.name for field in fields(Graph))
        raise OptionError(
            f"The graph {name!r} is {entry!r}; give a method's name, or a table of {known}."
        ) from None


def _says(value: Any) -> bool:
    """Whether an option says anything; arrays do."""
    return value is not None if hasattr(value, "shape") else bool(value)


def names_code(model: str | None) -> bool:
    """Whether a model is ``package.module:factory``: code to import, and none of intaglio's."""
    return model is not None and ":" in model


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What says how to read a source, wherever it lies: a recipe repeats it."""

    model: str | None = None
    config: Config | None = None
    key: str | None = None
    axes: Axes = field(default_factory=dict)
    graphs: Mapping[str, Any] = field(default_factory=dict)
    states: States = field(default_factory=dict)
    condition: Sequence[str] = ()
    whole: bool | None = None
    last: bool | None = None
    adapter: Mapping[str, str] = field(default_factory=dict)
    adapters: str | None = None
    inputs: Inputs | None = None
    text: str | Path | Mapping[str, Any] | None = None
    bits: Mapping[str, int] = field(default_factory=dict)
    pixels: str | Path | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", read_layouts(self.axes))


@dataclass(frozen=True, kw_only=True)
class LoadOptions(SourceOptions):
    """How to load a source; beyond `SourceOptions`, what is the user's to say each time.

    `implied` names what no user said, but a bundle that was made of such a source, and `offered` is
    the code that it would have built the model by, where that was not allowed.
    """

    import_from: Sequence[str | Path] = ()
    allow_code: bool = False
    allow_pickle: bool = False
    implied: Sequence[str] = ()
    offered: str | None = None

    @classmethod
    def of(cls, *given: Mapping[str, Any]) -> Self:
        """The options that are among `given` and not None; the last to name one decides."""
        known = [entry.name for entry in fields(cls)]
        values = {n: v for each in given for n, v in each.items() if n in known and v is not None}
        return cls(**values)

    def given(self) -> dict[str, Any]:
        """The options that say anything, by name."""
        values = {n: getattr(self, n) for n in LoadKeywords.__annotations__}
        return {name: value for name, value in values.items() if _says(value)}

    def take(self, what: str, *names: str) -> None:
        """Refuse what was given beside `names` and consent: it means nothing for `what`.

        Raises:
            OptionError: if something was.
        """
        for name in self.given():
            if (
                name not in (*names, *self.implied)
                and name not in OF_ALL
                and not name.startswith("allow_")
            ):
                option = FLAGS.get(name, name.replace("_", "-"))
                raise OptionError(f"--{option} says nothing about {what}; leave it out.")


class LoadKeywords(TypedDict, total=False):
    """The same as keywords, as `load_source`, `export`, `verify` and `profile` take them."""

    model: Annotated[
        str | None,
        "a model of `intaglio.models`, or ``package.module:factory``: naming a factory is consent "
        "to run its code.  Needed unless the checkpoint names its model.",
    ]
    config: Annotated[
        Config | None,
        "what the model or factory is built with: a mapping, or a JSON or TOML file.",
    ]
    key: Annotated[str | None, "where the file holds the state dict, if it holds several; dotted."]
    axes: Annotated[
        Axes | Mapping[str, str] | Sequence[str] | None,
        'the dimensions of inputs, free ones by name: ``{"mel": ("batch", 80, "time")}`` or, as it '
        'is typed, ``"mel:batchx80xtime"``, with the '
        'sizes that one takes as in ``"height=64..512:32"``, and behind the last what integers '
        'stay below: ``{"edge_index": (2, "edges<nodes")}``.  Where they are not given, the model '
        "is tried at other sizes.",
    ]
    graphs: Annotated[
        Mapping[str, Graph | str] | None,
        "the graphs of the bundle, one of them ``main``: names of methods, or records of "
        '`intaglio.Graph`: ``{"encode": "encoder", "main": "decode"}``.',
    ]
    states: Annotated[
        States | None,
        "the states that the model takes and gives back itself: inputs, and the outputs that they "
        'become, ``{"h": "h_out"}``.  Behind the output may stand what the state starts from, a '
        'number, a file ``.npz``, or a method of the module: ``"h_out:init_hidden"``.  Where none '
        'are named they are found by names and shapes; ``{"none": ""}`` has none.',
    ]
    condition: Annotated[
        Sequence[str] | None,
        "inputs without time, which hold for a whole sequence and are given once: an encoder's "
        "input, a label, a picture.  Found by itself where `axes` give an input no time.",
    ]
    whole: Annotated[
        bool | None,
        "whether each call takes whole inputs, and nothing is carried between calls, as with "
        "pictures and encoders; where it is not said, the model is asked.",
    ]
    last: Annotated[
        bool | None,
        "return what the model computes from its last token once for each step, as it is after the "
        "last of its tokens, not for every token; so are the logits of a Hugging Face directory.",
    ]
    adapter: Annotated[
        Mapping[str, str] | None,
        "adapters by name: files of ``intaglio adapter``, or directories of PEFT with a LoRA.",
    ]
    adapters: Annotated[
        str | None,
        "what becomes of them: ``fused``, added to the weights; ``switched``, a condition that a "
        "session is given; ``parallel``, all held, and each row has the number of its own.  Fused "
        "where it is not said.",
    ]
    inputs: Annotated[
        Inputs | None,
        "example inputs by name, or in the order of forward: tensors, arrays, or an ``.npz`` "
        "file.  Needed where the inputs are not token ids alone.  Values are drawn like theirs.",
    ]
    text: Annotated[
        str | Path | Mapping[str, Any] | None,
        "the tokenizer of a language model: a file ``tokenizer.json``, a model of sentencepiece, "
        "or a folder with either and the settings beside it.  The bundle carries it along.",
    ]
    bits: Annotated[
        Mapping[str, int] | None,
        "of a supernet, the bits of each layer by globs over module paths, the last that fits: "
        '``{"*": 2, "*down_proj": 4}``.',
    ]
    pixels: Annotated[
        str | Path | Mapping[str, Any] | None,
        "what pictures that are given as data become: ``imagenet``, ``inception`` or ``clip``, "
        '``{"mean": [0.5], "std": [0.25], "crop_pct": 0.9}``, or a file, ``config.json`` of timm '
        "or ``preprocessor_config.json``, which is read by itself in a Hugging Face directory.  "
        "From 0 to 1 where nothing is said.",
    ]
    import_from: Annotated[
        Sequence[str | Path] | None,
        "folders in which the factory's module is looked for first.",
    ]
    allow_code: Annotated[
        bool,
        "run code that a checkpoint or recipe names, not the user; ``FILE.py:FUNCTION`` passes, "
        "too.",
    ]
    allow_pickle: Annotated[
        bool, "load pickled objects, which runs whatever code the file's author chose."
    ]
