"""The loss of a model on the user's data, and the statistics of its norms taken anew from that.

Data holds the inputs of the model by name, and ``labels``: classes for logits [..., classes], or
what outputs should be.  Without labels a model of tokens is held to the tokens that follow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from intaglio.errors import InputError
from intaglio.exporter.sources.calibration_data import read_calibration
from intaglio.exporter.sources.source import Source
from intaglio.runtime.arrays import Array, read_npz

LABELS = "labels"
ROWS = 128  # of one call
Loss = tuple[float, float | None]  # and the accuracy


@dataclass(frozen=True)
class Data:
    """Batches of inputs by name, with their labels."""

    batches: Sequence[tuple[dict[str, Tensor], Tensor]]


def read_data(path: str | Path, source: Source) -> Data:
    """Data for the inputs of `source`, with labels.

    Raises:
        InputError: if it cannot be read, does not fit, or has no labels where they are needed.
    """
    path = Path(path)
    arrays = read_npz(path) if path.suffix == ".npz" else {}
    labels = arrays.pop(LABELS, None)
    if labels is None:
        return Data(list(_with_next_tokens(arrays or path, source)))
    if set(arrays) != set(source.dynamic):
        raise InputError(
            f"{path} holds {', '.join(arrays) or 'nothing'} beside labels; the model takes: "
            f"{', '.join(source.dynamic)}."
        )
    rows = {name: len(array) for name, array in arrays.items()} | {LABELS: len(labels)}
    if len(set(rows.values())) != 1 or not len(labels):
        raise InputError(f"{path} has other numbers of rows: {rows}.")
    kinds = {name: value.dtype for name, value in source.inputs.items()}
    return Data([
        (
            {n: torch.from_numpy(x[at : at + ROWS]).to(kinds[n]) for n, x in arrays.items()},
            torch.from_numpy(labels[at : at + ROWS]),
        )
        for at in range(0, len(labels), ROWS)
    ])  # fmt: skip


def _with_next_tokens(
    data: Path | Mapping[str, Array], source: Source
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    if len(source.inputs) != 1 or next(iter(source.inputs.values())).dtype.is_floating_point:
        raise InputError(
            f"The data has no array {LABELS!r}, and what the model takes are not tokens alone, "
            "which would be held to the tokens that follow. Put labels beside the inputs."
        )
    for batch in read_calibration(data, source).batches:
        if batch.lengths is not None:
            raise InputError("Rows of unequal length cannot be held to the tokens that follow.")
        ((name, array),) = batch.inputs.items()
        tokens = torch.from_numpy(np.asarray(array)).long()
        if tokens.shape[1] > 1:
            yield {name: tokens[:, :-1]}, tokens[:, 1:]


def loss(module: nn.Module, data: Data) -> Loss:
    """The mean loss of `module` in eval mode, and its accuracy: None where labels are no classes.

    Raises:
        InputError: if the labels do not fit the first output.
    """
    total, right, count, classes = 0.0, 0, 0, True
    with torch.no_grad():
        for inputs, labels in data.batches:
            output = first_output(module(**inputs))
            if labels.dtype.is_floating_point:
                _require(output.shape == labels.shape, output, labels)
                total += float(F.mse_loss(output, labels.to(output.dtype))) * labels.numel()
                classes = False
            else:
                _require(output.shape[:-1] == labels.shape, output, labels)
                flat, wanted = output.reshape(-1, output.shape[-1]), labels.reshape(-1).long()
                total += float(F.cross_entropy(flat, wanted)) * labels.numel()
                right += int((flat.argmax(-1) == wanted).sum())
            count += labels.numel()
    return total / count, right / count if classes else None


def _require(fits: bool, output: Tensor, labels: Tensor) -> None:
    if not fits:
        raise InputError(
            f"The labels are {list(labels.shape)} of {labels.dtype}, and the first output is "
            f"{list(output.shape)}: integers are classes along its last axis, other numbers what "
            "it should be."
        )


def first_output(outputs: Any) -> Tensor:
    """The first tensor of what a module returns."""
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values() if isinstance(outputs, Mapping) else outputs))
    return outputs


def has_statistics(module: nn.Module) -> bool:
    """Whether a module keeps statistics of its data, which a mean of two models does not have."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


def recalibrate(module: nn.Module, data: Data) -> None:
    """Take the statistics of batch norms anew, as the means over all batches of `data`."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # which makes it the mean of all
        norm.train()
    with torch.no_grad():
        for inputs, _ in data.batches:
            module(**inputs)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()
