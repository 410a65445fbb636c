"""Pictures as rows of the one input that a vision model takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.exporter.options.pixels import LIKE, Pixels
from intaglio.passes.calibration import HELD_OUT
from intaglio.runtime.picture_file import MODES, is_grey, is_picture, open_picture

from .source import Source

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = 16  # pictures in memory at once
TOLD = 3
PROCESSOR = "preprocessor_config.json"

Array = npt.NDArray[Any]


def pictures_below(folder: Path) -> list[Path]:
    """The pictures of a folder, those in folders of classes too, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if is_picture(path) and path.is_file())


@dataclass(frozen=True, kw_only=True)
class PictureInput:
    """An input [batch, channels, height, width], or with channels last, and what pixels become.

    `rows` is the batch where it is fixed.
    """

    name: str
    channels: int
    last: bool
    height: int
    width: int
    dtype: np.dtype[Any]
    rows: int | None
    pixels: Pixels

    @classmethod
    def of(cls, source: Source, path: Path) -> Self:
        """The input of `source` that the pictures at `path` are for.

        Raises:
            InputError: if it takes something else than one picture a row.
            OptionError: if what was said of pixels does not fit.
        """
        needed = {n: x for n, x in source.inputs.items() if n not in source.defaults}
        found = cls._of(source, next(iter(needed))) if len(needed) == 1 else None
        if found is None:
            shapes = ", ".join(f"{name!r} {list(x.shape)}" for name, x in needed.items())
            raise InputError(
                f"{path} holds pictures; the model takes {shapes or 'nothing'}, which is not one "
                "picture a row. Give arrays as .npz."
            )
        return found

    @classmethod
    def named(cls, source: Source, name: str, path: Path) -> Self:
        """The input `name`, beside others, that the picture at `path` is for.

        Raises:
            InputError: if it is none or takes no pictures, or no one says what pixels become: there
                is no note that would tell it.
            OptionError: if what was said of pixels does not fit.
        """
        found = cls._of(source, name) if name in source.inputs else None
        if found is None:
            sizes = enumerate(source.inputs[name].shape) if name in source.inputs else ()
            shape = ", ".join(str(source.dynamic.get(name, {}).get(n, size)) for n, size in sizes)
            raise InputError(
                f"{path} is a picture; the model takes {f'[{shape}]' if shape else 'nothing'} as "
                f"{name!r}, which is not one picture a row. Give an array as .npy."
            )
        if np.issubdtype(found.dtype, np.floating) and _said(source) is None:
            raise InputError(
                f"What the pixels of {path} become for {name!r} is not said. Say it: {LIKE}; "
                "or give an array as .npy."
            )
        return found

    @classmethod
    def _of(cls, source: Source, name: str) -> Self | None:
        """The input `name`, None where it takes something else than one picture a row."""
        example, free = source.inputs[name], source.dynamic.get(name, {})
        fixed = [n for n in (1, 3) if n not in free and n < example.ndim]
        axis = next((n for n in fixed if example.shape[n] in MODES), None)
        if example.ndim != 4 or axis is None:
            return None
        shape = _given_shape(source, name) or list(example.shape)
        height, width = shape[2:] if axis == 1 else shape[1:3]
        found = cls(
            name=name, channels=shape[axis], last=axis == 3, height=height, width=width,
            dtype=example.numpy().dtype, rows=None if 0 in free else shape[0],
            pixels=Pixels.read(_said(source)),
        )  # fmt: skip
        found._require_channels()
        return found

    def _require_channels(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self.pixels, name)
            if len(values) not in (1, self.channels):
                raise InputError(
                    f"The {name} of pixels has {len(values)} numbers; the input {self.name!r} has "
                    f"{self.channels} channels. Give one for all, as --pixels '{name}=[0.5]', or "
                    "one for each."
                )

    def groups(self, paths: Sequence[Path], where: Path) -> list[tuple[Path, ...]]:
        """Pictures that are read together, in so many groups that one can be held out.

        Raises:
            InputError: if a fixed batch takes more than there are.
        """
        step = self.rows or max(1, min(ROWS, len(paths) // HELD_OUT))
        found = [tuple(paths[first : first + step]) for first in range(0, len(paths), step)]
        whole = [group for group in found if self.rows in (None, len(group))]
        if not whole:
            raise InputError(
                f"{where} has {len(paths)} pictures; the model takes {self.rows} at once."
            )
        return whole

    def read(self, paths: Sequence[Path]) -> dict[str, Array]:
        """The rows of some pictures, by the name of the input.

        Raises:
            InputError: if one cannot be read.
        """
        rows = [self._values(self._cut(open_picture(path, self.channels))) for path in paths]
        return {self.name: np.stack(rows)}

    def notes(self, groups: Sequence[Sequence[Path]]) -> tuple[str, ...]:
        """What was done to all or some of the pictures."""
        paths = [path for group in groups for path in group]
        size = f"{self.height} x {self.width}"
        how = f"{len(paths)} pictures are given as {self.name!r}, their middle at {size}"
        if np.issubdtype(self.dtype, np.floating):
            mean, std = (list(x) for x in (self.pixels.mean, self.pixels.std))
            how += f", values (pixel / 255 - {mean}) / {std}"
            if self.pixels == Pixels():
                how += ": where the model was trained on others, say so, as by --pixels imagenet"
        grey = [str(path) for path in paths if is_grey(path)] if self.channels > 1 else []
        more = ", ..." if len(grey) > TOLD else ""
        told = f"{len(grey)} of them are grey: {', '.join(grey[:TOLD])}{more}." if grey else ""
        return (f"{how}.", *([told] if told else []))

    def _cut(self, image: "Image") -> "Image":
        """The middle of a picture in the size of the input: scaled to cover it, then cut."""
        from PIL.Image import Resampling

        scale = max(self.height / image.height, self.width / image.width) / self.pixels.crop_pct
        wanted = (max(self.width, round(image.width * scale)),
                  max(self.height, round(image.height * scale)))  # fmt: skip
        if wanted != image.size:
            image = image.resize(wanted, Resampling[self.pixels.interpolation.upper()])
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))

    def _values(self, image: "Image") -> Array:
        values = np.asarray(image).reshape(self.height, self.width, self.channels)
        if np.issubdtype(self.dtype, np.floating):
            mean, std = (np.asarray(x, np.float64) for x in (self.pixels.mean, self.pixels.std))
            values = (values / 255 - mean) / std
        values = values if self.last else values.transpose(2, 0, 1)
        return values.astype(self.dtype)


def _given_shape(source: Source, name: str) -> list[int] | None:
    """The shape of the user's own example: those that are drawn have sizes that differ by axis."""
    examples = None if source.asked is None else source.asked.inputs
    words = examples.get(name) if isinstance(examples, Mapping) else None
    return words.get("shape") if isinstance(words, Mapping) else None


def _said(source: Source) -> str | Path | Mapping[str, Any] | None:
    """What pixels become: as the user says, else as the processor beside a model says."""
    asked = None if source.asked is None else source.asked.pixels
    beside = source.path / PROCESSOR
    return beside if asked is None and beside.is_file() else asked
