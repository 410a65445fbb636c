"""The published checkpoints of mmMamba: two stacks of layers that are one, fused projections.

Source: github hustvl/mmMamba @ 85143d0: hovle/configuration_*.py and modeling_*.py,
src/model/linear_attention/mamba2.py (`change_weight`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.models.layout import Asked, Shapes, Values, read_value, refuse, renamed

EMBEDDING, LANGUAGE = "embedding_config", "llm_config"
KINDS = ("mamba2", "mha")
VISION = "embedding_model.vision_embeddings"
FUSED = "attention.wvkqgdt.weight"
SAME = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}
IMMATERIAL = (  # prompts, tiles and losses; what ties embeddings of a model that has no output
    *("downsample_ratio", "dynamic_image_size", "max_dynamic_patch", "min_dynamic_patch"),
    *("pad2square", "ps_version", "select_layer", "template", "tie_word_embeddings"),
    "use_thumbnail",
)
OF_LIBRARY = (  # what transformers writes into a config within a config, whatever it says
    *("add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "diversity_penalty"),
    *("cross_attention_hidden_size", "decoder_start_token_id", "do_sample", "early_stopping"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id"),
    *("forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size"),
    *("num_beam_groups", "num_beams", "num_return_sequences", "output_scores"),
    *("remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "sep_token_id"),
    *("suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss"),
    *("tie_encoder_decoder", "top_k", "top_p", "typical_p", "attn_implementation"),
)
OF_EMBEDDING = (  # first weights and training; what the code never reads; of no shuffle
    *("attention_dropout", "downsample_ratio", "drop_path_rate", "initializer_factor"),
    *("pixel_shuffle_loc", "pretraining_tp", "tie_word_embeddings", "use_autoregressive_loss"),
    "use_img_start_end_tokens",
)
OF_LAYER = {
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
}
OF_MIXER = {
    "mixer.conv1d.weight": "attention.conv1d.weight",
    "mixer.conv1d.bias": "attention.conv1d.bias",
    "mixer.A_log": "attention.A_log_bias",
    "mixer.dt_bias": "attention.dt_bias",
    "mixer.g_norm.weight": "attention.g_norm_swish_gate.weight",
    "mixer.o_proj.weight": "attention.o_proj.weight",
}


def fits(values: Values, _: object) -> bool:
    """Whether this is the config.json of a mmMamba."""
    return values.get("model_type") == "mmMamba_chat"


def configure(values: Values, _: Shapes) -> dict[str, Any]:
    """Values of our config of those of config.json and of the two configs in it."""
    refuse(values, {"normalize_encoder_output": (False, None)})
    refuse(values, {"use_backbone_lora": (0, None), "use_llm_lora": (0, None)})
    vision, text = (Asked(read_value(values, name, dict)) for name in (EMBEDDING, LANGUAGE))
    made = _values(vision, text)
    refuse(values, {"force_image_size": (made["image_size"], None)})
    vision.check({*OF_LIBRARY, *OF_EMBEDDING}, EMBEDDING)
    text.check(OF_LIBRARY, LANGUAGE)
    return made


def _values(vision: Values, text: Values) -> dict[str, Any]:
    refuse(
        vision,
        {
            "use_ls": (False,),
            "attention_bias": (False, None),
            "mlp_bias": (False, None),
            "special_token_maps": ({}, None),
            "rope_scaling": (None,),
            "llm_vocab_size": (read_value(text, "vocab_size", int),),
            "llm_hidden_size": (read_value(text, "hidden_size", int),),
        },
    )
    refuse(text, {"bias": (False,), "rope_scaling": (None,), "tie_word_embeddings": (False,)})
    for config in (vision, text):
        refuse(config, {"hidden_act": ("silu",)})
    sizes = {ours: read_value(text, theirs, int) for ours, theirs in SAME.items()}
    shared = (*SAME.values(), "rope_theta", "rms_norm_eps")
    apart = [name for name in shared if vision.get(name) != text.get(name)]
    if apart:
        raise SourceError(f"its {EMBEDDING} and {LANGUAGE} differ in {', '.join(apart)}")
    projected = read_value(vision, "use_pixel_shuffle_proj", bool)
    if projected:
        refuse(vision, {"pixel_shuffle_loc": ("pre",)})
    kinds = [kind for config in (vision, text) for kind in _kinds(config)]
    attention = (str(layer) for layer, kind in enumerate(kinds) if kind == "mha")
    ratio = read_value(vision, "downsample_ratio", float, 0.5) if projected else 1.0
    return {
        **sizes,
        "vocab_size": read_value(text, "vocab_size", int),
        "num_layers": len(kinds),
        "attention_layers": ",".join(attention),
        "rope_theta": float(read_value(text, "rope_theta", float)),
        "norm_eps": read_value(text, "rms_norm_eps", float),
        "image_size": read_value(vision, "image_size", int),
        "patch_size": read_value(vision, "patch_size", int),
        "channels": read_value(vision, "num_channels", int, 3),
        "shuffle": round(1 / ratio),
        "project": projected,
        "image_token": read_value(vision, "img_context_token_id", int),
    }


def weights(tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Our weights of theirs; what the published forward never reads is left out."""
    chosen = {int(layer) for layer in config.attention_layers.split(",") if layer}
    names = {
        "text.embed_tokens.weight": "embedding_model.llm_text_embeddings.weight",
        "text.norm.weight": "language_model.model.norm.weight",
        "text.lm_head.weight": "language_model.output.weight",
        "vision.patch_embedding.weight": f"{VISION}.patch_embedding.weight",
        "vision.patch_embedding.bias": f"{VISION}.patch_embedding.bias",
    }
    if config.project:
        for part in ("0.weight", "0.bias", "2.weight", "2.bias"):
            names[f"vision.proj.{part}"] = f"embedding_model.pixel_shuffle_proj.{part}"
    encoder = len({name.split(".")[2] for name in tensors if ".encoder." in name})
    fused: dict[str, Tensor] = {}
    for layer in range(config.num_layers):
        theirs = f"embedding_model.encoder.{layer}"
        if layer >= encoder:
            theirs = f"language_model.model.layers.{layer - encoder}"
        parts = OF_LAYER if layer in chosen else {**OF_LAYER, **OF_MIXER}
        names |= {f"text.layers.{layer}.{ours}": f"{theirs}.{name}" for ours, name in parts.items()}
        split = _grouped if layer in chosen else _fused
        mixer = f"text.layers.{layer}.mixer"
        fused |= {f"{mixer}.{n}": w for n, w in split(tensors, theirs, config).items()}
    positions = tensors[f"{VISION}.position_embedding"]
    for unread in (f"{VISION}.class_embedding", "language_model.model.tok_embeddings.weight"):
        tensors.get(unread)
    return {**renamed(tensors, names), **fused, "vision.position_embedding": positions[:, 1:]}


def _kinds(config: Values) -> tuple[str, ...]:
    kinds: tuple[str, ...] = tuple(read_value(config, "layers_block_type", tuple[str, ...]))
    if other := [kind for kind in kinds if kind not in KINDS]:
        raise SourceError(f"its config has layers of the kind {other[0]!r}, not {KINDS}")
    if len(kinds) != read_value(config, "num_hidden_layers", int):
        raise SourceError(f"its config has {len(kinds)} kinds of layers, not num_hidden_layers")
    return kinds


def _fused(tensors: Mapping[str, Tensor], layer: str, config: Any) -> dict[str, Tensor]:
    """Rows of v, k, q, the gate and the step."""
    weight, kv = tensors[f"{layer}.{FUSED}"], config.num_kv_heads * config.head_size
    size = config.hidden_size
    rows = [kv, kv, size, size, config.num_heads]
    if weight.shape[0] != sum(rows):
        raise SourceError(f"{layer}.{FUSED} has {weight.shape[0]} rows, not {sum(rows)}")
    parts = torch.split(weight, rows)
    return {f"{n}_proj.weight": w for n, w in zip(("v", "k", "q", "g", "dt"), parts, strict=True)}


def _grouped(tensors: Mapping[str, Tensor], layer: str, config: Any) -> dict[str, Tensor]:
    """Rows of each key-value head: its queries, its key, its value."""
    weight, groups = tensors[f"{layer}.attention.wqkv.weight"], config.num_kv_heads
    shared = config.num_heads // groups
    rows = weight.reshape(groups, shared + 2, config.head_size, -1)
    parts = rows[:, :shared], rows[:, shared], rows[:, shared + 1]
    split = {
        f"{name}_proj.weight": part.reshape(-1, weight.shape[1])
        for name, part in zip(("q", "k", "v"), parts, strict=True)
    }
    return {**split, "o_proj.weight": tensors[f"{layer}.attention.wo.weight"]}
