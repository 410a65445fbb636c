"""Pictures as patches with the sizes of a grid, and tokens that count in several axes (Qwen2-VL).

The library takes the patches of all pictures of a batch in one list, and computes from the grids
which belong together: in Python, which fixes how many pictures there are.  Here each row has one
picture, all of one grid.  What the library computes from a grid alone (functions of `grid_thw`) is
computed once, and where it cuts or orders the list by that, each row is cut or ordered alike.

Tokens of a picture stand in one run.  They count in time, height and width from the number of
tokens before them, those behind it from beyond the picture's largest axis.  By how much is read off
the library (`get_rope_index`), so that positions follow from how many tokens of the picture there
have been, which a step carries.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from intaglio.errors import SourceError
from intaglio.quiet import quiet, summary
from intaglio.state import BATCH, TIME

from .features import PIXELS, USUAL_PICTURE
from .inputs import TOKENS, Run, Taken
from .splicing import AGREES, MAKER, ROWS, TEXT, pictures_and_marks, spliced_by_row

GRID, POSITIONS, TYPES = "image_grid_thw", "position_ids", "mm_token_type_ids"
CHANNELS = ("in_channels", "in_chans", "num_channels")  # as configs of the library call them
OF_GRID = "grid_thw"  # what functions of a grid alone take first

Shape = tuple[int | str, ...]


def taken(module: Any, tokens: int, marker: int, layout: Sequence[int | str] | None) -> Taken:
    """What the model takes with a picture of one grid for each row.

    Args:
        module: of the library.
        tokens: how many it knows.
        marker: the token that stands for a part of a picture.
        layout: the axes of the pictures [batch, height, width, numbers of a patch], where given.

    Raises:
        SourceError: if `layout` is none of a grid, or the model does not count or see as is said
            above.
    """
    who = type(module).__name__
    try:
        shape = _shape(module, layout)
    except AttributeError as error:
        raise SourceError(
            f"The config of {who} does not say how large the patches of its pictures are "
            f"({summary(error)}). Leave --condition {PIXELS} out to export its text alone."
        ) from error
    try:
        reads = _Grid(module, marker, shape)
        fault = reads.fault(tokens)
    except Exception as error:  # noqa: BLE001  the library refuses in many ways
        fault = summary(error)
    if fault:
        raise SourceError(
            f"{who} cannot be given a picture of {shape[1]} by {shape[2]} patches for each row "
            f"({fault}). Leave --condition {PIXELS} out to export its text alone."
        )
    shapes: dict[str, Shape] = {TOKENS: (BATCH, TIME), PIXELS: shape}
    said = (
        f"Each picture has {shape[1]} by {shape[2]} patches. For others: --axes "
        f"'{PIXELS}:{BATCH}xHEIGHTxWIDTHx{shape[3]}', with numbers of patches."
    )
    return Taken(
        shapes=shapes,
        sample=pictures_and_marks(shapes, tokens, marker),
        tokens=tokens,
        call=reads.call,
        notes=() if layout is not None else (said,),
    )


def _shape(module: Any, layout: Sequence[int | str] | None) -> tuple[str, int, int, int]:
    """[batch, height, width, numbers]: patches of a grid, as the library's processor has them."""
    config: Any = module.config.vision_config
    channels = next((getattr(config, name) for name in CHANNELS if hasattr(config, name)), 3)
    merge, patch = config.spatial_merge_size, config.patch_size
    numbers = channels * getattr(config, "temporal_patch_size", 1) * patch**2
    usual = max(USUAL_PICTURE // patch // merge, 1) * merge
    if layout is None:
        return (BATCH, usual, usual, numbers)
    sizes = [size for size in layout[1:3] if isinstance(size, int) and size % merge == 0]
    if len(layout) != 4 or layout[0] != BATCH or layout[3] != numbers or len(sizes) != 2:
        raise SourceError(
            f"--axes {PIXELS}:{'x'.join(map(str, layout))}: {type(module).__name__} takes "
            f"{BATCH}xHEIGHTxWIDTHx{numbers}, height and width in patches, numbers that {merge} "
            "divides."
        )
    return (BATCH, sizes[0], sizes[1], numbers)


class _Grid:
    """How a model reads pictures of one grid."""

    def __init__(self, module: Any, marker: int, shape: tuple[str, int, int, int]) -> None:
        self.marker, self.shape = marker, shape
        self.grid = torch.tensor([[1, shape[1], shape[2]]])
        self._sizes = self.grid.numpy()  # no tensor, so that it stays what it is in a capture
        self._module = module
        self._known: dict[str, Any] = {}
        self._rows = ROWS  # of the batch that is being looked at
        merge = module.config.vision_config.spatial_merge_size
        count = shape[1] * shape[2] // merge**2
        # Where the tokens of a picture stand in each axis from its first on, and what is behind.
        ids = torch.tensor([[marker] * count + [(marker + 1) % (marker + 2)]])
        found = module.model.get_rope_index(ids, **{TYPES: (ids == marker).int(), GRID: self.grid})[
            0
        ]
        self.count, self.places, self.behind = count, found[:, 0, :-1], int(found[0, 0, -1])

    def positions(self, ids: Tensor) -> Tensor:
        """Positions [axes, batch, time] of tokens."""
        marked = ids == self.marker
        seen = marked.long().cumsum(1)
        inside = marked & (seen <= self.count)
        before, seen = (seen - 1).clamp(0, self.count - 1), seen.clamp(max=self.count)
        place = torch.arange(ids.shape[1])[None]
        text = place - seen + self.behind * (seen > 0).long()
        return torch.stack(
            [torch.where(inside, place - before + axis[before], text) for axis in self.places]
        )

    def call(self, module: nn.Module, run: Run, given: Mapping[str, Tensor]) -> Any:
        """Run the model with the picture of each row by itself."""
        ids, patches = given[TOKENS], given[PIXELS].flatten(1, 2)
        with spliced_by_row(module), self._by_row(module):
            inputs = {TOKENS: ids, PIXELS: patches, GRID: self._sizes}
            return run(**inputs, **{POSITIONS: self.positions(ids)})

    def fault(self, tokens: int) -> str:
        """What differs from the library's own; empty where nothing does."""
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randn((ROWS, *self.shape[1:]), generator=generator)
        words = torch.randint(tokens, (ROWS, TEXT), generator=generator)
        words[words == self.marker] = (self.marker + 1) % tokens
        ids = torch.cat([words, words.new_full((ROWS, self.count), self.marker), words], 1)

        def run(**inputs: Any) -> Any:
            return self._module(**inputs, return_dict=True, use_cache=False)

        with torch.no_grad(), quiet():
            types = (ids == self.marker).int()
            flat = {PIXELS: pictures.flatten(0, 2), GRID: self.grid.expand(ROWS, -1)}
            wanted = run(**{TOKENS: ids, TYPES: types}, **flat)[0]
            found = self.call(self._module, run, {TOKENS: ids, PIXELS: pictures})[0]
        equal = bool((found - wanted).abs().max() <= AGREES * wanted.abs().max())
        return "" if equal else "the library computes something else of rows with a picture each"

    @contextlib.contextmanager
    def _by_row(self, module: nn.Module) -> Iterator[None]:
        """Let features be made of each row alone, and what follows from the grid be known."""
        kinds = {kind for part in module.modules() for kind in type(part).__mro__}
        makers = [(kind, vars(kind)[MAKER]) for kind in kinds if MAKER in vars(kind)]
        files = [sys.modules[name] for name in {type(part).__module__ for part in module.modules()}]
        of_grid = [
            (file, name, function)
            for file in files
            for name, function in vars(file).items()
            if inspect.isfunction(function)
            and next(iter(inspect.signature(function).parameters), None) == OF_GRID
        ]
        for kind, maker in makers:
            setattr(kind, MAKER, self._mapped(maker))
        for file, name, function in of_grid:
            setattr(file, name, self._remembered(function))
        try:
            yield
        finally:
            for kind, maker in makers:
                setattr(kind, MAKER, maker)
            for file, name, function in of_grid:
                setattr(file, name, function)

    def _remembered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What a function of grids gives where each row has the one that there is."""

        def known(_grid: Any, *args: Any, **options: Any) -> Any:
            name = function.__name__
            if name not in self._known:
                found = function(self.grid, *args, **options)
                parts = found if isinstance(found, tuple) else (found,)
                self._known[name] = tuple(map(_plain, parts)), isinstance(found, tuple)
            parts, several = self._known[name]
            made = tuple(map(self._of_all_rows, parts))
            return made if several else made[0]

        return known

    def _of_all_rows(self, found: Any) -> Any:
        """What is told of every patch, for the patches of all rows; an index is of each row."""
        if not isinstance(found, Tensor) or found.ndim == 1:
            return found
        return found.expand(self._rows, *found.shape).flatten(0, 1)

    def _mapped(self, maker: Callable[..., Any]) -> Callable[..., Any]:
        """A function that makes features of patches [batch, patches of a row, numbers]."""

        def make(module: nn.Module, patches: Tensor, grid: Any, **options: Any) -> Any:
            if patches.ndim == 2:
                return maker(module, patches, grid, **options)
            self._rows = patches.shape[0]
            with _OneGrid(self._rows):
                return maker(module, patches.flatten(0, 1), grid, **options)

        return make


def _plain(found: Any) -> Any:
    """Lengths, which the library has in 32 bits and reads in Python, as no tensor."""
    lengths = isinstance(found, Tensor) and found.ndim == 1 and found.dtype == torch.int32
    return found.numpy() if lengths else found


class _OneGrid(TorchFunctionMode):
    """Cut and order what lies along the patches of all rows within each row."""

    def __init__(self, rows: int) -> None:
        """Take how many rows there are."""
        super().__init__()
        self._rows = rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in (Tensor.split, torch.split) and isinstance(args[1], list):
            return self._cut(*args, **options)
        if func is Tensor.__getitem__:
            index = args[1][0] if isinstance(args[1], tuple) else args[1]
            if isinstance(index, Tensor) and index.ndim == 1 and index.dtype == torch.int64:
                return self._apart(args[0], 0)[:, index].flatten(0, 1)
        if func in (F.conv2d, F.conv3d) and args[0].shape[1:] == args[1].shape[1:]:
            patches, weight, *bias = args  # of their own size: a matrix product
            found = F.linear(patches.flatten(1), weight.flatten(1), *bias[:1])
            return found.reshape(*found.shape, *[1] * (weight.ndim - 2))
        return func(*args, **options)

    def _cut(self, x: Tensor, sizes: list[int], dim: int = 0) -> list[Tensor]:
        """Parts of every row, rows first."""
        rows = self._apart(x, dim).movedim(dim, 0)
        rows = rows.flatten(0, 1) if dim else rows
        starts = [sum(sizes[:part]) for part in range(len(sizes))]
        axis = dim or 1
        return [rows.narrow(axis, *part) for part in zip(starts, sizes, strict=True)]

    def _apart(self, x: Tensor, dim: int) -> Tensor:
        """`x` with an axis of rows before the axis `dim`, which is of one row then."""
        return x.reshape(
            *x.shape[:dim], self._rows, x.shape[dim] // self._rows, *x.shape[dim + 1 :]
        )
