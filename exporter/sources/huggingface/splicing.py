"""Put the features of each row's picture where the row's tokens stand that mean one.

The library computes features of all pictures and writes them over the embeddings of the tokens that
stand for one (`Tensor.masked_scatter`), the k-th feature of a batch over its k-th such token.  Here
each row has a picture of its own, and the same is said for each row alone: of the tokens that stand
for a picture, the k-th of a row takes the k-th feature of the row's picture.  So a step needs no
more than how many there have been, and pictures are conditions.  Tokens beyond the features of the
picture keep their embeddings.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from intaglio.exporter.sources.axes import Sizes
from intaglio.exporter.sources.input_spec import Sampler

from .features import PIXELS
from .inputs import TOKENS

CHECK = "torch_compilable_check"  # that there are as many features as tokens for them
MAKER = "get_image_features"
RANK_OF_SEVERAL = 5  # [batch, pictures, channels, height, width]
ROWS, TEXT = 2, 5  # of what is compared with the library's own
AGREES = 1e-4


def with_marks(size: Sequence[int], tokens: int, marker: int, generator: torch.Generator) -> Tensor:
    """Draw tokens of which about half stand for a part of a picture."""
    ids = torch.randint(tokens, tuple(size), generator=generator)
    marked = torch.rand(tuple(size), generator=generator) < 0.5
    return torch.where(marked, marker, ids)


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
    per_row: list[int] = []

    def by_row(embedded: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        rows = features.to(embedded.dtype)
        if rows.ndim != embedded.ndim:
            many = per_row[0] if per_row else -1
            rows = rows.reshape(embedded.shape[0], many, embedded.shape[-1])
        counts.append(rows.shape[1])
        marked = mask.expand(embedded.shape)[..., 0]
        place = marked.to(torch.int64).cumsum(1) - 1
        inside = marked & (place < rows.shape[1])
        place = place.clamp(0, rows.shape[1] - 1)[..., None]
        found = rows.gather(1, place.expand(-1, -1, rows.shape[2]))
        return torch.where(inside[..., None], found, embedded)

    parts = list(module.modules())
    files = [sys.modules[name] for name in {type(part).__module__ for part in parts}]
    checks = [(file, getattr(file, CHECK)) for file in files if hasattr(file, CHECK)]
    kinds = {kind for part in parts for kind in type(part).__mro__ if MAKER in vars(kind)}
    makers = [(kind, vars(kind)[MAKER]) for kind in kinds]
    original = Tensor.masked_scatter
    Tensor.masked_scatter = by_row  # type: ignore[method-assign, assignment]
    for file, _ in checks:
        setattr(file, CHECK, lambda *_, **__: None)
    for kind, maker in makers:
        setattr(kind, MAKER, _all_of(maker, per_row))
        vars(sys.modules[kind.__module__])["list"] = _List
    try:
        yield counts
    finally:
        Tensor.masked_scatter = original  # type: ignore[method-assign]
        for file, check in checks:
            setattr(file, CHECK, check)
        for kind, maker in makers:
            setattr(kind, MAKER, maker)
            vars(sys.modules[kind.__module__]).pop("list", None)


def _all_of(maker: Callable[..., Any], per_row: list[int]) -> Callable[..., Any]:
    """A function that makes features, without leaving pictures out that are all zeros.

    Where a row has several pictures, how many features it has is noted in `per_row`.
    """

    @functools.wraps(maker)
    def make(*args: Any, **options: Any) -> Any:
        pictures = next(x for x in (*args, *options.values()) if isinstance(x, Tensor))
        if pictures.ndim != RANK_OF_SEVERAL:
            return maker(*args, **options)
        with _Unpadded(pictures.shape[1], per_row):
            return maker(*args, **options)

    return make


class _All:
    """How many pictures a row has, where that is not asked for: all."""

    def item(self) -> "_All":
        """As a number of a tensor is asked for, while a module is captured."""
        return self


class _Unpadded(TorchFunctionMode):
    """Keep pictures that are all zeros, of which the library takes as many as a row lacks.

    Those stand behind the others of their row, so that no token takes a feature of one; which they
    are depends on their contents, and how many features there are would as well.
    """

    def __init__(self, pictures: int, per_row: list[int]) -> None:
        """Take how many pictures a row has; how many features it has goes into `per_row`."""
        super().__init__()
        self._pictures, self._per_row = pictures, per_row

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and _chooses(args[1]):
            return args[0]
        if func in (Tensor.tolist, Tensor.unbind) and args[0].ndim == 1:
            return [_All()]
        if func is Tensor.split and isinstance(args[1], list) and isinstance(args[1][0], _All):
            self._per_row[:] = [self._pictures * args[0].shape[1]]
            return [args[0]]
        return func(*args, **(kwargs or {}))


def _chooses(index: Any) -> bool:
    """Whether an index is a choice among the pictures of a batch."""
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.ndim == 1


def pictures_and_marks(
    shapes: Mapping[str, tuple[int | str, ...]], tokens: int, marker: int
) -> Sampler:
    """Draw pictures, and tokens of which some stand for a part of one."""

    def sample(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        size = {
            name: [dim if isinstance(dim, int) else sizes[dim] for dim in shape]
            for name, shape in shapes.items()
        }
        return {
            TOKENS: with_marks(size[TOKENS], tokens, marker, generator),
            PIXELS: torch.randn(size[PIXELS], generator=generator),
        }

    return sample
