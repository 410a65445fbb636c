"""`intaglio inspect`: what a bundle holds, and what differs between two."""

from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command

from .options import BundlePath, whole_numbers


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
    contexts: Annotated[
        str,
        typer.Option("--context", metavar="N,...", help="Tell the states' bytes after N tokens."),
    ] = "",
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Rows, for --context.")] = 1,
) -> int:
    """Show what a bundle holds: inputs, states, weights, passes, parity, files."""
    from intaglio.cli import inside, summary
    from intaglio.errors import BundleError
    from intaglio.runtime import Bundle

    if diff != (other is not None):
        raise typer.BadParameter("two bundles are compared with --diff: inspect --diff A B")
    opened = Bundle.open(bundle)
    if other is not None:
        from intaglio.runtime.bundle_diff import compare_bundles

        found = compare_bundles(opened, Bundle.open(other))
        inside.show_diff(console, found, (str(bundle), str(other)))
        console.result(found.to_json())
        return 0
    damage = summary.damage(opened)
    tokens = whole_numbers(contexts, "--context") if contexts else []
    summary.show(console, opened.manifest, str(bundle), damage)
    inside.show_states(console, opened.manifest, tokens, batch)
    if console.flags.verbose:
        inside.show_changes(console, opened.manifest)
    try:
        weights = inside.weights(opened)
    except BundleError as error:
        weights = []
        console.message(f"note: the weights cannot be counted: {error}")
    inside.show_weights(console, weights)
    inside.show_code(console, opened.manifest)
    console.result(
        {
            "manifest": opened.manifest.to_json(),
            "damage": damage,
            "weights": inside.weights_to_json(weights),
            "states": {
                spec.input: {str(n): spec.nbytes(batch, n) for n in tokens}
                for spec in opened.manifest.states
            },
            "code": inside.code_files(opened.manifest),
        }
    )
    return 1 if damage else 0
