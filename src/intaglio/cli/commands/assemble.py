"""`intaglio assemble`: stages that were trained apart into one checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command


@command
def assemble_(
    console: Console,
    stages: Annotated[
        list[Path],
        typer.Argument(metavar="STAGE0 STAGE1...", help="A file for each stage, in their order."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="To be exported.")],
    separate: Annotated[
        bool, typer.Option("--separate", help="Bundles of it have a graph for each stage, too.")
    ] = False,
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", metavar="N", help="Resize tables of positions to it."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Whose stages they are.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE|JSON", help="What no shape tells, as heads."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Put stages that were trained apart in a row, as one checkpoint.

    Examples:
        intaglio assemble stage0.pt stage1.pt stage2.pt -o whole.pt
    """
    from intaglio.exporter.assemble import assemble
    from intaglio.exporter.options.config import read_config

    values: dict[str, Any] = read_config(config)
    if separate:
        values["separate"] = True
    if image_size is not None:
        values["image_size"] = image_size
    with console.progress() as progress:
        made = assemble(stages, out, model=model, config=values, force=force, progress=progress)
    for note in made.notes:
        console.message(f"note: {note}")
    console.table(
        [
            [str(place), str(file), str(depth), f"{parameters:,}"]
            for place, (file, depth, parameters) in enumerate(
                zip(made.files, made.depths, made.parameters, strict=True)
            )
        ],
        ["stage", "file", "depth", "parameters"],
    )
    console.text(f"{out}, {made.model} of {len(made.files)} stages")
    console.result(made.to_json())
