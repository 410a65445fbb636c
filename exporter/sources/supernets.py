"""A supernet at one assignment of bits to its layers: a checkpoint like any other."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from intaglio.errors import OptionError, SourceError
from intaglio.models.supernet import BITS, restore, subnet, super_layers

from .checkpoint import Checkpoint


def at_bits(checkpoint: Checkpoint, held: Mapping[str, Any], bits: Mapping[str, int]) -> Checkpoint:
    """The subnet of a file's supernet.

    Args:
        checkpoint: the file.
        held: what it holds.
        bits: of layers, by globs over their paths; the last that fits decides.

    Raises:
        OptionError: if a layer has no bits, or some that it does not come in, or a glob fits none.
        SourceError: if it is no supernet.
    """
    try:
        layers = list(super_layers(restore(held)))
    except SourceError as error:
        raise SourceError(f"{checkpoint.path}: {error}") from error
    found = {p: n for glob, n in bits.items() for p in layers if fnmatchcase(p, glob)}
    idle = [glob for glob in bits if not any(fnmatchcase(path, glob) for path in layers)]
    if idle:
        raise OptionError(f"--bits {idle[0]}: no layer is called so; there are {_some(layers)}.")
    lacks = [path for path in layers if path not in found]
    if lacks:
        raise OptionError(
            f"{checkpoint.path} is a supernet, and {_some(lacks)} may have {_some(BITS)} bits. Say "
            "how many with --bits '*=3', or let a search choose: --budget 3.5bits --calib FILE."
        )
    wrong = [path for path, n in found.items() if n not in BITS]
    if wrong:
        said = f"{wrong[0]} is there at {_some(BITS)} bits"
        raise OptionError(f"--bits: {said}, not at {found[wrong[0]]}.")
    named = subnet(held, found)
    return replace(
        checkpoint,
        supernet=None,
        tensors=named["state_dict"],
        model=named["model"],
        config=named["config"],
        format=named["format"],
    )


def _some(names: Any) -> str:
    """The first few of some names, in words."""
    said = ", ".join(map(str, list(names)[:3]))
    return f"{said} and {len(names) - 3} more" if len(names) > 3 else said
