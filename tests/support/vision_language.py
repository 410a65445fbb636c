"""Tiny vision-language models of the library, with random weights, saved as directories."""

from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY, MARKER, EDGE = 64, 60, 8
LIBRARY: Any = transformers  # partly without types

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": EDGE, "patch_size": 4,
}  # fmt: skip


def llava() -> Any:
    """One picture a row, its features where its tokens stand."""
    vision = LIBRARY.CLIPVisionConfig(**{**VISION, "num_hidden_layers": 2}, projection_dim=16)
    config = LIBRARY.LlavaConfig(
        vision_config=vision, text_config=LIBRARY.LlamaConfig(**TEXT), image_token_index=MARKER,
        vision_feature_layer=-1,
    )  # fmt: skip
    return LIBRARY.LlavaForConditionalGeneration(config)


def smolvlm() -> Any:
    """Several pictures a row, of which four entries each become one feature."""
    config = LIBRARY.SmolVLMConfig(
        vision_config=LIBRARY.SmolVLMVisionConfig(**{**VISION, "patch_size": 2}),
        text_config=LIBRARY.LlamaConfig(**TEXT), image_token_id=MARKER, scale_factor=2,
    )  # fmt: skip
    return LIBRARY.SmolVLMForConditionalGeneration(config)


def gemma3() -> Any:
    """Tokens of one picture see each other, in windows and in full."""
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    text = LIBRARY.Gemma3TextConfig(
        **{**TEXT, **layers}, head_dim=8, sliding_window=6, query_pre_attn_scalar=8
    )
    config = LIBRARY.Gemma3Config(
        vision_config=LIBRARY.SiglipVisionConfig(**VISION), text_config=text,
        mm_tokens_per_image=4, image_token_index=MARKER,
    )  # fmt: skip
    return LIBRARY.Gemma3ForConditionalGeneration(config)


def paligemma() -> Any:
    """All tokens of the prompt see each other."""
    config = LIBRARY.PaliGemmaConfig(
        vision_config=LIBRARY.SiglipVisionConfig(**VISION), projection_dim=32, hidden_size=32,
        text_config=LIBRARY.GemmaConfig(**TEXT, head_dim=8), image_token_index=MARKER,
    )  # fmt: skip
    return LIBRARY.PaliGemmaForConditionalGeneration(config)


GRID: dict[str, Any] = {
    "patch_size": 4, "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "num_heads": 2, "depth": 2,
}  # fmt: skip
NUMBERS = 3 * 2 * 4 * 4  # of a patch
ROTATED = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def qwen2_vl() -> Any:
    """Patches of a grid, and tokens that count in time, height and width."""
    return _of_grid("Qwen2VL", embed_dim=16, hidden_size=32, mlp_ratio=2)


def qwen2_5_vl() -> Any:
    """As `qwen2_vl`, with windows of four by four patches in one of two layers."""
    windows = {"window_size": 16, "fullatt_block_indexes": [1]}
    sizes = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
    return _of_grid("Qwen2_5_VL", **windows, **sizes)


def _of_grid(name: str, **vision: Any) -> Any:
    config = getattr(LIBRARY, f"{name}Config")(
        vision_config={**GRID, **vision}, text_config={**TEXT, "rope_parameters": ROTATED},
        image_token_id=MARKER, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63,
    )  # fmt: skip
    return getattr(LIBRARY, f"{name}ForConditionalGeneration")(config)


def save(model: Any, path: Path) -> Any:
    """Save a model with weights drawn wide; return it as the library reads it back."""
    torch.set_num_threads(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(4)
    model.save_pretrained(path)
    judge = type(model).from_pretrained(path).eval()
    judge.generation_config.eos_token_id = None
    return judge


def unequal_prompts(places: int) -> list[torch.Tensor]:
    """Three prompts of unequal length: two with a picture of so many tokens, one without."""
    words, marks = torch.randint(3, 50, (3, 12)), torch.full((places,), MARKER)
    return [
        torch.cat([words[0, :2], marks, words[0, 2:5]]),
        torch.cat([words[1, :6], marks, words[1, 6:]]),
        words[2, :7],
    ]


def greedy(judge: Any, count: int, **given: torch.Tensor) -> torch.Tensor:
    """What the library generates behind a prompt, with its own cache."""
    ids = given["input_ids"]
    with torch.no_grad():
        tokens: torch.Tensor = judge.generate(
            **given, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
        )
    return tokens[:, ids.shape[1] :]
