"""Vision-language models: a picture is given once for a sequence, and stands where its tokens do.

The library computes features of all pictures and writes them over the embeddings of the tokens that
stand for one (`Tensor.masked_scatter`), the k-th feature of a batch over its k-th such token.  Here
each row has a picture of its own, and the same is said for each row alone: of the tokens that stand
for a picture, the k-th of a row takes the k-th feature of the row's picture.  So a step needs no
more than how many there have been, and pictures are conditions.  Tokens beyond the features of the
picture keep their embeddings.  Before it is used, this is compared with the library's own way.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.axes import Sizes
from intaglio.exporter.sources.input_spec import Sampler
from intaglio.quiet import quiet, summary
from intaglio.state import BATCH, TIME

from .features import FEATURES, LAYOUTS, PIXELS, VALUES, merged
from .inputs import TOKENS, Taken

TYPES = ("token_type_ids", "mm_token_type_ids")
"""Where tokens of a picture see each other, or count in two axes, they are told by these."""
CHECK = "torch_compilable_check"  # that there are as many features as tokens for them
MAKER = "get_image_features"
ROWS, TEXT = 2, 5  # of what is compared
AGREES = 1e-4


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
    module: nn.Module, tokens: int, config: Mapping[str, Any], folder: Path, named: list[str]
) -> Taken:
    """What a vision-language model takes with a picture for each row.

    Args:
        module: of the library.
        tokens: how many it knows.
        config: of the directory.
        folder: the directory, which may say how pictures are prepared.
        named: the conditions that the user asks for.

    Raises:
        SourceError: if it takes no picture, needs more than one, or lets its tokens see each other.
    """
    who = type(module).__name__
    takes = inspect.signature(type(module).forward).parameters
    marker = _marker(module)
    if named != [PIXELS] or PIXELS not in takes or marker is None or marker >= tokens:
        raise SourceError(
            f"{who} is asked to take {', '.join(map(repr, named))} once for a sequence; of models "
            f"of the library those with {PIXELS!r} and a token that stands for a picture do."
        )
    types = [name for name in TYPES if name in takes]
    if types:
        raise SourceError(
            f"{who} tells the tokens of a picture apart by {types[0]!r}: they see each other, "
            "later ones too, or have positions of their own, which a step does not carry. Leave "
            f"--condition {PIXELS} out to export its text alone."
        )
    faults = []
    for shape in LAYOUTS[PIXELS](merged(config), folder):
        fault = _fault(module, tokens, marker, shape[1:])
        if not fault:
            shapes: dict[str, tuple[int | str, ...]] = {TOKENS: (BATCH, TIME), PIXELS: shape}
            return Taken(shapes=shapes, sample=_sampler(shapes, tokens, marker), tokens=tokens)
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


def _fault(module: nn.Module, tokens: int, marker: int, shape: tuple[Any, ...]) -> str:
    """Why the model does not take pictures of `shape` as is said above; empty where it does."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn((ROWS, *shape), generator=generator)
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


class _Lists(type):
    """Lists that hold the rows of a batch together, where the library takes them apart.

    It joins them again at once, but a loop over rows would fix how many there are.
    """

    def __call__(cls, values: Any = ()) -> list[Any]:
        rows = isinstance(values, Tensor) and values.ndim > 2
        return [values] if rows else [*values]

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, list)


class _List(metaclass=_Lists):
    pass


@contextlib.contextmanager
def spliced_by_row(module: nn.Module) -> Iterator[list[int]]:
    """Let the library put the features of each row's picture into that row.

    Yields:
        How many features a picture has, at each place where they are put in.
    """
    counts: list[int] = []

    def by_row(embedded: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        rows = features.to(embedded.dtype)
        if rows.ndim != embedded.ndim:
            rows = rows.reshape(embedded.shape[0], -1, embedded.shape[-1])
        counts.append(rows.shape[1])
        marked = mask.expand(embedded.shape)[..., 0]
        place = marked.to(torch.int64).cumsum(1) - 1
        inside = marked & (place < rows.shape[1])
        place = place.clamp(0, rows.shape[1] - 1)[..., None]
        found = rows.gather(1, place.expand(-1, -1, rows.shape[2]))
        return torch.where(inside[..., None], found, embedded)

    files = [sys.modules[name] for name in {type(part).__module__ for part in module.modules()}]
    checks = [(file, getattr(file, CHECK)) for file in files if hasattr(file, CHECK)]
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    makers = [sys.modules[kind.__module__] for kind in kinds if MAKER in vars(kind)]
    original = Tensor.masked_scatter
    Tensor.masked_scatter = by_row  # type: ignore[method-assign, assignment]
    for file, _ in checks:
        setattr(file, CHECK, lambda *_, **__: None)
    for file in makers:
        vars(file)["list"] = _List
    try:
        yield counts
    finally:
        Tensor.masked_scatter = original  # type: ignore[method-assign]
        for file, check in checks:
            setattr(file, CHECK, check)
        for file in makers:
            vars(file).pop("list", None)


def _sampler(shapes: Mapping[str, tuple[int | str, ...]], tokens: int, marker: int) -> Sampler:
    """Draw pictures, and tokens of which some stand for a part of one."""

    def sample(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        size = {
            name: [dim if isinstance(dim, int) else sizes[dim] for dim in shape]
            for name, shape in shapes.items()
        }
        ids = torch.randint(tokens, size[TOKENS], generator=generator)
        marked = torch.rand(size[TOKENS], generator=generator) < 0.5
        return {
            TOKENS: torch.where(marked, marker, ids),
            PIXELS: torch.randn(size[PIXELS], generator=generator),
        }

    return sample
