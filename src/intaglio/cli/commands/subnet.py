"""`intaglio subnet`: of a supernet of several bits the best subnet of a budget."""

from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command


@command
def subnet_(
    console: Console,
    supernet: Annotated[
        Path, typer.Argument(metavar="SUPERNET", help="What intaglio.models.supernet wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="To be exported.")],
    budget: Annotated[
        str, typer.Option(metavar="3.1bits|1.5MB", help="Scales and offsets are counted.")
    ],
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="Text or tokens that nothing was tuned on.")
    ],
    evaluations: Annotated[
        str, typer.Option(metavar="N,N", help="Tried at random, and around the best.")
    ] = "100,50",
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Search a supernet for the best subnet of a budget, and write it as a checkpoint.

    Examples:
        intaglio subnet supernet.pt -o small.pt --budget 3.1bits --data text.txt
    """
    from intaglio.exporter.subnet import make_subnet

    counts = evaluations.split(",")
    if len(counts) != 2 or not all(each.isdecimal() for each in counts):
        raise typer.BadParameter("give two numbers, as 100,50", param_hint="--evaluations")
    with console.progress() as progress:
        made = make_subnet(
            supernet,
            out,
            budget=budget,
            data=data,
            seed=seed,
            evaluations=(int(counts[0]), int(counts[1])),
            force=force,
            progress=progress,
        )
    rows = [
        [f"{each.mean:.3f}", f"{each.bytes / 1e6:.3f}", f"{each.loss:.4f}",
         "taken" if each is made.taken else ""]
        for each in made.pareto
    ]  # fmt: skip
    console.table(rows, ["bits a weight", "MB", "loss", ""])
    console.text(f"{out}, the best of {len(made.tried)} within {budget}")
    console.result(made.to_json())
