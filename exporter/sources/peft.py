"""Directories of the library PEFT that hold a LoRA: `adapter_config.json` and its weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.runtime.adapters import Adapter
from intaglio.runtime.plain_files import read_json

from .container import read_container

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
WRAPPER = "base_model.model."
KEPT = ("lora_A", "lora_B")
READ = {"peft_type", "bias", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
        "fan_in_fan_out", "init_lora_weights"}  # fmt: skip
IDLE = {"auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
        "eva_config", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform",
        "loftq_config", "lora_dropout", "megatron_config", "megatron_core", "peft_version",
        "qalora_group_size", "revision", "runtime_config", "target_modules",
        "task_type"}  # fmt: skip
"""Of the start and of training, or which layers: that follows from the weights that are there."""
STARTS = (None, True, False, "gaussian", "eva")  # which leave the base's weights as they are
LARGEST = 1e30  # of alpha: products stay finite
PLAIN = re.compile(r"[\w.-]+")


def is_peft(path: Path) -> bool:
    """Whether `path` is such a directory."""
    return (path / CONFIG).is_file()


def read_peft(path: Path, module: nn.Module) -> Adapter:
    """The LoRA in the directory `path`, by the parameters of `module`, scaled as the library does.

    Which base it belongs to, such a directory does not say: `base` is empty.

    Raises:
        SourceError: if it is of another kind or incomplete, or names a layer that is not there.
    """
    config = _config(path)
    file = next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise SourceError(f"{path} has no weights: neither {' nor '.join(FILES)}.")
    _, content = read_container(file)
    if not isinstance(content, Mapping):
        raise SourceError(f"{file} holds no tensors by name.")
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in content.items():
        layer, part = _place(str(key), file)
        pairs.setdefault(layer, {})[part] = value
    known = dict(module.named_parameters(remove_duplicate=False))
    parts = {}
    for layer, pair in pairs.items():
        name = _parameter(layer, known, file)
        if set(pair) != set(KEPT):
            raise SourceError(f"{file} has one of {' and '.join(KEPT)} for {layer}, not both.")
        down, up = (pair[part].float().numpy() for part in KEPT)
        if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
            raise SourceError(f"{file}: the LoRA of {layer} is not of matrices that fit.")
        if not all(np.isfinite(each).all() for each in (down, up)):
            raise SourceError(f"{file}: the LoRA of {layer} holds NaN or Inf.")
        up = np.ascontiguousarray(up * _scale(config, layer, len(down)), np.float32)
        turned = bool(config.get("fan_in_fan_out"))
        parts[name] = {"down": np.ascontiguousarray(up.T), "up": np.ascontiguousarray(down.T)} if (
            turned
        ) else {"down": np.ascontiguousarray(down), "up": up}  # fmt: skip
    return Adapter(base="", parts=parts)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = read_json(path / CONFIG)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path / CONFIG} cannot be read: {error}.") from error
    kind = config.get("peft_type") if isinstance(config, Mapping) else None
    if kind != "LORA":
        raise SourceError(f"{path} holds an adapter of the type {kind!r}; LORA is known.")
    for name in sorted(name for name in config if name not in READ | IDLE and config[name]):
        raise SourceError(
            f"{path} was made with {name}, which changes more than products of two matrices, or is "
            "not known. Merge it into the model with PEFT, and make an adapter of that: intaglio "
            "adapter."
        )
    if config.get("init_lora_weights") not in STARTS:
        raise SourceError(
            f"{path} started from {config['init_lora_weights']!r}, which changes the base's own "
            "weights too. Merge it into the model with PEFT, and make an adapter of that: intaglio "
            "adapter."
        )
    if config.get("bias", "none") != "none":
        raise SourceError(f"{path} changes biases; bias should be none.")
    return dict(config)


def _place(key: str, file: Path) -> tuple[str, str]:
    """The layer and the part that a key of the file names."""
    words = key.removeprefix(WRAPPER).split(".")
    found = [index for index, word in enumerate(words) if word in KEPT]
    if len(found) != 1 or words[-1] != "weight":
        raise SourceError(f"{file} holds {key!r}, which is no part of a LoRA of linear layers.")
    return ".".join(words[: found[0]]), words[found[0]]


def _parameter(layer: str, known: Mapping[str, Tensor], file: Path) -> str:
    """The parameter of a layer; a model with a head holds its body under a name of its own."""
    name = f"{layer}.weight"
    fitting = [name] if name in known else [each for each in known if each.endswith(f".{name}")]
    if len(fitting) != 1:
        raise SourceError(f"{file} is for {layer}, and the model has no such layer.")
    return fitting[0]


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """What the product is multiplied by: alpha over the rank, or over its root."""
    said = _of_layer(config, "rank_pattern", layer, config.get("r", rank))
    if said != rank:
        raise SourceError(f"{CONFIG} says that {layer} has the rank {said!r}; it has {rank}.")
    alpha = _of_layer(config, "alpha_pattern", layer, config.get("lora_alpha", rank))
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not abs(alpha) <= LARGEST:  # neither NaN
        raise SourceError(f"{CONFIG} has lora_alpha = {alpha!r}, no number.")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _of_layer(config: Mapping[str, Any], key: str, layer: str, other: Any) -> Any:
    """What `key` says of a layer by the end of its name, else `other`.

    The library takes names as regular expressions, of which plain names alone are taken here.
    """
    patterns = config.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise SourceError(f"{CONFIG} has {key} = {patterns!r}, which is no table of layers.")
    odd = [each for each in patterns if not PLAIN.fullmatch(each)]
    if odd:
        raise SourceError(
            f"{CONFIG} names layers by the pattern {odd[0]!r} ({key}). Name each, or merge the "
            "adapter into the model with PEFT, and make one of that: intaglio adapter."
        )
    return next((v for k, v in patterns.items() if f".{layer}".endswith(f".{k}")), other)
