"""`intaglio interpret`: the affine map that a network is for one input, as arrays and pictures."""

from pathlib import Path
from typing import Annotated

import typer

from intaglio.cli.console import Console
from intaglio.cli.frame import command

from .options import BundlePath

MAP = "map.npz"
SHOWN = 4  # rows and singular vectors, where nothing else is asked for


@command
def interpret_(
    console: Console,
    bundle: BundlePath,
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="A picture, or an array as .npy, of the size.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where arrays and pictures go.")
    ],
    output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which output's map.", show_default="the first one's"),
    ] = None,
    row: Annotated[
        list[int] | None,
        typer.Option(min=0, metavar="N", help="What output N is made of; repeatable."),
    ] = None,
    column: Annotated[
        list[int] | None,
        typer.Option(min=0, metavar="N", help="What input N adds to; repeatable."),
    ] = None,
    singular: Annotated[
        int | None, typer.Option(min=0, metavar="K", help="How many singular vectors.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a map that is there.")] = False,
) -> None:
    """Take a network apart at one input: rows, columns, bias and singular vectors of its map.

    Examples:
        intaglio interpret bundle picture.png -o map --row 3 --singular 8
    """
    import numpy as np

    from intaglio.cli.stream import write_arrays
    from intaglio.errors import InputError, reason
    from intaglio.places import require_file
    from intaglio.report.pictures import is_picture, read_picture, write_picture
    from intaglio.runtime.interpreter import Interpreter, arrays_of

    require_file(out / MAP, force=force)
    found = Interpreter.load(bundle, output)
    found.record(read_picture(image, found.shape))
    nothing = row is None and column is None and singular is None
    default = min(SHOWN, found.output.size) if nothing and found.gives_rows else 0
    rows = list(range(default)) if nothing else row or []
    arrays = arrays_of(found, rows, column or [], default if nothing else singular or 0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_arrays(out / MAP, arrays)
        drawn = []
        for name, label in (("rows", rows), ("columns", column or []), ("singular_inputs", None)):
            for index, array in enumerate(arrays.get(name, ())):
                if is_picture(array.shape):
                    place = index if label is None else label[index]
                    drawn.append(out / f"{name.rstrip('s')}_{place}.png")
                    write_picture(drawn[-1], array)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {reason(error)}.") from error
    sizes = [float(np.linalg.norm(arrays[name])) for name in ("bias", "output")]
    share = sizes[0] / max(sizes[1], 1e-30)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    console.table([[name, str(shape)] for name, shape in shapes.items()], ["array", "shape"])
    console.text(f"bias     {share:.3f} of the length of the output")
    console.message(f"{len(drawn)} pictures and {MAP} in {out}")
    console.result({"arrays": shapes, "bias": share, "pictures": [path.name for path in drawn]})
