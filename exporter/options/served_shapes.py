"""Shapes that a bundle has to serve, as trtexec's users type them.

``--min-shapes input_ids:1x1 --opt-shapes input_ids:1x16 --max-shapes input_ids:1x512``, several
inputs separated by commas, or all three in one: ``--shapes input_ids:1x1:1x16:1x512``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from intaglio.errors import OptionError
from intaglio.state import BATCH, TIME

Dims = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Range:
    """The shapes of one input; what is left out follows trtexec: opt, else what is given."""

    minimum: Dims
    optimum: Dims
    maximum: Dims


@dataclass(frozen=True)
class ServedShapes:
    """The range of each input that was named."""

    ranges: Mapping[str, Range] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        *,
        minimum: str = "",
        optimum: str = "",
        maximum: str = "",
        shapes: Sequence[str] = (),
    ) -> Self:
        """Read the texts of the options above.

        Raises:
            OptionError: if one is malformed, names an input twice, or min <= opt <= max fails.
        """
        columns = [
            _column("--min-shapes", minimum),
            _column("--opt-shapes", optimum),
            _column("--max-shapes", maximum),
        ]
        for text in shapes:
            name, low, mid, high = _row(text)
            if any(name in column for column in columns):
                raise OptionError(f"--shapes {text}: the shapes of {name!r} are given twice.")
            for column, dims in zip(columns, (low, mid, high), strict=True):
                column[name] = dims
        names = dict.fromkeys(name for column in columns for name in column)
        return cls(
            {name: _range(name, *(column.get(name) for column in columns)) for name in names}
        )

    @classmethod
    def of(cls, given: Any) -> Self:
        """Shapes as a program gives them: by name, one shape or least, usual and largest.

        ``{"input_ids": (1, 16)}``, ``{"input_ids": [(1, 1), (1, 16), (1, 512)]}``, or
        ``{"input_ids": "1x1:1x16:1x512"}``; records, and what a recipe holds, are taken as well.

        Raises:
            OptionError: if it is of another form.
        """
        if isinstance(given, ServedShapes):
            return cls(given.ranges)
        if not isinstance(given, Mapping):
            raise OptionError(f"The shapes are {given!r}; give sizes by the names of inputs.")
        return cls({name: _of(name, entry) for name, entry in given.items()})

    def fixed_batch(self, inputs: Mapping[str, Sequence[int | str]]) -> int | None:
        """Return the batch if the shapes leave no choice of it, else None.

        Args:
            inputs: the shape of each input of the source, with symbols for its free dimensions.

        Raises:
            OptionError: if an input is unknown, or a shape does not fit it.
        """
        batches = set()
        for name, given in self.ranges.items():
            if name not in inputs:
                known = ", ".join(inputs)
                raise OptionError(f"The shapes name {name!r}; the source's inputs are: {known}.")
            for low, high, dim in _fit(name, given, inputs[name]):
                if dim == BATCH:
                    batches.add((low, high))
        if len(batches) > 1:
            raise OptionError("The shapes give different batches to different inputs.")
        return next((low for low, high in batches if low == high), None)

    def usual_tokens(self, inputs: Mapping[str, Sequence[int | str]]) -> int | None:
        """How many tokens all rows of a usual call have together; None where no shape says it.

        Args:
            inputs: the shape of each input of the source, with symbols for its free dimensions.
        """
        usual = {
            dim: size
            for name, given in self.ranges.items()
            for dim, size in zip(inputs.get(name, ()), given.optimum, strict=False)
        }
        sizes = [usual[symbol] for symbol in (BATCH, TIME) if symbol in usual]
        return math.prod(sizes) if sizes else None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Back from a recipe.

        Raises:
            OptionError: if an entry is not three ascending shapes.
        """
        names = ("minimum", "optimum", "maximum")
        for name, given in entry.items():
            if not isinstance(given, Mapping) or sorted(given) != sorted(names):
                raise OptionError(f"The shapes of {name!r} should be {', '.join(names)}.")
        return cls({n: _range(n, *(tuple(given[k]) for k in names)) for n, given in entry.items()})

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest's recipe."""
        return {
            name: {key: list(dims) for key, dims in asdict(given).items()}
            for name, given in self.ranges.items()
        }


def _of(name: str, entry: Any) -> Range:
    """The range of one input, from a text, from one shape or from three."""
    if isinstance(entry, Range):
        return entry
    if isinstance(entry, Mapping):
        return ServedShapes.from_json({name: entry}).ranges[name]
    if isinstance(entry, str):
        parts = entry.split(":")
        dims: list[Any] = [_dims(f"The shapes of {name!r}", part) for part in parts]
    else:
        dims = list(entry) if isinstance(entry, Sequence) else [entry]
        dims = [dims] if all(isinstance(each, int) for each in dims) else dims
    fine = len(dims) in (1, 3) and all(
        isinstance(shape, Sequence) and all(type(n) is int and n > 0 for n in shape)
        for shape in dims
    )
    if not fine:
        raise OptionError(
            f"The shapes of {name!r} are {entry!r}; give one shape, or least, usual and largest, "
            "as [(1, 1), (1, 16), (1, 512)]."
        )
    low, mid, high = (tuple(shape) for shape in (dims * 3)[:3])
    return _range(name, low, mid, high)


def _column(option: str, text: str) -> dict[str, Dims]:
    """Parse ``name:1x16,other:2x3``."""
    column: dict[str, Dims] = {}
    for entry in filter(None, text.split(",")):
        name, _, dims = entry.rpartition(":")
        if not name:
            raise OptionError(f"{option} {text}: {entry!r} should be NAME:DIMS, as input_ids:1x16.")
        if name in column:
            raise OptionError(f"{option} {text}: {name!r} is given twice.")
        column[name] = _dims(f"{option} {text}", dims)
    return column


def _row(text: str) -> tuple[str, Dims, Dims, Dims]:
    """Parse ``name:1x1:1x16:1x512``."""
    parts = text.rsplit(":", 3)
    if len(parts) != 4 or not parts[0]:
        raise OptionError(
            f"--shapes {text} should be NAME:MIN:OPT:MAX, as input_ids:1x1:1x16:1x512."
        )
    low, mid, high = (_dims(f"--shapes {text}", part) for part in parts[1:])
    return parts[0], low, mid, high


def _dims(where: str, text: str) -> Dims:
    parts = text.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise OptionError(f"{where}: {text!r} should be positive sizes, as 1x16.")
    return tuple(int(part) for part in parts)


def _range(name: str, low: Dims | None, mid: Dims | None, high: Dims | None) -> Range:
    given = [dims for dims in (low, mid, high) if dims is not None]
    low, high = low or mid or given[0], high or mid or given[-1]
    found = Range(minimum=low, optimum=mid or high, maximum=high)
    if len({len(dims) for dims in (low, found.optimum, high)}) > 1 or any(
        not a <= b <= c for a, b, c in zip(low, found.optimum, high, strict=False)
    ):
        texts = ", ".join("x".join(map(str, dims)) for dims in (low, found.optimum, high))
        raise OptionError(f"The shapes of {name!r} should ascend from min to opt to max: {texts}.")
    return found


def _fit(name: str, given: Range, shape: Sequence[int | str]) -> list[tuple[int, int, int | str]]:
    """Pair the bounds of each dimension with what the source says of it."""
    fits = len(given.minimum) == len(shape) and all(
        isinstance(dim, str) or low == high == dim
        for low, high, dim in zip(given.minimum, given.maximum, shape, strict=True)
    )
    if not fits:
        wanted = "x".join(map(str, shape))
        found = "x".join(map(str, given.maximum))
        raise OptionError(f"The shapes of {name!r} should be {wanted}, not {found}.")
    return list(zip(given.minimum, given.maximum, shape, strict=True))
