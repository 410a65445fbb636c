"""Projections that a checkpoint holds as two factors, in the module that it is of.

A layer X of the module is X.0 and X.1 in the file, as PELA and others leave it: two linear layers
in a row, of which the second has the bias.  They take its place in the module.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn


def factored(module: nn.Module, tensors: Mapping[str, Any]) -> list[str]:
    """Put two layers where `tensors` have two factors, in place; the paths of those.

    What does not fit stays as it is, and its names are then unexpected in the file.
    """
    made = []
    for path, layer in [*module.named_modules()]:
        if type(layer) is nn.Linear and (pair := _pair(path, layer, tensors)) is not None:
            module.set_submodule(path, pair)
            made.append(path)
    return made


def told(paths: Collection[str]) -> list[str]:
    """A note on them, if there are any."""
    return [f"{len(paths)} projections came as two factors, and stay two."] if paths else []


def _pair(path: str, layer: nn.Linear, tensors: Mapping[str, Any]) -> nn.Sequential | None:
    first, second = (tensors.get(f"{path}.{place}.weight") for place in (0, 1))
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return None
    if first.dim() != 2 or second.dim() != 2 or f"{path}.weight" in tensors:
        return None
    rank, columns = first.shape
    if (columns, len(second)) != (layer.in_features, layer.out_features):
        return None
    if second.shape[1] != rank:
        return None
    kind = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    bias = layer.bias is not None
    return nn.Sequential(
        nn.Linear(columns, rank, bias=False, **kind),
        nn.Linear(rank, layer.out_features, bias=bias, **kind),
    ).train(layer.training)
