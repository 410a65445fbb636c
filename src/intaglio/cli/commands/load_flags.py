"""The options that say how to load a source, for every command that takes one.

An option stands here under the name that `exporter/options/loading.py` gives it.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from intaglio.cli.known_names import models_like

if TYPE_CHECKING:
    from intaglio.exporter.options.loading import LoadKeywords


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Adapters(StrEnum):
    """What becomes of the adapters of a source."""

    FUSED = "fused"
    SWITCHED = "switched"
    PARALLEL = "parallel"


class LoadFlags(TypedDict):
    """A command takes them as ``**load: Unpack[LoadFlags]``, and hands on what `loading` reads."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PKG.MOD:FACTORY",
            help="What the weights are of.",
            autocompletion=models_like,
        ),
    ]
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the model is built with.")
    ]
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which state dict, if there are several.")
    ]
    import_from: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Where the factory's module lies.")
    ]
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Example inputs, where not token ids.")
    ]
    text: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="FILE|DIR",
            help="Of a language model: tokenizer.json, a .model of sentencepiece, or a folder.",
        ),
    ]
    axes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:DIMS",
            help="Layout of an input, free axes by name, as image:batchx3xheight=64..512:32xwidth; "
            "repeatable.",
        ),
    ]
    whole: Annotated[
        bool | None,
        typer.Option(
            "--whole/--no-whole",
            help="Each call takes whole inputs, as of pictures and encoders.",
            show_default="found out",
        ),
    ]
    last: Annotated[
        bool | None,
        typer.Option(
            "--last/--no-last",
            help="Heads on the last token, and logits of a Hugging Face directory, are returned "
            "once a step.",
            show_default="for every token",
        ),
    ]
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="IN=OUT[:START]",
            help="An input that is a state, the output that it becomes, and a number, .npz or "
            "method that it starts from; repeatable. none: there is none.",
        ),
    ]
    condition: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An input given once for a sequence; repeatable."),
    ]
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="An adapter: .npz, or PEFT's folder; repeatable."),
    ]
    adapters: Annotated[
        Adapters | None,
        typer.Option(
            help="Adapters added to the weights, given to a session, or one for each row.",
            show_default="fused",
        ),
    ]
    bits: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB=N", help="Of a supernet, the bits of layers; repeatable, the last fits."
        ),
    ]
    pixels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.json|TOML",
            help="What pictures given as data become: imagenet, inception, clip, or "
            "'mean=[...],std=[...],crop_pct=0.9'.",
            show_default="from 0 to 1",
        ),
    ]
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run code that the source or --pass FILE.py names.")
    ]
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Load pickled objects: runs code of the file.")
    ]


def loading(flags: LoadFlags, graphs: Mapping[str, str] | None = None) -> "LoadKeywords":
    """The flags as Python takes them: texts are read; `graphs` are those of an export.

    Raises:
        typer.BadParameter: if one is malformed.
    """
    named = {name: value for name, value in flags.items() if name != "states"}
    way = flags["adapters"]
    return {
        **named,  # type: ignore[typeddict-item]
        "graphs": graphs,
        "states": own_states(flags["states"]),
        "adapter": named_files(flags["adapter"]),
        "adapters": None if way is None else way.value,
        "bits": bits_of(flags["bits"]),
    }


def bits_of(texts: list[str] | None) -> dict[str, int] | None:
    """Read the values of ``--bits``.

    Raises:
        typer.BadParameter: if one is not ``GLOB=N``.
    """
    found = {}
    for text in texts or []:
        glob, _, bits = text.rpartition("=")
        if not glob or not bits.isdecimal():
            raise typer.BadParameter(f"{text!r} is not GLOB=N, as *=2", param_hint="--bits")
        found[glob] = int(bits)
    return found or None


def named_files(texts: list[str] | None) -> dict[str, str] | None:
    """Read the values of ``--adapter``.

    Raises:
        typer.BadParameter: if one is not ``NAME=FILE`` with a name for a file, or one comes twice.
    """
    found: dict[str, str] = {}
    for text in texts or []:
        name, _, path = text.partition("=")
        if not path or not NAME.fullmatch(name) or name in found:
            why = "comes twice" if name in found else "is not NAME=FILE, as french=french.npz"
            raise typer.BadParameter(f"{text!r} {why}", param_hint="--adapter")
        found[name] = path
    return found or None


def own_states(texts: list[str] | None) -> dict[str, str] | None:
    """Read the values of ``--state``.

    Raises:
        typer.BadParameter: if one is not ``IN=OUT[:START]``.
    """
    found = {}
    for text in texts or []:
        name, equals, output = text.partition("=")
        if not name or bool(equals) != bool(output) or (not equals and name != "none"):
            raise typer.BadParameter(
                f"{text!r} is not IN=OUT[:START], as h=h_out or h=h_out:0.5", param_hint="--state"
            )
        found[name] = output
    return found or None
