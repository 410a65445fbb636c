"""What `intaglio run` does for a bundle that generates wholes: a picture of a class, as a file."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from intaglio.cli.condition_values import read_conditions
from intaglio.cli.console import Console
from intaglio.errors import InputError
from intaglio.runtime import png
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.whole_generation import WholeGenerator

from .stream import write_arrays

PICTURE = ".png"


def generate_whole(
    console: Console,
    bundle: Bundle,
    target: str,
    conditions: Sequence[str],
    out: Path | None,
    **options: Any,
) -> None:
    """Generate a whole for each row of the conditions, and keep it in `out`.

    Args:
        console: where it is told.
        bundle: what was opened of it.
        target: what runs.
        conditions: as they were typed.
        out: a picture, or arrays; none keeps nothing.
        options: of `WholeGenerator.generate`.

    Raises:
        InputError: if the bundle generates none, or a value does not fit.
    """
    main = bundle.manifest.main
    if main.generates is None:
        raise typer.BadParameter("give --prompt or --inputs")
    generator = WholeGenerator(bundle, target)
    given = read_conditions(conditions, main.conditions)
    start = time.perf_counter()
    outputs = generator.generate(given, **options)
    seconds = time.perf_counter() - start
    if out is not None and out.suffix == PICTURE:
        if len(outputs) != 1:
            raise InputError(f"A picture is one output, and there are {', '.join(outputs)}.")
        png.write(out, next(iter(outputs.values())))
    elif out is not None:
        write_arrays(out, outputs)
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    blocks = len(main.limits.ends)
    console.table([[name, str(shape)] for name, shape in shapes.items()], ["output", "shape"])
    console.result({"outputs": shapes, "blocks": blocks, "seconds": seconds})
    console.message(f"{blocks} blocks in {seconds * 1e3:.0f} ms")
