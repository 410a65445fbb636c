"""`intaglio adapter`: what a tuned model adds to its base, as a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Unpack

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command
from intaglio.cli.summary import amount
from intaglio.places import require_file

from .load_flags import LoadFlags, loading


@command
def adapter_(
    console: Console,
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The model before tuning.")],
    tuned: Annotated[
        Path, typer.Argument(metavar="TUNED", help="The same after it, or PEFT's folder of a LoRA.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.npz", help="The adapter to write.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    **load: Unpack[LoadFlags],
) -> None:
    """Write what a tuned model adds to its base as an adapter.

    Examples:
        intaglio adapter base.pt tuned.pt -o french.npz
    """
    from intaglio.exporter.adapter import make_adapter

    require_file(out, force=force)
    made, notes = make_adapter(base, tuned, **loading(load))
    made.save(out)
    for note in notes:
        console.message(f"note: {note}")
    console.table(
        [[name, *_words(parts)] for name, parts in made.parts.items()],
        ["parameter", "rows", "columns", "rank"],
    )
    console.text(f"{out}, {amount(made.bytes)}")
    console.result(
        {
            "out": str(out),
            "bytes": made.bytes,
            "base": made.base,
            "parts": {
                n: {p: list(x.shape) for p, x in parts.items()} for n, parts in made.parts.items()
            },
        }
    )


def _words(parts: Mapping[str, Any]) -> list[str]:
    if "value" in parts:
        return ["all", "", ""]
    return [str(len(parts[name])) if name in parts else "" for name in ("rows", "columns", "down")]
