"""The library's experts and what replaces them say the same."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DbrxConfig, Llama4TextConfig, LongcatFlashConfig
from transformers.models.dbrx import modeling_dbrx
from transformers.models.llama4 import modeling_llama4
from transformers.models.longcat_flash import modeling_longcat_flash

from intaglio.exporter.tracing.experts import EXPERTS

DBRX: Any = modeling_dbrx
LLAMA: Any = modeling_llama4
LONGCAT: Any = modeling_longcat_flash
SIZE, ROWS = 8, 15


def drawn(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.requires_grad_(requires_grad=False).eval()


def agree(layer: Any, *inputs: Tensor) -> None:
    replacement = EXPERTS[f"{type(layer).__name__}.forward"]
    torch.testing.assert_close(
        replacement(layer, *inputs), layer(*inputs), rtol=1e-5, atol=1e-4, equal_nan=False
    )


def chosen(experts: int) -> tuple[Tensor, Tensor]:
    weights, index = torch.randn(ROWS, experts).softmax(-1).topk(2)
    return index, weights


def test_experts_that_lie_in_one_matrix() -> None:
    config: Any = DbrxConfig().ffn_config
    config.hidden_size, config.ffn_hidden_size, config.moe_num_experts = SIZE, 12, 4
    layer = drawn(DBRX.DbrxExperts(config))
    agree(layer, torch.randn(3, ROWS // 3, SIZE), *chosen(4))


def test_experts_that_take_inputs_scaled_by_their_scores() -> None:
    config: Any = Llama4TextConfig(
        hidden_size=SIZE, intermediate_size=12, intermediate_size_mlp=12, num_local_experts=4
    )
    agree(drawn(LLAMA.Llama4TextMoe(config)), torch.randn(3, ROWS // 3, SIZE))


def test_experts_of_which_some_give_back_what_they_take() -> None:
    config: Any = LongcatFlashConfig(
        hidden_size=SIZE, expert_ffn_hidden_size=12, n_routed_experts=3, zero_expert_num=2
    )
    layer = drawn(LONGCAT.LongcatFlashExperts(config))
    agree(layer, torch.randn(ROWS, SIZE), *chosen(5))
