"""`intaglio subnet`: of a supernet of several bits the best subnet of a budget."""

from pathlib import Path
from typing import Annotated, Unpack

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command

from .budgets import SearchFlags, require_page, searching, show


@command
def subnet_(
    console: Console,
    supernet: Annotated[
        Path, typer.Argument(metavar="SUPERNET", help="What intaglio.models.supernet wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="To be exported.")],
    budget: Annotated[
        str, typer.Option(metavar="3.1bits|1.5MB|12ms", help="Scales and offsets are counted.")
    ],
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="Text or tokens that nothing was tuned on.")
    ],
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where finished evaluations are kept, to resume."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    **how: Unpack[SearchFlags],
) -> None:
    """Search a supernet for the best subnet of a budget, and write it as a checkpoint.

    Examples:
        intaglio subnet supernet.pt -o small.pt --budget 3.1bits --data text.txt
    """
    from intaglio.exporter.subnet import make_subnet

    require_page(how["report"])
    with console.progress() as progress:
        made = make_subnet(
            supernet,
            out,
            budget=budget,
            data=data,
            work=work,
            force=force,
            progress=progress,
            **searching(how),
        )
    show(console, made, **how)
    console.text(str(out))
    console.result(made.to_json())
