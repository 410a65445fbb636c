"""The names of a module's outputs: the same for its graph, its reference stream and its bundle."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from intaglio.errors import TraceError
from intaglio.exporter.sources.low_bit_modules import LowBitEmbedding
from intaglio.state import PAST_LENGTH

STATES = ("past.", "present.", "past_key_values.")  # how the names of carried states begin


def name_outputs(module: nn.Module, value: Any, inputs: Collection[str] = ()) -> dict[str, Tensor]:
    """Give each tensor that `module` returned its name.

    A mapping keeps its keys, a tuple or list numbers them ``output_0`` and so on, entries that
    are None left out; what is nested in an entry is numbered behind its name, ``output_1_0``.  A
    single tensor, also as in ``return logits, None``, is ``logits`` when its
    last dimension is the vocabulary of an embedding of the module, else ``output``.  A name that
    one of `inputs` has, or that a step graph keeps for itself, is given the end ``_out``.

    Raises:
        TraceError: if the value holds anything but tensors and None, or no tensor at all.
    """
    if isinstance(value, tuple | list) and sum(entry is not None for entry in value) == 1:
        value = next(entry for entry in value if entry is not None)
    if isinstance(value, Tensor):
        name = "logits" if _is_vocabulary(module, value) else "output"
        return {_own_name(name, inputs): _recorded(value)}
    entries: dict[str, Any] = {}
    for path, entry in leaves(value):
        if path:
            entries[_own_name(_joined(path), {*inputs, *entries})] = entry
    wrong = [name for name, entry in entries.items() if not isinstance(entry, Tensor)]
    if wrong or not entries:
        what = f"{wrong[0]!r} is {_kind(entries[wrong[0]])}" if wrong else f"it is {_kind(value)}"
        raise TraceError(
            "The model should return a tensor, or a dict or tuple of tensors; "
            f"of what it returns, {what}. Wrap it in a module whose forward returns tensors."
        )
    return {name: _recorded(entry) for name, entry in entries.items()}


def _recorded(value: Tensor) -> Tensor:
    """Without what a module that takes gradients recorded for them."""
    return value.detach() if value.requires_grad else value


def leaves(
    value: Any, path: tuple[int | str, ...] = ()
) -> Iterator[tuple[tuple[int | str, ...], Any]]:
    """What is nested in mappings, tuples and lists, None left out, with the way to it."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from leaves(entry, (*path, str(key)))
    elif isinstance(value, tuple | list):
        for index, entry in enumerate(value):
            yield from leaves(entry, (*path, index))
    elif value is not None:
        yield path, value


def _joined(path: tuple[int | str, ...]) -> str:
    words = path if isinstance(path[0], str) else ("output", *path)
    return "_".join(map(str, words))


def _own_name(name: str, inputs: Collection[str]) -> str:
    """`name`, or one that neither an input nor a step graph has."""
    name = name or "output"  # ONNX takes an empty name for an absent value
    while name in inputs or is_reserved(name):
        name = f"{name}_out" if name in inputs or name == PAST_LENGTH else f"out_{name}"
    return name


def is_reserved(name: str) -> bool:
    """Whether a step graph may have an input or output of that name beside the source's own."""
    return name == PAST_LENGTH or name.startswith(STATES)


def _is_vocabulary(module: nn.Module, value: Tensor) -> bool:
    return value.ndim > 0 and value.shape[-1] in vocabularies(module)


def vocabularies(module: nn.Module) -> Iterator[int]:
    """Rows of the tables that a module, or a program as one, looks tokens up in."""
    for child in module.modules():
        if isinstance(child, nn.Embedding | LowBitEmbedding):
            yield child.num_embeddings
    for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
        if node.target is torch.ops.aten.embedding.default:
            table = node.args[0].meta.get("val")
            if isinstance(table, Tensor):
                yield table.shape[0]


def _kind(value: object) -> str:
    return "an empty " + type(value).__name__ if value in ((), [], {}) else type(value).__name__
