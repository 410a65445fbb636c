"""What a state starts from: a number, or an array of one row, as the user or the module has it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.errors import InputError, OptionError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.outputs import leaves
from intaglio.quiet import summary
from intaglio.runtime.arrays import read_npz
from intaglio.state import BATCH, TIME

from .functional import Functional
from .state_axes import Shape


def split_initial(text: str, outputs: Sequence[str]) -> tuple[str, str]:
    """The output and the initial value, perhaps empty, in ``OUTPUT[:INITIAL]``."""
    if text in outputs:
        return text, ""
    output, colon, initial = text.rpartition(":")
    return (output, initial) if colon else (text, "")


def initial_of(
    module: nn.Module,
    name: str,
    output: str,
    form: Functional,
    options: LoadOptions,
    shape: Shape,
) -> float | np.ndarray[Any, Any]:
    """The value of a state before the first step: a number, or an array of one row."""
    text = split_initial((options.states or {}).get(name, ""), [output])[1]
    value: Any = form.initial.get(name, 0.0)
    if text:
        value = _read(module, name, text, form)
    if not isinstance(value, Tensor):
        return float(value)
    return one_row(value.detach().cpu().numpy(), name, shape)


def _read(module: nn.Module, name: str, text: str, form: Functional) -> Any:
    """An initial value as the user gave it: a number, a file, or a method of the module."""
    try:
        return float(text)
    except ValueError:
        pass
    if text.endswith(".npz"):
        return read_initial(text, name)
    method = getattr(module, text, None)
    if method is None:
        raise OptionError(
            f"--state {name}=...:{text}: {text!r} is no number, no file .npz and no method of "
            f"{type(module).__name__}."
        )
    if isinstance(method, Tensor):
        return method
    rows = next(iter(form.inputs.values())).shape[:1]
    for arguments in ((), tuple(rows)):
        try:
            made = method(*arguments)
        except TypeError:
            continue
        except Exception as error:
            raise OptionError(f"--state {name}: {text}() failed: {summary(error)}.") from error
        found = [entry for _, entry in leaves(made)]
        nested = next((n.names for n in form.arguments.values() if name in n.names), (name,))
        place = nested.index(name) if len(found) == len(nested) else 0
        if found and isinstance(found[place], Tensor):
            return found[place]
    raise OptionError(
        f"--state {name}: {text}() of {type(module).__name__}, called without arguments or with a "
        "number of rows, gives no tensor."
    )


def read_initial(path: str | Path, name: str) -> Tensor:
    """The initial value of the state `name` in a file ``.npz``.

    Raises:
        OptionError: if it cannot be read or holds none of that name, and more than one.
    """
    try:
        arrays = read_npz(path)
    except InputError as error:
        raise OptionError(f"The initial value of {name!r}: {error}") from error
    if name not in arrays and len(arrays) != 1:
        raise OptionError(
            f"The initial value of {name!r}: {path} holds {', '.join(arrays)}; it should hold "
            f"{name!r}."
        )
    return torch.from_numpy(arrays.get(name, next(iter(arrays.values()))))


def one_row(value: np.ndarray[Any, Any], name: str, shape: Shape) -> float | np.ndarray[Any, Any]:
    """An initial value as one row of a state has it; a number where all entries are equal.

    Raises:
        OptionError: if its rows differ, or it does not fit the shape.
    """
    if value.size and (value == value.flat[0]).all():
        return float(value.flat[0])
    rows = shape.index(BATCH) if BATCH in shape else None
    wanted = [1 if dim in (BATCH, TIME) else dim for dim in shape]
    if rows is not None and value.ndim == len(shape) - 1:
        value = np.expand_dims(value, rows)
    if rows is not None and value.ndim == len(shape):
        first = value.take([0], rows)
        if not (value == first).all():
            raise OptionError(
                f"The initial value of the state {name!r} differs between rows; a session starts "
                "every row alike."
            )
        value = first
    if list(value.shape) != wanted:
        raise OptionError(
            f"The initial value of the state {name!r} has the shape {list(value.shape)}; one row "
            f"of the state has {wanted}."
        )
    return value
