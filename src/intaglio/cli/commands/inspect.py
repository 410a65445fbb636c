"""`intaglio inspect`: what a bundle holds, and what differs between two."""

from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command

from .options import BundlePath, Graph, Signature, by_graph, open_bundle, whole_numbers


@command
def inspect_(
    console: Console,
    bundle: BundlePath,
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="The bundle to compare with.")
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what differs between two bundles.")
    ] = False,
    graph: Graph = None,
    contexts: Annotated[
        str,
        typer.Option("--context", metavar="N,...", help="Tell the states' bytes after N tokens."),
    ] = "",
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Rows, for --context.")] = 1,
    require_signature: Signature = None,
    couplings: Annotated[
        bool, typer.Option("--couplings", help="Tell which channels of weights belong together.")
    ] = False,
) -> int:
    """Show what a bundle holds: inputs, states, weights, passes, parity, files.

    Examples:
        intaglio inspect bundle
        intaglio inspect bundle -v --context 1024,4096 --batch 8
        intaglio inspect --diff bundle quantized
    """
    from intaglio.cli import inside, summary
    from intaglio.runtime import Bundle

    if diff != (other is not None):
        raise typer.BadParameter("two bundles are compared with --diff: inspect --diff A B")
    opened = open_bundle(bundle, require_signature)
    names = list(opened.graphs) if graph is None else [opened.graph(graph).name]
    if other is not None:
        pair = (opened, Bundle.open(other))
        console.result(inside.compare(console, pair, (str(bundle), str(other)), graph))
        return 0
    damage = summary.damage(opened)
    tokens = whole_numbers(contexts, "--context") if contexts else []
    summary.show(console, opened.manifest, str(bundle), damage, names=names)
    looks = {}
    for name in names:
        if len(names) > 1:
            console.text(f"\ngraph    {name}")
        looks[name] = inside.look(console, opened.graph(name), tokens, batch)
        if couplings:
            looks[name]["couplings"] = inside.show_couplings(console, opened.graph(name))
    inside.show_code(console, opened)
    signature = inside.show_signature(console, opened)
    console.result(
        {
            "manifest": opened.manifest.to_json(),
            "damage": damage,
            **by_graph(looks),
            "code": inside.code_files(opened),
            "signature": signature,
        }
    )
    return 1 if damage else 0
