"""`--condition NAME=FILE.npz|VALUE`: what a user types, as arrays for a session."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError, OptionError
from intaglio.runtime.arrays import read_npz
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.runtime.plain_files import parse_json
from intaglio.state import BATCH

Array = npt.NDArray[Any]


def read_conditions(texts: Sequence[str], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The arrays that `texts` give, each for one of the conditions `specs`.

    A value is a number, or nested lists of numbers as in JSON; one row may leave its batch out.

    Raises:
        OptionError: if a text is no NAME=VALUE, names no condition, or one twice; or if one is not
            given that cannot be left out.
        InputError: if a file cannot be read, or a value does not fit.
    """
    known = {spec.name: spec for spec in specs}
    found: dict[str, Array] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise OptionError(f"--condition {text}: give NAME=FILE.npz or NAME=VALUE.")
        if name not in known:
            names = ", ".join(known) or "none"
            raise OptionError(f"--condition {text}: the bundle takes these conditions: {names}.")
        if name in found:
            raise OptionError(f"--condition {name} is given twice.")
        is_file = value.endswith(".npz")
        found[name] = _of_file(name, value) if is_file else _of_text(known[name], value)
    missing = [spec.name for spec in specs if spec.name not in found and spec.default is None]
    if missing:
        raise OptionError(
            f"The bundle takes what holds for a whole sequence: {', '.join(known)}. Give it: "
            f"--condition {missing[0]}=FILE.npz or --condition {missing[0]}=VALUE."
        )
    return found


def _of_file(name: str, path: str) -> Array:
    arrays = read_npz(Path(path))
    if name in arrays:
        return arrays[name]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise InputError(f"{path} has no array {name!r}; it has: {', '.join(arrays) or 'none'}.")


def _of_text(spec: TensorSpec, text: str) -> Array:
    try:
        array = np.asarray(parse_json(text)).astype(spec.dtype, casting="same_kind")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"--condition {spec.name}={text}: should be {spec.dtype} numbers, as 3 or "
            f"[[1, 2], [3, 4]] ({error})."
        ) from error
    one_row = array.ndim == len(spec.shape) - 1 and spec.shape[0] == BATCH
    return array[None] if one_row else array
