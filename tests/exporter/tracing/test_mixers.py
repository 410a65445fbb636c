"""The library's recurrences and what replaces them say the same, in each spelling of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MiniMaxConfig, RecurrentGemmaConfig
from transformers.models.kimi_linear import modeling_kimi_linear
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2
from transformers.models.minimax import modeling_minimax
from transformers.models.qwen3_next import modeling_qwen3_next
from transformers.models.recurrent_gemma import modeling_recurrent_gemma

from intaglio.exporter.tracing import mixers

LIBRARY: Any = modeling_mamba2
SELECTIVE: Any = modeling_mamba
DELTA: Any = modeling_qwen3_next
KIMI: Any = modeling_kimi_linear
MINIMAX: Any = modeling_minimax
GEMMA: Any = modeling_recurrent_gemma
TIME = 11  # more than a chunk, and no multiple of one


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("gated", [False, True])
def test_selective_scans_are_diagonal_state_space_models(gated: bool) -> None:
    """Step sizes with and without a bias, and the paths around the scan."""
    options: dict[str, Any] = {"delta_softplus": gated}
    options |= {"D": normal(4), "z": normal(2, 4, TIME), "delta_bias": normal(4)} if gated else {}
    dt = normal(2, 4, TIME) if gated else normal(2, 4, TIME).abs()
    arguments = (normal(2, 4, TIME).flip(0), dt, -normal(4, 5).exp())
    b, c = normal(2, 5, TIME), normal(2, 5, TIME).flip(1)
    wanted = SELECTIVE.mamba_selective_scan(*arguments, b, c, **options)

    torch.testing.assert_close(
        mixers.selective_scan(*arguments, b, c, **options), wanted, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("limited", [False, True])
def test_scans_in_chunks_are_gated_linear_attention(groups: int, limited: bool) -> None:
    """Groups of heads, step sizes with a bias and a limit, and the path around the scan."""
    options: dict[str, Any] = {"dt_softplus": True, "dt_limit": (0.1, 0.9)} if limited else {}
    dt = normal(2, TIME, 4) if limited else normal(2, TIME, 4).abs()
    arguments = (normal(2, TIME, 4, 6), dt, -normal(4).exp())
    b, c = normal(2, TIME, groups, 5), normal(2, TIME, groups, 5).flip(1)
    options |= {"D": normal(4), "dt_bias": normal(4).abs()} if limited else {}
    wanted = LIBRARY.mamba2_chunk_scan(*arguments, b, c, 4, **options)

    torch.testing.assert_close(
        mixers.chunk_scan(*arguments, b, c, 4, **options), wanted, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("normed", [False, True])
def test_delta_rules_in_chunks_are_gated_delta_attention(heads: int, normed: bool) -> None:
    """Value heads that share a key head, and keys of any or of unit length."""
    query, key = normal(2, TIME, 2, 6) / 3, normal(2, TIME, 2, 6).flip(1) / 3
    value, decay = normal(2, TIME, heads, 5), -normal(2, TIME, heads).abs()
    beta = normal(2, TIME, heads).sigmoid()
    arguments = (query, key, value, decay, beta, 4)
    wanted, _ = DELTA.torch_chunk_gated_delta_rule(*arguments, use_qk_l2norm_in_kernel=normed)
    found, state = mixers.gated_delta_rule(*arguments, use_qk_l2norm_in_kernel=normed)

    assert state is None
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_kimi_delta_attention_decays_each_channel_of_the_keys() -> None:
    query, key = normal(2, TIME, 2, 6) / 3, normal(2, TIME, 2, 6).flip(1) / 3
    decay, beta = -normal(2, TIME, 2, 6).abs(), normal(2, TIME, 2).sigmoid()
    arguments = (query, key, normal(2, TIME, 2, 5), decay, beta)
    options: dict[str, Any] = {"chunk_size": 4, "use_qk_l2norm_in_kernel": True}
    wanted, _ = KIMI.chunk_kimi_delta_attention(*arguments, **options)
    found, _ = mixers.kimi_delta_rule(*arguments, **options)

    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_lightning_attention_decays_each_head_by_its_slope() -> None:
    """Over more tokens than a block has, in the layer whose slopes are not near zero."""
    config: Any = MiniMaxConfig(
        hidden_size=32, num_attention_heads=4, head_dim=8, block_size=4, num_hidden_layers=2
    )
    config.layer_types = ["linear_attention"] * 2
    layer = MINIMAX.MiniMaxLightningAttention(config, layer_idx=0).eval()
    x = normal(2, TIME, 32)
    (wanted, last), (found, state) = (
        forward(layer, x, None, None)
        for forward in (type(layer).forward, mixers.lightning_attention)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_real_gated_linear_recurrences_start_at_the_first_position() -> None:
    config: Any = RecurrentGemmaConfig(hidden_size=32, lru_width=32, num_attention_heads=4)
    layer = GEMMA.RecurrentGemmaRglru(config).eval()
    reset = (torch.arange(TIME) == 0)[None, :, None]
    arguments = (layer, normal(2, TIME, 32), normal(2, TIME, 32).sigmoid(), reset)
    wanted, last = GEMMA.RecurrentGemmaRglru._rnn_scan(*arguments, None)
    found, state = mixers.gated_linear_recurrence(*arguments, None)

    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_a_state_is_neither_taken_nor_given() -> None:
    """A module with its cache turned on is not what is traced."""
    x = normal(1, 3, 2, 4)
    for option in ({"output_final_state": True}, {"initial_state": normal(1, 2, 4, 4)}):
        with pytest.raises(TypeError, match="asked for a state"):
            mixers.gated_delta_rule(x, x, x, x[..., 0], x[..., 0], **option)
