"""Projections that a checkpoint holds in few bits, in the module that it is of.

The module is built as if the weights were floats, and is given a stand-in of one number
for each projection of few bits; these projections are then replaced.  Whoever quantized them need
not be installed, and no float weight is ever written out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.low_bit_formats import StoredWeight, take

CONFIG = "quantization_config"


def split(
    path: Path, tensors: Mapping[str, Any], config: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, StoredWeight]]:
    """Tensors for the module, stand-ins among them, and the projections of few bits by path.

    Args:
        path: what errors speak of.
        tensors: those of the checkpoint.
        config: how they were quantized, None where the names of tensors alone say that.

    Raises:
        SourceError: if they are of a format that is not read, or not whole.
    """
    try:
        plain, stored = take(tensors, config)
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error
    stand_in = torch.zeros(())
    weights = {f"{path}.weight": stand_in.expand(x.shape) for path, x in stored.items()}
    return {**plain, **weights}, stored


def put_in(
    module: nn.Module,
    stored: Mapping[str, StoredWeight],
    report: MutableMapping[str, Any] | None = None,
) -> Iterator[str]:
    """Replace the projections of few bits in `module`; yield a note on them.

    What `report`, the library's own, says of their stand-ins is taken out of it.

    Raises:
        SourceError: if the module has no such projection, or one of another size.
    """
    kinds: Counter[str] = Counter()
    for path, weight in stored.items():
        module.set_submodule(path, _replacement(module, path, weight))
        kinds[f"{weight.bits} bits in groups of {weight.group}"] += 1
    own = {f"{path}.weight" for path in stored}
    ours = own | {f"{path}.bias" for path, weight in stored.items() if weight.bias is not None}
    if report is not None:
        report["mismatched_keys"] = [k for k in report["mismatched_keys"] if k[0] not in own]
        report["unexpected_keys"] = [k for k in report["unexpected_keys"] if k not in ours]
    for kind, count in kinds.items():
        yield f"{count} projections came quantized, to {kind}: their codes are taken as they are."


def _replacement(module: nn.Module, path: str, weight: StoredWeight) -> nn.Module:
    try:
        old = module.get_submodule(path)
    except AttributeError as error:
        raise SourceError(
            f"The checkpoint has a projection {path!r} of few bits, and {type(module).__name__} "
            "has none of this name. Check that config and weights belong together."
        ) from error
    N, K = weight.shape
    kept = dict(old.named_parameters(recurse=False))
    shape = list(kept["weight"].shape) if "weight" in kept else None
    turned = type(old).__name__ == "Conv1D"  # the library's linear of [K, N]
    if shape != ([K, N] if turned else [N, K]) or not (turned or isinstance(old, nn.Linear)):
        raise SourceError(
            f"{path} is of {N} outputs and {K} inputs in the checkpoint, and a "
            f"{type(old).__name__} of the weight {shape} in the model. Check the config."
        )
    try:
        made = weight.module()
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error
    if made.bias is not None and "bias" not in kept and not made.bias.any():
        made.bias = None  # zeros that AutoGPTQ writes where there is no bias
    return made
