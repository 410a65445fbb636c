"""`intaglio triton`: a bundle becomes a model of Triton Inference Server."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command

from .options import BundlePath


class Strategy(StrEnum):
    """How Triton batches sequences."""

    OLDEST = "oldest"
    DIRECT = "direct"


class Ids(StrEnum):
    """Types of correlation ids."""

    UINT64 = "uint64"
    STRING = "string"


@command
def triton_(
    console: Console,
    bundle: BundlePath,
    out: Annotated[Path, typer.Option("--out", "-o", help="The model repository.")],
    name: Annotated[
        str | None, typer.Option(help="Of the model; the name of the bundle's folder.")
    ] = None,
    strategy: Annotated[
        Strategy, typer.Option(help="How Triton batches sequences.")
    ] = Strategy.OLDEST,
    ids: Annotated[Ids, typer.Option(help="Type of correlation ids.")] = Ids.UINT64,
    rows: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sequences in the engine's memory at once.")
    ] = 16,
    sequences: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Sequences that may be open; 16 times the rows."),
    ] = None,
    idle: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="After which a sequence is let go.")
    ] = 60,
    store: Annotated[
        Path | None, typer.Option(help="A folder of the server's machine for saved sequences.")
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Save each sequence after so many tokens."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--context", min=1, metavar="N", help="Tokens that a sequence may hold."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads within one operator.")
    ] = None,
    reproducible: Annotated[
        bool, typer.Option("--reproducible", help="Give the same bits whoever shares a call.")
    ] = False,
    implicit_state: Annotated[
        bool,
        typer.Option("--implicit-state", help="Write a plain model of ONNX Runtime, too."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace models of that name.")] = False,
) -> None:
    """Write a bundle as a model of Triton Inference Server: sequences over streams.

    Examples:
        intaglio triton bundle -o repository/
        intaglio triton bundle -o repository/ --store kept/ --save-every 16
    """
    from intaglio.runtime.serving.model_config import Serving
    from intaglio.runtime.serving.repository import write_repository

    if save_every is not None and store is None:
        raise typer.BadParameter("--save-every needs a folder to save to: give --store as well.")
    given = {
        "store": None if store is None else str(store),
        "save_every": save_every,
        "context": tokens,
        "threads": threads,
        "reproducible": "true" if reproducible else None,
    }
    serving = Serving(
        strategy=strategy.value,
        rows=rows,
        sequences=sequences or 16 * rows,
        idle=idle,
        ids=ids.value,
        parameters={key: str(value) for key, value in given.items() if value is not None},
    )
    models = write_repository(
        bundle, out, serving, name=name, implicit_state=implicit_state, force=force
    )
    for model in models:
        console.text(f"model    {model}")
    console.text(f"serve    tritonserver --model-repository {shlex.quote(str(out))}")
    console.result({"models": [str(model) for model in models]})
