"""Directories of the library PEFT that hold a LoRA: `adapter_config.json` and its weights.

Beside pairs of matrices they may hold parameters that were trained as a whole, which take the place
of the model's (``modules_to_save``).  Names are those of the model as it was when the adapter was
trained; where a later version of transformers calls its layers otherwise, its own table of older
names is asked.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.runtime.adapters import VALUE, Adapter
from intaglio.runtime.arrays import Array
from intaglio.runtime.plain_files import read_json

from .container import read_container

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin", "checkpoint.pt")
"""Of the library, and of training scripts that save what was trained by themselves."""
WRAPPER = "base_model.model."
KEPT = ("lora_A", "lora_B")
WHOLE = "modules_to_save"
READ = {"peft_type", "bias", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
        "fan_in_fan_out", "init_lora_weights", "modules_to_save"}  # fmt: skip
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
    named = isinstance(content, Mapping) and all(isinstance(x, Tensor) for x in content.values())
    if not isinstance(content, Mapping) or not named:
        raise SourceError(f"{file} holds no tensors by name, or more than those.")
    pairs: dict[str, dict[str, Tensor]] = {}
    names = _Names(module, file)
    parts: dict[str, dict[str, Array]] = {}
    for key, value in content.items():
        layer, part = _place(str(key), file)
        if part == VALUE:
            parts[names.parameter(layer)] = {VALUE: _plain(value, layer, file)}
        else:
            pairs.setdefault(layer, {})[part] = value
    for layer, pair in pairs.items():
        name = names.parameter(f"{layer}.weight")
        if set(pair) != set(KEPT):
            raise SourceError(f"{file} has one of {' and '.join(KEPT)} for {layer}, not both.")
        down, up = (pair[part].detach().float().numpy() for part in KEPT)
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
    """The layer and the part that a key of the file names; of a whole parameter its name."""
    words = key.removeprefix(WRAPPER).split(".")
    found = [index for index, word in enumerate(words) if word in KEPT]
    if not found and not any(word.startswith("lora_") for word in words):
        if WHOLE in words[:-1]:  # a copy beside the module, by the name of the adapter
            index = words.index(WHOLE)
            words[index : index + 2] = []
        return ".".join(words), VALUE
    if len(found) != 1 or words[-1] != "weight":
        raise SourceError(f"{file} holds {key!r}, which is no part of a LoRA of linear layers.")
    return ".".join(words[: found[0]]), words[found[0]]


def _plain(value: Tensor, name: str, file: Path) -> Array:
    """A whole parameter as numbers."""
    found = value.detach().float().numpy()
    if not np.isfinite(found).all():
        raise SourceError(f"{file}: {name} holds NaN or Inf.")
    return found


class _Names:
    """The parameters of a model by the names that they have in a file."""

    def __init__(self, module: nn.Module, file: Path) -> None:
        self._known = dict(module.named_parameters(remove_duplicate=False))
        self._file = file
        self._renamed = _older_names(module)

    def parameter(self, name: str) -> str:
        """The parameter that a file calls `name`.

        A model with a head holds its body under a name of its own.

        Raises:
            SourceError: if there is none, or the model uses it elsewhere too.
        """
        for each in (name, self._renamed(name)):
            ends = (own for own in self._known if own.endswith(f".{each}"))
            fitting = [each] if each in self._known else list(ends)
            if len(fitting) == 1:
                self._require_alone(fitting[0])
                return fitting[0]
        raise SourceError(
            f"{self._file} is for {name.removesuffix('.weight')}, and the model has no such layer."
        )

    def _require_alone(self, name: str) -> None:
        own = self._known[name]
        others = [n for n, each in self._known.items() if each is own and n != name]
        if others:
            raise SourceError(
                f"{self._file} changes {name} alone, and the model uses the same weight as "
                f"{' and '.join(others)}. Untie them in the base (tie_word_embeddings)."
            )


def _older_names(module: nn.Module) -> Callable[[str], str]:
    """The name that the library gives today to what earlier versions of it named otherwise."""
    if "transformers" not in sys.modules:  # then it has not built the module
        return lambda name: name
    from transformers import PreTrainedModel, conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    if not isinstance(module, PreTrainedModel):
        return lambda name: name
    table = conversion_mapping.get_model_conversion_mapping(module)
    plain = [each for each in table if isinstance(each, WeightRenaming)]
    prefix, known = module.base_model_prefix, module.state_dict()
    return lambda name: str(rename_source_key(name, plain, [], prefix, known)[0])


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
