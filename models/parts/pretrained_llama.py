"""Trained transformers of the Llama type that a recipe begins from, of ours or of Hugging Face."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.models.layout import read_value, refuse
from intaglio.models.model import FORMAT

HEAD = ("embed_tokens.weight", "norm.weight", "lm_head.weight")
OF_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    **{f"self_attn.{name}_proj.weight": f"mixer.{name}_proj.weight" for name in "qkvo"},
    **{f"mlp.{name}_proj.weight": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
KNOWN: dict[str, tuple[Any, ...]] = {  # values of options that a Llama here does not have
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (None, False),
}


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Config values and weights by the names of models/llama.py, and the token ids of bytes."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    tokens: Callable[[Tensor], Tensor]


def read(path: Path) -> Pretrained:
    """Read a checkpoint of the model llama, or a directory that Hugging Face's library saved.

    Raises:
        SourceError: it cannot be read, or is of another architecture; what is at fault is named.
    """
    return _directory(path) if path.is_dir() else _checkpoint(path)


def read_config(path: Path) -> Mapping[str, Any]:
    """The config of what `read` reads."""
    return llama_values(_json(path / "config.json")) if path.is_dir() else _checkpoint(path).config


def llama_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config of models/llama.py of a config.json of the Llama type.

    Raises:
        SourceError: it has what a Llama here does not have.
        KeyError: a value is missing.
    """
    refuse(values, KNOWN)
    rotation = read_value(values, "rope_parameters", dict | None, None) or {}
    refuse(rotation, {"rope_type": ("default",)})
    sizes = {ours: read_value(values, theirs, int) for ours, theirs in SIZES.items()}
    heads, hidden = sizes["num_heads"], sizes["hidden_size"]
    head = read_value(values, "head_dim", int | None, None) or hidden // heads
    if head * heads != hidden:
        raise SourceError(
            f"its config has {heads} heads of {head}, which are not hidden_size = {hidden}"
        )
    theta = read_value(values, "rope_theta", float, 10_000.0)
    return {
        **sizes,
        "num_kv_heads": read_value(values, "num_key_value_heads", int | None, None) or heads,
        "rope_theta": float(read_value(rotation, "rope_theta", float, theta)),
        "norm_eps": read_value(values, "rms_norm_eps", float),
        "tie_embeddings": read_value(values, "tie_word_embeddings", bool, False),
    }


def llama_names(layers: int, *, tied: bool) -> dict[str, str]:
    """Our name of each parameter of a Llama -> that of Hugging Face's library."""
    head = HEAD[:2] if tied else HEAD
    names = {ours: ours if ours == HEAD[2] else f"model.{ours}" for ours in head}
    for layer in range(layers):
        for theirs, ours in OF_LAYER.items():
            names[f"layers.{layer}.{ours}"] = f"model.layers.{layer}.{theirs}"
    if tied:
        names["lm_head.weight"] = "model.embed_tokens.weight"
    return names


def read_checkpoint(path: Path, model: str) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Config values and weights of a checkpoint of ours of this model.

    Raises:
        SourceError: it is none, or of another model.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the file system, of zip, of pickle, by what the file holds
        raise SourceError(f"{path} is no checkpoint: {error}") from error
    named = isinstance(saved, dict) and saved.get("format") == FORMAT
    if not named or saved.get("model") != model:
        found = f"a checkpoint of {saved.get('model')!r}" if named else "no checkpoint of ours"
        raise SourceError(f"{path} is {found}; this recipe begins from one of the model {model!r}.")
    return saved["config"], saved["state_dict"]


def _checkpoint(path: Path) -> Pretrained:
    config, tensors = read_checkpoint(path, "llama")
    return Pretrained(config=config, tensors=tensors, tokens=Tensor.long)


def _directory(path: Path) -> Pretrained:
    from safetensors.torch import load_file

    values = _json(path / "config.json")
    if values.get("model_type") != "llama":
        raise SourceError(
            f"{path} holds a model of type {values.get('model_type')!r}; this recipe begins from "
            "one of type 'llama'."
        )
    try:
        config = llama_values(values)
    except SourceError as error:
        raise SourceError(f"{path} is no Llama as known here: {error}.") from error
    except KeyError as error:
        raise SourceError(f"{path / 'config.json'} lacks {error}.") from error
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise SourceError(f"{path} has no *.safetensors: save the model with save_pretrained.")
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    names = llama_names(config["num_layers"], tied=config["tie_embeddings"])
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    unknown = [name for name in tensors if name not in set(names.values())]
    unknown = [name for name in unknown if not (name == HEAD[2] and config["tie_embeddings"])]
    if missing or unknown:
        told = [
            f"{kind} {', '.join(some[:3])}"
            for kind, some in (("lacks", missing), ("has unknown", unknown))
            if some
        ]
        raise SourceError(f"{path} {' and '.join(told)}.")
    return Pretrained(
        config=config,
        tensors={ours: tensors[theirs].float() for ours, theirs in names.items()},
        tokens=_tokenizer(path, config["vocab_size"]),
    )


def _tokenizer(path: Path, vocab_size: int) -> Callable[[Tensor], Tensor]:
    file = path / "tokenizer.json"
    if not file.exists():
        if vocab_size == 256:
            return Tensor.long
        raise SourceError(
            f"{path} has no tokenizer.json, and {vocab_size} tokens are not bytes: put its "
            "tokenizer beside the weights."
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise SourceError(
            f"Text for {path} needs the package tokenizers: pip install 'intaglio[text]'."
        ) from error
    tokenizer = Tokenizer.from_file(str(file))

    def tokens(text: Tensor) -> Tensor:
        words = bytes(text.numpy()).decode("utf-8", errors="replace")
        return torch.tensor(tokenizer.encode(words, add_special_tokens=False).ids)

    return tokens


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} holds no config: it should be one JSON object.")
    return values
