"""Families of Hugging Face as tiny configs, and directories of random weights of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from intaglio.quiet import quiet

LIBRARY: Any = transformers  # partly without types
VOCABULARY, WIDER = 128, 4.0


@dataclass(frozen=True)
class Family:
    """A family: the library's names of its model and its config, and what the config is given.

    One with `vision`, the values of that part, is given a picture for each row.
    """

    name: str
    model: str
    config: str
    values: dict[str, Any]
    vision: dict[str, Any] | None = None


BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 512, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**BASE, "num_key_value_heads": 2, "head_dim": 8}
SHARED = {**BASE, "num_key_value_heads": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512,
        "bos_token_id": None, "eos_token_id": None}  # fmt: skip
BERT = {**BASE, "max_position_embeddings": 300}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
PAIR = {"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
        "forced_eos_token_id": None}  # fmt: skip
MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
         "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}  # fmt: skip
DELTA = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
         "linear_num_value_heads": 4}  # fmt: skip
HYBRID = {**GROUPED, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
          "mamba_n_groups": 2, "mamba_expand": 2, "mamba_chunk_size": 16}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}

TEXT: dict[str, Any] = {**SHARED, "pad_token_id": 0}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 2, "image_size": 8, "patch_size": 2}  # fmt: skip
PATCHES = {"depth": 2, "num_heads": 2, "patch_size": 4, "in_channels": 3,
           "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
ROTATED = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
GRID = (4, 6, 96)  # patches in height and width, and numbers of a patch
PICTURE = 120  # the token that stands for a part of a picture

FAMILIES = (
    Family("Llama", "LlamaForCausalLM", "LlamaConfig", GROUPED),
    Family("Qwen3", "Qwen3ForCausalLM", "Qwen3Config", GROUPED),
    Family("Mistral", "MistralForCausalLM", "MistralConfig", {**GROUPED, "sliding_window": 6}),
    Family("Gemma-3", "Gemma3ForCausalLM", "Gemma3TextConfig", {**GROUPED, **LAYERS}),
    Family("GPT-2", "GPT2LMHeadModel", "GPT2Config", GPT2),
    Family("Mamba", "MambaForCausalLM", "MambaConfig", MAMBA),
    Family("Mamba-2", "Mamba2ForCausalLM", "Mamba2Config",
           {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16}),
    Family("Qwen3-Next", "Qwen3NextForCausalLM", "Qwen3NextConfig",
           {**GROUPED, **EXPERTS, "layer_types": ["linear_attention", "full_attention"],
            **DELTA, "num_experts": 4, "mlp_only_layers": [],
            "shared_expert_intermediate_size": 16}),
    Family("BERT", "BertForMaskedLM", "BertConfig", BERT),
    Family("Falcon-Mamba", "FalconMambaForCausalLM", "FalconMambaConfig", MAMBA),
    Family("Bamba", "BambaForCausalLM", "BambaConfig", {**HYBRID, "attn_layer_indices": [1]}),
    Family("Zamba-2", "Zamba2ForCausalLM", "Zamba2Config",
           {**BASE, "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 2,
            "chunk_size": 16, "layers_block_type": ["mamba", "hybrid"]}),
    Family("Falcon-H1", "FalconH1ForCausalLM", "FalconH1Config", {**HYBRID, "mamba_d_ssm": 64}),
    Family("Granite-4", "GraniteMoeHybridForCausalLM", "GraniteMoeHybridConfig",
           {**HYBRID, "layer_types": ["mamba", "attention"], "num_local_experts": 4,
            "num_experts_per_tok": 2, "shared_intermediate_size": 16}),
    Family("Nemotron-H", "NemotronHForCausalLM", "NemotronHConfig",
           {**GROUPED, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8,
            "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2, "chunk_size": 16}),
    Family("Jamba", "JambaForCausalLM", "JambaConfig",
           {**SHARED, "mamba_d_state": 8, "num_experts": 2, "attn_layer_period": 2,
            "attn_layer_offset": 1}),
    Family("Qwen3.5", "Qwen3_5ForCausalLM", "Qwen3_5TextConfig",
           {**GROUPED, **DELTA, "layer_types": ["linear_attention", "full_attention"]}),
    Family("OLMo-Hybrid", "OlmoHybridForCausalLM", "OlmoHybridConfig",
           {**SHARED, **DELTA, "layer_types": ["linear_attention", "full_attention"]}),
    Family("LFM2", "Lfm2ForCausalLM", "Lfm2Config",
           {**SHARED, "layer_types": ["conv", "full_attention"]}),
    Family("RecurrentGemma", "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig",
           {**SHARED, "block_types": ["recurrent", "attention"], "attention_window_size": 6,
            "lru_width": 32}),
    Family("RWKV-4", "RwkvForCausalLM", "RwkvConfig",
           {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
            "attention_hidden_size": 32, "intermediate_size": 48, "bos_token_id": None,
            "eos_token_id": None}),
    Family("DistilBERT", "DistilBertForMaskedLM", "DistilBertConfig",
           {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4,
            "max_position_embeddings": 300}),
    Family("RoBERTa", "RobertaForMaskedLM", "RobertaConfig", {**BERT, "type_vocab_size": 1}),
    Family("ModernBERT", "ModernBertForMaskedLM", "ModernBertConfig",
           {**BERT, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}),
    Family("T5 encoder", "T5EncoderModel", "T5Config",
           {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
            "num_heads": 4}),
    Family("T5", "T5ForConditionalGeneration", "T5Config",
           {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
            "num_heads": 4, "decoder_start_token_id": 0}),
    Family("BART", "BartForConditionalGeneration", "BartConfig", PAIR),
    Family("mBART", "MBartForConditionalGeneration", "MBartConfig", PAIR),
    Family("Marian", "MarianMTModel", "MarianConfig", PAIR),
    Family("Pegasus", "PegasusForConditionalGeneration", "PegasusConfig", PAIR),
    Family("Blenderbot", "BlenderbotForConditionalGeneration", "BlenderbotConfig", PAIR),
    Family("M2M-100", "M2M100ForConditionalGeneration", "M2M100Config", PAIR),
    Family("Whisper", "WhisperForConditionalGeneration", "WhisperConfig",
           {**PAIR, "max_source_positions": 20, "max_target_positions": 512, "num_mel_bins": 8,
            "suppress_tokens": None, "begin_suppress_tokens": None}),
    Family("LLaVA", "LlavaForConditionalGeneration", "LlavaConfig",
           {"text_config": {"model_type": "llama", **TEXT}, "vision_feature_layer": -1},
           {"model_type": "clip_vision_model", **VISION, "projection_dim": 16}),
    Family("SmolVLM", "SmolVLMForConditionalGeneration", "SmolVLMConfig",
           {"text_config": {"model_type": "llama", **TEXT}, "scale_factor": 2}, VISION),
    Family("Idefics-3", "Idefics3ForConditionalGeneration", "Idefics3Config",
           {"text_config": {"model_type": "llama", **TEXT}, "scale_factor": 2}, VISION),
    Family("Gemma-3 with pictures", "Gemma3ForConditionalGeneration", "Gemma3Config",
           {"text_config": {**GROUPED, **LAYERS}, "mm_tokens_per_image": 4}, VISION),
    Family("PaliGemma", "PaliGemmaForConditionalGeneration", "PaliGemmaConfig",
           {"text_config": {"model_type": "gemma", **GROUPED}, "projection_dim": 32,
            "hidden_size": 32}, {"model_type": "siglip_vision_model", **VISION}),
    Family("Qwen2-VL", "Qwen2VLForConditionalGeneration", "Qwen2VLConfig",
           {"text_config": {**TEXT, "rope_parameters": ROTATED}},
           {**PATCHES, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}),
    Family("Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig",
           {"text_config": {**TEXT, "rope_parameters": ROTATED}},
           {**PATCHES, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24,
            "window_size": 16, "fullatt_block_indexes": [1]}),
    Family("Phi", "PhiForCausalLM", "PhiConfig", SHARED),
    Family("Phi-3", "Phi3ForCausalLM", "Phi3Config", SHARED),
    Family("Qwen2", "Qwen2ForCausalLM", "Qwen2Config", SHARED),
    Family("OLMo-2", "Olmo2ForCausalLM", "Olmo2Config", SHARED),
    Family("SmolLM3", "SmolLM3ForCausalLM", "SmolLM3Config", SHARED),
    Family("StableLM", "StableLmForCausalLM", "StableLmConfig", SHARED),
    Family("Starcoder-2", "Starcoder2ForCausalLM", "Starcoder2Config", SHARED),
    Family("Granite", "GraniteForCausalLM", "GraniteConfig", SHARED),
    Family("Gemma", "GemmaForCausalLM", "GemmaConfig", GROUPED),
    Family("GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig", BASE),
    Family("Cohere", "CohereForCausalLM", "CohereConfig", SHARED),
    Family("Falcon", "FalconForCausalLM", "FalconConfig",
           {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True,
            "bos_token_id": None, "eos_token_id": None}),
    Family("OPT", "OPTForCausalLM", "OPTConfig",
           {**BASE, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    Family("Gemma-2", "Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "sliding_window": 6}),
    Family("GPT-J", "GPTJForCausalLM", "GPTJConfig", {**GPT2, "rotary_dim": 4}),
    Family("GPT-Neo", "GPTNeoForCausalLM", "GPTNeoConfig",
           {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
            "attention_types": [[["global", "local"], 1]], "window_size": 6,
            "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None}),
    Family("Bloom", "BloomForCausalLM", "BloomConfig",
           {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4,
            "bos_token_id": None, "eos_token_id": None}),
    Family("Mixtral", "MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    Family("Qwen3-MoE", "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
           {**GROUPED, **EXPERTS, "num_experts": 4}),
    Family("GPT-OSS", "GptOssForCausalLM", "GptOssConfig",
           {**GROUPED, **LAYERS, "num_local_experts": 4}),
)  # fmt: skip


def save(family: Family, path: Path) -> Any:
    """Write a random directory; return the module as the library reads it back."""
    torch.manual_seed(0)
    parts = {} if family.vision is None else {"vision_config": family.vision}
    config = getattr(LIBRARY, family.config)(**family.values, **parts)
    if family.vision is not None:  # by either of its names
        config.image_token_id = config.image_token_index = PICTURE
    with quiet(), torch.no_grad():
        module = getattr(LIBRARY, family.model)(config)
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(WIDER)
        module.save_pretrained(path)
        kind = getattr(LIBRARY, family.model)
        return kind.from_pretrained(path, attn_implementation="eager").eval()
