"""`intaglio inspect`: what a bundle holds."""

from intaglio.cli.console import Console
from intaglio.cli.frame import command

from .options import BundlePath


@command
def inspect_(console: Console, bundle: BundlePath) -> int:
    """Show what a bundle holds: inputs, outputs, states, passes, parity, files."""
    from intaglio.cli import summary
    from intaglio.runtime import Bundle

    opened = Bundle.open(bundle)
    damage = summary.damage(opened)
    summary.show(console, opened.manifest, str(bundle), damage)
    console.result({"manifest": opened.manifest.to_json(), "damage": damage})
    return 1 if damage else 0
