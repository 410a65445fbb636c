"""The command `intaglio`."""

import io
import sys

import typer

from . import commands
from .frame import app

__all__ = ["commands", "main"]


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may have letters that a terminal has not
            stream.reconfigure(errors="backslashreplace")
    # Not app(): that would replace sys.excepthook.
    typer.main.get_command(app)(prog_name="intaglio")
