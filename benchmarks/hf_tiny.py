"""Tiny configs of the library's models, made from its own default configs.

Sizes are made small by the names that the library gives them, lists of layers cut to one of each
kind.  What a family needs beside that, because its sizes depend on each other, stands in `OWN`.
"""

from typing import Any

import transformers

VOCABULARY, WINDOW, POSITIONS = 128, 6, 96

SIZES: dict[int, str] = {
    VOCABULARY: "vocab_size decoder_vocab_size unpadded_vocab_size",
    POSITIONS: "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions "
    "model_max_length original_max_position_embeddings context_length seq_length",
    32: "hidden_size d_model n_embd emb_dim embedding_size lru_width word_embed_proj_dim "
    "attention_hidden_size embedding_dim dim_model input_embedding_size output_embedding_size "
    "backbone_hidden_size hidden_dim",
    48: "intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim dff dim_ff ffn_hidden_size "
    "intermediate_size_mlp d_inner dense_intermediate_size feed_forward_size n_inner "
    "block_ff_dim",
    16: "qk_head_dim moe_intermediate_size shared_intermediate_size "
    "shared_expert_intermediate_size expert_ffn_hidden_size kv_lora_rank q_lora_rank "
    "shared_experts_intermediate_size moe_shared_expert_intermediate_size chunk_size "
    "mamba_chunk_size router_hidden_size image_seq_length max_source_positions "
    "prompt_mid_dim adapter_rank rel_extent",
    8: "head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim mamba_d_state state_size "
    "linear_key_head_dim linear_value_head_dim ssm_state_size mamba_head_dim mamba_d_head "
    "index_head_dim linear_head_dim dim_head d_head attention_head_size kv_channels "
    "swa_head_dim mamba_headdim mamba_num_heads mamba_n_heads mel_bins "
    "num_mel_bins mamba_dt_rank num_buckets position_bias_num_buckets hc_lowrank gated_norm_rank "
    "attention_head_dim d_rel index_topk laurel_rank attn_head_dim",
    WINDOW: "sliding_window window_size attention_window_size local_attention keep_window_size "
    "sliding_window_size attention_chunk_size local_attention_window_len",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads "
    "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads "
    "num_experts n_routed_experts num_local_experts moe_num_experts swa_num_attention_heads "
    "linear_num_value_heads linear_num_heads index_n_heads rotary_dim n_mamba_heads",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
    "num_decoder_layers num_encoder_layers num_key_value_heads num_kv_heads "
    "num_experts_per_tok num_experts_per_token linear_num_key_heads mamba_n_groups n_groups "
    "moe_topk moe_k swa_num_key_value_heads mamba_ngroups num_dense_layers num_blocks "
    "num_layers_per_stack",
    1: "topk_group n_group num_expert_group first_k_dense_replace n_shared_experts "
    "num_shared_experts num_nextn_predict_layers moe_num_shared_experts prompt_length "
    "max_window_layers",
}  # fmt: skip
"""Sizes by the names of the library's configs."""
NEW = {name: size for size, names in SIZES.items() for name in names.split()}
KINDS = (
    "layer_types layers_block_type mlp_layer_types block_types indexer_types attn_layers".split()
)

ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": dict.fromkeys(
            ("sliding_attention", "full_attention"), ROTARY["rope_parameters"]
        )
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "ffn_hidden_size": 48,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "hidden_size": 32,
        },
    },
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 16, "per_layer_config": None},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"num_experts_per_tok": 2, "n_shared_experts": 1, "n_routed_experts": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "altup_num_inputs": 2,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "per_layer_config": None,
        "global_head_dim": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_layers_per_stack": None, "H_cycles": 1, "L_cycles": 1},
    "hunyuan_v1_dense": {**ROTARY, "head_dim": 8},
    "hunyuan_v1_moe": {**ROTARY, "head_dim": 8, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "ministral": {**ROTARY, "head_dim": 8},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True, "axial_pos_shape": [12, 8], "axial_pos_embds_dim": [16, 16]},
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "attention_head_dim": 16,
        "mamba_dt_rank": 8,
        "attention_hidden_size": 64,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_query_groups": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What a config is given beside that, by model type."""


def tiny(model: Any) -> Any:
    """A config of a few thousand weights for the class `model` of the library."""
    kind = model.config_class
    return _small(kind, kind(), OWN.get(kind.model_type, {}))


def _small(kind: Any, usual: Any, own: dict[str, Any]) -> Any:
    values: dict[str, Any] = {}
    said = usual.to_dict()
    layers = _layers(said)
    for name, value in said.items():
        number = isinstance(value, int) and not isinstance(value, bool)
        if name in layers:
            values[name] = layers[name]
        elif name == "is_decoder":
            values[name] = True
        elif number and name in NEW:
            values[name] = NEW[name]
            if name == "num_key_value_heads" and "kv_lora_rank" in said:
                values[name] = NEW["num_attention_heads"]
            if layers and NEW[name] == 2 and name.endswith(("_layers", "n_layer")):
                values[name] = len(next(iter(layers.values())))
        elif number and name.endswith("_token_id"):
            values[name] = {"bos": 1, "eos": 2}.get(name[:3], 0)
    parts = getattr(kind, "sub_configs", {})
    for name in parts:
        part = getattr(usual, name, None)
        if isinstance(part, transformers.PreTrainedConfig) and name not in own:
            values[name] = _small(type(part), part, own.get(f"{name}.", {})).to_dict()
    values.update({name: value for name, value in own.items() if not name.endswith(".")})
    return kind(**values)


def _layers(said: dict[str, Any]) -> dict[str, list[Any]]:
    """Lists that say for each layer what it is, cut so that every kind is there."""
    lists = {name: said[name] for name in KINDS if isinstance(said.get(name), list) and said[name]}
    if not lists:
        return {}
    length = min(map(len, lists.values()))
    kept: list[int] = []
    seen: set[Any] = set()
    for place in range(length):
        each = [(name, values[place]) for name, values in lists.items()]
        if not seen.issuperset(each):
            seen.update(each)
            kept.append(place)
    kept = kept if len(kept) > 1 else list(range(min(2, length)))
    return {name: [values[place] for place in kept] for name, values in lists.items()}
