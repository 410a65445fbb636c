"""`intaglio build`: the TensorRT engine of a bundle, built where it will run."""

from typing import Annotated

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command
from intaglio.cli.summary import amount
from intaglio.runtime.graph_entry import MAIN

from .options import BundlePath, Flavour, Graph, by_graph


@command
def build_(
    console: Console,
    bundle: BundlePath,
    graph: Graph = None,
    flavour: Annotated[
        Flavour | None,
        typer.Option(help="Which TensorRT builds.", show_default="as the export asked"),
    ] = None,
) -> None:
    """Build the TensorRT engines of a bundle, or build them again for this machine.

    Examples:
        intaglio build bundle
    """
    from intaglio.runtime.bundle import Bundle
    from intaglio.runtime.trt.engine_build import ENGINE, TARGET, build

    opened = Bundle.open(bundle)
    names = [name for name, each in opened.graphs.items() if TARGET in each.entry.targets]
    found = {}
    for name in [graph] if graph is not None else names or [MAIN]:
        with console.progress() as progress:
            made, built = build(
                opened.graph(name),
                flavour=None if flavour is None else flavour.value,
                progress=progress,
            )
        opened = made.bundle
        place = bundle / made.beside(TARGET, ENGINE)
        found[name] = built
        plugins = [layer for layer in built.layers if layer.plugin]
        devices = ", ".join(map(str, built.capabilities)) or "this GPU"
        console.text(
            f"engine   {place}, {amount(built.bytes)}, by {built.flavour} {built.version} "
            f"for compute capability {devices}"
        )
        console.text(f"layers   {len(built.layers)}, {len(plugins)} of them our kernels")
        for layer in plugins:
            console.detail(f"{layer.plugin}: {layer.name}")
    console.result(by_graph({name: built.to_json() for name, built in found.items()}))
