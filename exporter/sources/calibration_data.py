"""Calibration data as the user has it: arrays, text, pictures or a folder of them, in batches.

An ``.npz`` file holds an array for each input, by its name, [batch, time, ...], and `lengths`
[batch] where rows are padded at their end; where the source has several graphs, a file may hold
what all of them take.  Text is cut into rows of `LENGTH` tokens: bytes where
the vocabulary has 256 entries, else those of the source's tokenizer.  A picture is a row of the
one input that a vision model takes (`picture_data.py`).  Files are read when their rows are asked
for, and once before, to refuse what is wrong with them.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from torch import nn

from intaglio.errors import InputError
from intaglio.passes.calibration import HELD_OUT, Batch, Calibration
from intaglio.runtime.arrays import read_npz
from intaglio.runtime.picture_file import is_picture
from intaglio.runtime.tokenizer_process import Tokenizer
from intaglio.state import BATCH, TIME

from .picture_data import PictureInput, pictures_below
from .source import Source
from .tokenizer_files import TOKENIZER

LENGTH = 512  # tokens of a row of text
BATCH_TOKENS = 2048
LENGTHS = "lengths"
BYTES = 256

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def read_calibration(
    data: str | Path | Arrays, source: Source, max_context: int | None = None
) -> Calibration:
    """Batches of what `data` holds, for the inputs of `source`.

    Args:
        data: a file ``.npz`` or ``.txt``, a picture, a folder of such files, or arrays by name.
        source: whose inputs they are.
        max_context: the longest row that the source takes.

    Raises:
        InputError: data that cannot be read, is empty, has NaN, or does not fit the inputs.
    """
    reader = _Reader(source, max_context)
    if isinstance(data, Mapping):
        arrays = reader.check({n: np.asarray(x) for n, x in data.items()}, "the calibration data")
        parts = _batches((), reader.size(arrays))
        return Calibration(batches=_Rows(parts, reader, arrays), sha256=data_hash(arrays))
    files = _files(Path(data))
    pictures = [path for path in files if is_picture(path)]
    together = reader.together(pictures, Path(data)) if pictures else []
    parts = []
    for group in (*((path,) for path in files if path not in pictures), *together):
        parts += _batches(group, reader.size(reader.read(group)))
    notes = reader.pictures.notes(together) if reader.pictures else ()
    return Calibration(batches=_Rows(parts, reader, None), sha256=data_hash(data), notes=notes)


def data_hash(data: str | Path | Arrays) -> str:
    """SHA-256 of data, without a look at what it is data of.

    Raises:
        InputError: if there is none at a path, or a file of it is no ``.npz`` or cannot be read.
    """
    digest = hashlib.sha256()
    if isinstance(data, Mapping):
        for name, array in sorted((n, np.asarray(x)) for n, x in data.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()
    for path in _files(Path(data)):
        if path.suffix == ".npz" and not zipfile.is_zipfile(path):
            raise InputError(
                f"The calibration data {path} cannot be read as arrays by name: it is no file of "
                "numpy.savez."
            )
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Part:
    """Rows `first` to `end` of a file or of pictures, or without any of the arrays given."""

    files: tuple[Path, ...]
    first: int
    end: int


def _batches(files: tuple[Path, ...], size: tuple[int, int]) -> list[_Part]:
    """Cut rows into batches, so many that one can be held out."""
    rows, steps = size
    step = max(1, min(BATCH_TOKENS // max(steps, 1), rows // HELD_OUT))
    return [_Part(files, first, min(first + step, rows)) for first in range(0, rows, step)]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".npz", ".txt") and p.is_file())
        found += pictures_below(path)
        if not found:
            raise InputError(f"{path} has no .npz, no .txt and no pictures to calibrate with.")
        return found
    known = path.suffix in (".npz", ".txt") or is_picture(path)
    if not known or not path.is_file():
        what = "is no .npz, no .txt and no picture" if path.exists() else "does not exist"
        raise InputError(
            f"The calibration data {path} {what}: give arrays named like the model's inputs as "
            ".npz, text as .txt, pictures, or a folder of these."
        )
    return [path]


class _Rows(Sequence[Batch]):
    """Batches that are read when they are asked for; the last file stays in memory."""

    def __init__(self, parts: Sequence[_Part], reader: "_Reader", arrays: Arrays | None) -> None:
        self._parts = parts
        self._reader = reader
        self._arrays = arrays
        self._files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        """Read one batch, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part = self._parts[index]
        if self._arrays is None or part.files != self._files:
            self._arrays, self._files = self._reader.read(part.files), part.files
        return self._reader.batch(self._arrays, part.first, part.end)


class _Reader:
    """Reads files as the inputs of a source."""

    def __init__(self, source: Source, max_context: int | None) -> None:
        self._source = source
        self._examples = {n: x.numpy() for n, x in source.inputs.items()}
        self._needed = self._examples.keys() - self._source.defaults.keys()
        self._limit = max_context
        self.pictures: PictureInput | None = None

    def together(self, pictures: Sequence[Path], where: Path) -> list[tuple[Path, ...]]:
        """Pictures in groups that are read at once; those to be read are of this input from now on.

        Raises:
            InputError: if no input takes pictures, or its fixed batch more than there are.
        """
        self.pictures = PictureInput.of(self._source, where)
        return self.pictures.groups(pictures, where)

    def read(self, files: Sequence[Path]) -> Arrays:
        """The arrays of a file, or of some pictures.

        Raises:
            InputError: it cannot be read, or does not fit.
        """
        if self.pictures is not None and is_picture(files[0]):
            return self.check(self.pictures.read(files), str(files[0]))
        (path,) = files
        if path.suffix == ".txt":
            return self._text(path)
        try:
            arrays = read_npz(path)
        except InputError as error:
            raise InputError(f"The calibration data: {error}") from error
        return self.check(arrays, str(path))

    def size(self, arrays: Arrays) -> tuple[int, int]:
        """Rows and steps of arrays that were checked."""
        found = self._sizes(arrays)
        return found[BATCH], found[TIME]

    def _sizes(self, arrays: Arrays) -> dict[str, int]:
        """The size of each free axis; one row of one step where there is no such axis."""
        found = {BATCH: 1, TIME: 1}
        for name in self._examples.keys() & arrays.keys():
            axes = self._source.dynamic[name]
            found |= {symbol: arrays[name].shape[axis] for axis, symbol in axes.items()}
        return found

    def batch(self, arrays: Arrays, first: int, end: int) -> Batch:
        """Some rows of arrays that were checked."""
        rows = range(first, end)
        inputs = {}
        for name, axes in self._source.dynamic.items():
            along = next((axis for axis, symbol in axes.items() if symbol == BATCH), None)
            inputs[name] = arrays[name] if along is None else arrays[name].take(rows, along)
        lengths = arrays[LENGTHS][first:end] if LENGTHS in arrays else None
        return Batch(inputs=inputs, rows=end - first, steps=self.size(arrays)[1], lengths=lengths)

    def check(self, arrays: Arrays, where: str) -> Arrays:
        """The arrays in the dtypes of the inputs, once they are known to fit.

        Raises:
            InputError: a name, a shape, a dtype or a value that does not.
        """
        given = arrays.keys() - {LENGTHS} - (self._source.beside or set())
        if not self._needed <= given <= self._examples.keys():
            raise InputError(
                f"{where} has {_list(given)}; the model takes {_list(self._examples)}. Name the "
                "arrays like the model's inputs."
            )
        checked = {name: self._fit(name, arrays[name], where) for name in given}
        rows, steps = self.size(checked)
        if not rows or not steps:
            raise InputError(f"{where} is empty: it has {rows} rows of {steps} steps.")
        self._agree(checked, steps, where)
        checked |= self._left_out(checked)
        stepped = TIME in self._source.symbols or self._source.beside is None
        if LENGTHS in arrays and stepped:
            lengths = arrays[LENGTHS]
            whole = np.issubdtype(lengths.dtype, np.integer) and lengths.shape == (rows,)
            if not whole or lengths.min() < 1 or lengths.max() > steps:
                raise InputError(f"{where}: lengths should be {rows} integers from 1 to {steps}.")
            checked[LENGTHS] = lengths.astype(np.int64)
        return checked

    def _fit(self, name: str, array: Array, where: str) -> Array:
        example, axes = self._examples[name], self._source.dynamic[name]
        wanted = [axes.get(axis, size) for axis, size in enumerate(example.shape)]
        shape_fits = array.ndim == example.ndim and all(
            axis in axes or n == example.shape[axis] for axis, n in enumerate(array.shape)
        )
        kinds = [np.issubdtype(x.dtype, np.floating) for x in (array, example)]
        if not shape_fits or kinds[0] != kinds[1] or array.dtype.kind not in "fiub":
            raise InputError(
                f"{where} has {name!r} as {array.dtype} {list(array.shape)}; the model takes "
                f"{example.dtype} [{', '.join(map(str, wanted))}]."
            )
        if kinds[0] and not np.isfinite(array).all():
            raise InputError(f"{where} has NaN or infinity in {name!r}. Take these rows out.")
        vocabulary = self._below(name)
        if array.dtype.kind in "iu" and vocabulary and array.ndim == 2 and array.size:
            least, most = int(array.min()), int(array.max())
            if least < 0 or most >= vocabulary:
                raise InputError(
                    f"{where} has token ids from {least} to {most} in {name!r}; the vocabulary "
                    f"has {vocabulary} entries."
                )
        return array.astype(example.dtype)

    def _below(self, name: str) -> int | None:
        """Entries of the table that the values of an input pick rows of, as far as that is known.

        Of several inputs that could be token ids, not each goes to the first table.
        """
        bound = self._source.bounds.get(name)
        if bound is not None:
            return bound if isinstance(bound, int) else None
        ids = [n for n, x in self._examples.items() if x.dtype.kind in "iu" and x.ndim == 2]
        return _vocabulary(self._source) if ids == [name] else None

    def _agree(self, arrays: Arrays, steps: int, where: str) -> None:
        sizes = self._sizes(arrays)
        for name in arrays:
            for axis, symbol in self._source.dynamic[name].items():
                if arrays[name].shape[axis] != sizes[symbol]:
                    raise InputError(
                        f"{where}: the arrays have different numbers of rows or steps; "
                        f"{name!r} is {list(arrays[name].shape)}."
                    )
        if self._limit is not None and steps > self._limit:
            raise InputError(
                f"{where} has rows of {steps} steps; the model takes at most {self._limit}."
            )

    def _left_out(self, arrays: Arrays) -> Arrays:
        """The inputs that have a value of their own when they are not given."""
        sizes = self._sizes(arrays)
        filled = {}
        for name in self._examples.keys() - arrays.keys():
            example, axes = self._examples[name], self._source.dynamic[name]
            shape = [sizes[axes[i]] if i in axes else n for i, n in enumerate(example.shape)]
            filled[name] = np.full(shape, self._source.defaults[name], example.dtype)
        return filled

    def _text(self, path: Path) -> Arrays:
        """The tokens of a text, in rows of equal length; what is left at the end is dropped."""
        axes = [self._source.dynamic[name] for name in self._needed]
        if axes != [{0: BATCH, 1: TIME}]:
            raise InputError(
                f"{path} is text; the model takes {_list(self._examples)}. Give arrays as .npz."
            )
        (name,) = self._needed
        tokens = _tokens(path, self._source)
        if len(tokens) < 2:
            raise InputError(f"{path} has {len(tokens)} tokens: there is nothing to learn from.")
        steps = min(LENGTH, self._limit or LENGTH, max(len(tokens) // HELD_OUT, 2))
        rows = len(tokens) // steps
        return self.check({name: tokens[: rows * steps].reshape(rows, steps)}, str(path))


def _tokens(path: Path, source: Source) -> Array:
    if source.text is not None:
        tokenizer = Tokenizer(source.text.files[TOKENIZER], f"The tokenizer of {source.name}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text in UTF-8 ({error}).") from error
        return np.array(tokenizer.encode(text), np.int64)
    if _vocabulary(source) != BYTES:
        raise InputError(
            f"{path} is text, and {source.name} has no tokenizer. Give token ids as .npz: "
            "numpy.savez(FILE, NAME=ids) with ids of [batch, time]."
        )
    return np.frombuffer(path.read_bytes(), np.uint8)


def _vocabulary(source: Source) -> int | None:
    """Entries of the first embedding of the source's module, None without one."""
    if not isinstance(source.body, nn.Module):
        return None
    found = (m for m in source.body.modules() if isinstance(m, nn.Embedding))
    first = next(found, None)
    return None if first is None else first.num_embeddings


def _list(names: Any) -> str:
    return ", ".join(map(repr, sorted(names))) or "nothing"
