"""`intaglio build`: the TensorRT engine of a bundle, built where it will run."""

from typing import Annotated

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command
from intaglio.cli.summary import amount

from .options import BundlePath, Flavour


@command
def build_(
    console: Console,
    bundle: BundlePath,
    flavour: Annotated[
        Flavour | None, typer.Option(help="Which TensorRT builds; as the export asked.")
    ] = None,
) -> None:
    """Build the TensorRT engine of a bundle, or build it again for this machine."""
    from intaglio.runtime.bundle import Bundle
    from intaglio.runtime.trt.engine_build import ENGINE, build

    with console.progress() as progress:
        _, built = build(
            Bundle.open(bundle),
            flavour=None if flavour is None else flavour.value,
            progress=progress,
        )
    plugins = [layer for layer in built.layers if layer.plugin]
    devices = ", ".join(map(str, built.capabilities)) or "this GPU"
    console.text(
        f"engine   {bundle / ENGINE}, {amount(built.bytes)}, by {built.flavour} {built.version} "
        f"for compute capability {devices}"
    )
    console.text(f"layers   {len(built.layers)}, {len(plugins)} of them our kernels")
    for layer in plugins:
        console.detail(f"{layer.plugin}: {layer.name}")
    console.result(built.to_json())
