"""The command `intaglio`."""

import typer

from . import commands
from .frame import app

__all__ = ["commands", "main"]


def main() -> None:
    """Run the command line and exit."""
    # Not app(): that would replace sys.excepthook.
    typer.main.get_command(app)(prog_name="intaglio")
