"""The command `intaglio`."""

from .commands import main

__all__ = ["main"]
