"""The options that say how to load a source, for every command that takes one.

An option stands here under the name that `exporter/options/loading.py` gives it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

if TYPE_CHECKING:
    from intaglio.exporter.options.loading import LoadKeywords


class LoadFlags(TypedDict):
    """A command takes them as ``**load: Unpack[LoadFlags]``, and hands on what `loading` reads."""

    model: Annotated[
        str | None, typer.Option(metavar="NAME|PKG.MOD:FACTORY", help="What the weights are of.")
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
            help="Each call takes whole inputs, as of pictures and encoders; else it is found.",
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
    return {
        **named,  # type: ignore[typeddict-item]
        "graphs": graphs,
        "states": own_states(flags["states"]),
    }


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
