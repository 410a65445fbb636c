"""`intaglio verify`: a bundle against its source."""

from pathlib import Path
from typing import Annotated, Unpack

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command

from .loading import LoadFlags, loading
from .options import (
    BundlePath,
    Data,
    Steps,
    Target,
    Tolerance,
    limits,
)


@command
def verify_(
    console: Console,
    bundle: BundlePath,
    against: Annotated[Path, typer.Option(metavar="SOURCE", help="The checkpoint it came from.")],
    data: Data = None,
    steps: Steps = 512,
    tolerance: Tolerance = None,
    target: Annotated[
        Target, typer.Option(help="What runs: ONNX Runtime, or TensorRT on a GPU.")
    ] = Target.ORT,
    graph: Annotated[
        bool,
        typer.Option("--graph", help="Run the graph for TensorRT in ONNX Runtime: needs no GPU."),
    ] = False,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Try every token id, the whole context, and more rows."),
    ] = False,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the first node that diverges.")
    ] = False,
    **load: Unpack[LoadFlags],
) -> int:
    """Compare a bundle with its source, step by step: outputs and carried states."""
    from intaglio import verify
    from intaglio.cli import summary

    with console.progress() as progress:
        report = verify(
            bundle,
            against,
            data=data,
            target=target.value,
            graph=graph,
            steps=steps,
            tolerance=limits(tolerance),
            thorough=thorough,
            bisect=bisect,
            progress=progress,
            **loading(load),
        )
    console.text(report.summary())
    summary.show_parity(console, report.to_json())
    console.result(report.to_json())
    return 0 if report.passed else 3
