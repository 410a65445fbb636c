"""How large a module may be that is built for the tensors of a file.

A config may ask for anything, and what a file does not fill the library fills itself: the memory
would be taken before the names that are missing are told.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from intaglio.errors import SourceError

TIMES = 4  # each is registered as the module is built and as it is filled, tied ones again
PARAMETERS = 1000  # that a module may have beyond so many times the tensors of its files
ELEMENTS = 1 << 25  # of parameters, beyond so many times those of its files
BUFFERS = 1 << 30  # elements of all buffers: masks and tables, which no file has
PACKED = 16  # weights in an element of a tensor, at most: of 2 bits in an int32


COUNTED = re.compile(r"(n|num|encoder|decoder)_(.*_)?(layers?|labels|blocks|stages|experts)")
MOST = 100_000  # layers or labels


def check_counts(config: Any, path: Path) -> None:
    """Refuse a config of more layers or labels than any: lists of them are made of it alone.

    Raises:
        SourceError: if it has, or one within it.
    """
    entries = config.items() if isinstance(config, Mapping) else enumerate(config)
    for name, value in entries:
        if isinstance(value, Mapping | list):
            check_counts(value, path)
        elif isinstance(value, int) and value > MOST and COUNTED.fullmatch(str(name)):
            raise SourceError(f"{path} says {name} = {value}, more than any model has: {MOST}.")


@contextlib.contextmanager
def within(tensors: Mapping[str, Tensor], *, packed: bool = False) -> Iterator[None]:
    """Stop the building of a module once it is larger than `tensors` could fill.

    Args:
        tensors: what the files hold.
        packed: whether an element may hold several weights.

    Raises:
        SourceError: if it is.
    """
    held = sum(tensor.numel() for tensor in tensors.values()) * (PACKED if packed else 1)
    left = {
        "parameters": PARAMETERS + TIMES * len(tensors),
        "elements of parameters": ELEMENTS + TIMES * held,
        "elements of buffers": BUFFERS,
    }

    def take(what: str, count: int) -> None:
        left[what] -= count
        if left[what] < 0:
            raise SourceError(
                f"The config asks for far more {what} than the {len(tensors)} tensors of the files "
                f"fill, which have {held} elements. Check its sizes and its number of layers."
            )

    def parameter(_module: nn.Module, _name: str, value: nn.Parameter) -> None:
        take("parameters", 1)
        take("elements of parameters", 0 if value is None else value.numel())

    def buffer(_module: nn.Module, _name: str, value: Tensor) -> None:
        take("elements of buffers", 0 if value is None else value.numel())

    registered = (
        hooks.register_module_parameter_registration_hook(parameter),
        hooks.register_module_buffer_registration_hook(buffer),
    )
    try:
        yield
    finally:
        for each in registered:
            each.remove()
