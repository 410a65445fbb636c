"""`intaglio list`: what intaglio knows."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from intaglio.cli import catalogue
from intaglio.cli.console import Console
from intaglio.cli.frame import command
from intaglio.cli.known_names import known


class Listed(StrEnum):
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
        Listed | None,
        typer.Argument(metavar="KIND", help="ops, passes, models, targets or kernels."),
    ] = None,
) -> None:
    """List the operators, passes, models, targets and kernels that intaglio knows.

    With the models come the systems of the literature, of which some are passes and commands.

    Examples:
        intaglio list
        intaglio list models
        intaglio list passes --json
    """
    if kind is None:
        _in_short(console)
        return
    entries: list[dict[str, Any]] = getattr(catalogue, kind)()
    found = {str(kind): entries}
    if kind == Listed.MODELS:
        found = {"systems": catalogue.systems(), **found}
        console.text(f"{len(found['systems'])} systems of the literature")
        _table(console, found["systems"])
        console.text("\nModels that a checkpoint or --model names")
    _table(console, entries)
    console.result(found)


def _table(console: Console, entries: list[dict[str, Any]]) -> None:
    head = list(entries[0])
    console.table([[_cell(entry[key]) for key in head] for entry in entries], head)


def _in_short(console: Console) -> None:
    """Every name, by kind."""
    found = known()
    for kind, entries in found.items():
        if console.flags.verbose:
            console.text(f"{kind}")
            console.table([[e["name"], e["summary"]] for e in entries], ["name", ""])
            continue
        names = ", ".join(entry["name"] for entry in entries)
        console.paragraph(kind, names)
    if not console.flags.verbose:
        console.text("\nMore of one kind: intaglio list models")
    console.result(found)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={default!r}" for key, default in value.items()) or "-"
    return str(value)
