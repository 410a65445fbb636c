"""`intaglio list`: what intaglio knows."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from intaglio.cli import catalogue
from intaglio.cli.console import Console
from intaglio.cli.frame import command


class Kind(StrEnum):
    """What `list` lists."""

    OPS = "ops"
    PASSES = "passes"
    MODELS = "models"
    TARGETS = "targets"
    KERNELS = "kernels"


@command
def list_(
    console: Console,
    kind: Annotated[
        Kind, typer.Argument(metavar="KIND", help="ops, passes, models, targets or kernels.")
    ],
) -> None:
    """List the operators, passes, models, targets or kernels that intaglio knows."""
    entries: list[dict[str, Any]] = getattr(catalogue, kind)()
    head = list(entries[0])
    console.table([[_cell(entry[key]) for key in head] for entry in entries], head)
    console.result({kind: entries})


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={default!r}" for key, default in value.items()) or "-"
    return str(value)
