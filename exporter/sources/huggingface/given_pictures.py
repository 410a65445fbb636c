"""Vision-language models: a picture is given once for a sequence, and stands where its tokens do.

What the library makes of pictures is put into each row by itself (`splicing.py`), so that pictures
are conditions.  Models differ in what they read beside that, which their forward says by its
parameters: several pictures a row, a prompt whose tokens see each other (`prefixes.py`), or patches
with the sizes of a grid, and positions in several axes (`grids.py`).  Each is compared with the
library's own way before it is used.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.guess_axes import EXAMPLE
from intaglio.quiet import quiet, summary
from intaglio.state import BATCH, TIME

from . import grids, prefixes
from .features import FEATURES, LAYOUTS, PIXELS, VALUES, merged
from .inputs import TOKENS, Run, Taken
from .splicing import AGREES, ROWS, TEXT, pictures_and_marks, spliced_by_row

MANY, EXAMPLE_PICTURES = "pictures", 3  # the axis of the pictures of a row
TAKES_MANY = "pixel_attention_mask"
"""Models with this input take several pictures a row, and one that says what of each is padding."""

Shape = tuple[int | str, ...]


def left_out(module: nn.Module) -> Iterator[str]:
    """Say of a model that is exported with text alone what else it reads."""
    takes = inspect.signature(type(module).forward).parameters
    others = [name for name in (PIXELS, FEATURES, VALUES) if name in takes]
    if others:
        advice = f" To give a picture for each row: --condition {PIXELS}."
        yield (
            f"{type(module).__name__} reads {' and '.join(map(repr, others))} beside text: left "
            f"out, the bundle knows text alone.{advice if PIXELS in others else ''}"
        )


def taken(
    module: nn.Module,
    tokens: int,
    config: Mapping[str, Any],
    folder: Path,
    named: list[str],
    layout: Sequence[int | str] | None = None,
) -> Taken:
    """What a vision-language model takes with a picture for each row.

    Args:
        module: of the library.
        tokens: how many it knows.
        config: of the directory.
        folder: the directory, which may say how pictures are prepared.
        named: the conditions that the user asks for.
        layout: the axes of the pictures, where the user names them.

    Raises:
        SourceError: if it takes no picture, or more than is known.
    """
    who = type(module).__name__
    takes = inspect.signature(type(module).forward).parameters
    marker = _marker(module)
    if named != [PIXELS] or PIXELS not in takes or marker is None or marker >= tokens:
        raise SourceError(
            f"{who} is asked to take {', '.join(map(repr, named))} once for a sequence; of models "
            f"of the library those with {PIXELS!r} and a token that stands for a picture do."
        )
    if grids.GRID in takes:
        return grids.taken(module, tokens, marker, layout)
    if layout is not None:
        raise SourceError(
            f"--axes names the axes of {PIXELS!r}, but {who} says by its config how large its "
            "pictures are. Leave --axes out."
        )
    faults = []
    for shape in _shapes(takes, config, folder):
        fault = _fault(module, tokens, marker, shape[1:])
        if not fault:
            if prefixes.TYPES in takes:
                return prefixes.taken(module, tokens, marker, shape)
            shapes: dict[str, Shape] = {TOKENS: (BATCH, TIME), PIXELS: shape}
            return Taken(
                shapes=shapes,
                sample=pictures_and_marks(shapes, tokens, marker),
                tokens=tokens,
                sizes={**EXAMPLE, MANY: EXAMPLE_PICTURES} if MANY in shape else dict(EXAMPLE),
                call=_spliced,
            )
        faults.append(fault)
    raise SourceError(
        f"{who} cannot be given one picture for each row as {PIXELS!r} alone ({faults[0]}). Leave "
        f"--condition {PIXELS} out to export its text alone."
    )


def _marker(module: nn.Module) -> int | None:
    """The token that stands for a part of a picture."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(module.config, name, None)
        if isinstance(value, int):
            return value
    return None


def _shapes(takes: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> Iterator[Shape]:
    """Shapes of pictures to try."""
    for shape in LAYOUTS[PIXELS](merged(config), folder):
        yield (BATCH, MANY, *shape[1:]) if TAKES_MANY in takes else shape


def _spliced(module: nn.Module, run: Run, given: Mapping[str, Tensor]) -> Any:
    with spliced_by_row(module):
        return run(**given)


def _fault(module: nn.Module, tokens: int, marker: int, shape: Shape) -> str:
    """Why the model does not take pictures of `shape` as is said above; empty where it does."""
    generator = torch.Generator().manual_seed(0)
    size = [EXAMPLE_PICTURES if dim == MANY else int(dim) for dim in shape]
    pictures = torch.randn((ROWS, *size), generator=generator)
    words = torch.randint(tokens, (ROWS, TEXT), generator=generator)
    words[words == marker] = (marker + 1) % tokens
    try:
        with torch.no_grad(), quiet():
            with spliced_by_row(module) as counts:
                module(**{TOKENS: words, PIXELS: pictures}, return_dict=True)
            if len(counts) != 1:
                return f"features are put in at {len(counts)} places"
            ids = torch.cat([words, torch.full((ROWS, counts[0]), marker), words], dim=1)
            inputs = {TOKENS: ids, PIXELS: pictures}
            wanted = module(**inputs, return_dict=True)[0]
            with spliced_by_row(module):
                found = module(**inputs, return_dict=True)[0]
    except Exception as error:  # noqa: BLE001  the library refuses in many ways
        return summary(error)
    differs = not bool((found - wanted).abs().max() <= AGREES * wanted.abs().max())
    return "the library puts their features in elsewhere" if differs else ""
