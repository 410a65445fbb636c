"""`intaglio merge`: several models of one kind into one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Unpack

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command
from intaglio.places import require_file

from .load_flags import LoadFlags, loading


@command
def merge_(
    console: Console,
    models: Annotated[
        list[Path], typer.Argument(metavar="A B...", help="Models of one kind, at least two.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="The model to write, as A is.")
    ],
    match: Annotated[
        bool, typer.Option("--match/--no-match", help="Put units in the order of A's before.")
    ] = True,
    t: Annotated[
        float, typer.Option("--t", metavar="T", help="How far from A to B; the mean of more.")
    ] = 0.5,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Inputs with labels as .npz, or text: for losses."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order in which units are matched.")] = 0,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with the path's losses.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    **load: Unpack[LoadFlags],
) -> None:
    """Merge models of one kind into one, their units matched.

    Examples:
        intaglio merge a.pt b.pt -o merged.pt --data samples.npz --report merge.html
    """
    from intaglio.exporter.merge import merge

    if report is not None and data is None:
        raise typer.BadParameter("a page of losses needs --data", param_hint="--report")
    write_page = None if report is None else _page(report)
    with console.progress() as progress:
        made = merge(
            models,
            out,
            matched=match,
            t=t,
            data=data,
            seed=seed,
            force=force,
            progress=progress,
            **loading(load),
        )
    found = made.to_json()
    if report is not None and write_page is not None:
        write_page(found, report)
    for note in made.notes:
        console.message(f"note: {note}")
    console.table(_rows(found), ["", "before", "after"])
    if made.losses:
        names = [*made.names, "merged"]
        rows = [
            [name, f"{loss:.4f}", "" if accuracy is None else f"{accuracy:.4f}"]
            for name, (loss, accuracy) in zip(names, made.losses, strict=True)
        ]
        console.table(rows, ["model", "loss", "accuracy"])
    console.text(f"{out}, {made.groups} groups of units matched")
    console.result(found)


def _page(path: Path) -> Callable[[Mapping[str, Any], Path], None]:
    """What writes the page, found before the work, and its place looked at."""
    require_file(path)
    from intaglio.report.merging import write_page

    return write_page


def _rows(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, distance, alignment in zip(
        found["models"][1:], found["distance"], found["alignment"], strict=True
    ):
        for what, each in (("distance", distance), ("alignment", alignment)):
            rows.append([f"{name}, {what}", f"{each['before']:.4g}", f"{each['after']:.4g}"])
    if found["paths"]:
        ends = [f"{found['paths'][each]['barrier']:.4g}" for each in ("before", "after")]
        rows.append(["barrier", *ends])
    return rows
