"""Options that several commands share, and how their texts are read."""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intaglio.errors import BundleError

if TYPE_CHECKING:
    from intaglio.runtime import Bundle

Steps = Annotated[int, typer.Option(min=1, metavar="N", help="Steps to compare.")]
Data = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="What to verify with: .npz, .txt, pictures, or a folder."),
]
LoadRecipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE.toml",
        help="What says how to load the source, with its ranges; the bundle's own otherwise.",
    ),
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")]
Graph = Annotated[
    str | None, typer.Option(metavar="NAME", help="One graph of the bundle.", show_default="all")
]
Signature = Annotated[
    Path | None,
    typer.Option(
        "--require-signature",
        metavar="KEY",
        help="The public key that must have signed the bundle; it then may run its engine.",
    ),
]
Tolerance = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Limit of an output's or a state's error; repeatable."),
]


class Flavour(StrEnum):
    """The two kinds of TensorRT, and the first that can build here."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    RTX = "rtx"


class Target(StrEnum):
    """What can run a bundle's engine."""

    ORT = "ort"
    TRT = "trt"


def open_bundle(path: Path, key: Path | None) -> "Bundle":
    """Open a bundle, signed by the public key in the file `key` if one is given.

    Raises:
        BundleError: if it cannot be opened, or is not signed by that key.
        OptionError: if the key cannot be read.
    """
    from intaglio.runtime import Bundle

    return Bundle.open(path, require_signature=key)


def require_consent(
    bundle: "Bundle", graph: str | None, target: str, *, allowed: bool | None
) -> None:
    """Refuse to load an engine and its kernels, which are code of whoever made the bundle.

    A bundle that is signed by a key that the user requires is as good as their word.

    Raises:
        BundleError: if that is what would run, and `allowed` is false.
    """
    if allowed or bundle.signer is not None or target == Target.ORT:
        return
    for name, each in bundle.graphs.items():
        chosen = Target.TRT in each.entry.targets and (
            target == Target.TRT or Target.ORT not in each.entry.targets
        )
        if chosen and graph in (None, name):
            raise BundleError(
                f"{bundle.root} runs an engine and kernels that whoever made it compiled: code "
                "that nothing here can check. Where that is trusted, allow it with --allow-code, "
                "or name the key that has to have signed it with --require-signature; or run the "
                "bundle with --target ort."
            )


def by_graph(found: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What was found of each graph, for ``--json``: that of one graph stands by itself."""
    return next(iter(found.values())) if len(found) == 1 else {"graphs": found}


def limits(texts: list[str] | None) -> dict[str, float]:
    """Read the values of ``--tolerance``.

    Raises:
        typer.BadParameter: if one is not ``NAME=VALUE``.
    """
    found = {}
    for text in texts or []:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--tolerance")
    return found


def methods(texts: list[str] | None) -> dict[str, str] | None:
    """Read the values of ``--graph`` of an export.

    Raises:
        typer.BadParameter: if one is not ``NAME=METHOD``, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts or []:
        name, _, method = text.partition("=")
        if not name or not method or name in found:
            said = "comes twice" if name in found else "is not NAME=METHOD, as encode=encoder"
            raise typer.BadParameter(f"{text!r} {said}", param_hint="--graph")
        found[name] = method
    return found or None


def numbers(text: str, option: str) -> list[float]:
    """Read a list of numbers with commas, the value of `option`.

    Raises:
        typer.BadParameter: if it is none.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers with commas between them.", param_hint=option
        ) from error


def whole_numbers(text: str, option: str) -> list[int]:
    """Read a list of whole numbers with commas, the value of `option`.

    Raises:
        typer.BadParameter: if it is none.
    """
    found = numbers(text, option)
    if not all(number.is_integer() for number in found):
        raise typer.BadParameter(f"{text!r} is no list of whole numbers.", param_hint=option)
    return [int(number) for number in found]


def compute_capabilities(text: str) -> list[int]:
    """Read the value of `--sm`, as NVIDIA's compilers spell capabilities without their point.

    Raises:
        typer.BadParameter: if it is none, with what to type where that can be told.
    """
    words = [word.strip() for word in text.split(",")]
    if all(word.isdecimal() for word in words):
        return [int(word) for word in words]
    meant = [re.sub(r"^(sm|compute)_?|\.", "", word) for word in words]
    said = "" if not all(word.isdecimal() for word in meant) else f": --sm {','.join(meant)}"
    raise typer.BadParameter(
        f"{text!r} is no list of compute capabilities, which are whole numbers, as 87 for 8.7, "
        f"with commas between them{said or ', as 87,90'}.",
        param_hint="--sm",
    )
