"""The library's experts and what replaces them say the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DbrxConfig,
    JetMoeConfig,
    Llama4TextConfig,
    LongcatFlashConfig,
    XmodConfig,
)
from transformers.models.dbrx import modeling_dbrx
from transformers.models.jetmoe import modeling_jetmoe
from transformers.models.llama4 import modeling_llama4
from transformers.models.longcat_flash import modeling_longcat_flash
from transformers.models.xmod import modeling_xmod

from intaglio.exporter.tracing.experts import EXPERTS

DBRX: Any = modeling_dbrx
JETMOE: Any = modeling_jetmoe
LLAMA: Any = modeling_llama4
LONGCAT: Any = modeling_longcat_flash
XMOD: Any = modeling_xmod
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


@pytest.mark.parametrize("before", [False, True])
def test_experts_of_the_language_of_a_row(before: bool) -> None:
    config: Any = XmodConfig(
        hidden_size=SIZE, intermediate_size=12, languages=["a", "b", "c"], ln_before_adapter=before,
        adapter_layer_norm=before,
    )  # fmt: skip
    layer: Any = drawn(XMOD.XmodOutput(config))
    ids, x = torch.tensor([2.0, 0.0, 2.0]), torch.randn(3, ROWS // 3, SIZE)
    found = EXPERTS["XmodOutput.lang_adapter"](layer, ids, x)
    torch.testing.assert_close(found, layer.lang_adapter(ids, x), rtol=1e-5, atol=1e-4)


def test_gated_experts_whose_rows_the_library_sorts() -> None:
    config: Any = JetMoeConfig(hidden_size=SIZE, intermediate_size=12, num_local_experts=4)
    agree(drawn(JETMOE.JetMoeMoE(config)), torch.randn(3, ROWS // 3, SIZE))


def test_experts_of_queries_and_of_what_they_found() -> None:
    """Whether these are told by the library's own order of rows, or by the replacement's."""
    config: Any = JetMoeConfig(
        hidden_size=SIZE, kv_channels=3, num_key_value_heads=2, num_local_experts=4
    )
    layer: Any = drawn(JETMOE.JetMoeMoA(config))
    x = torch.randn(3, ROWS // 3, SIZE)
    wanted, logits, sorted_ = layer.map(x)
    queries, scores, chosen = EXPERTS["JetMoeMoA.map"](layer, x)
    torch.testing.assert_close((queries, scores), (wanted, logits), rtol=1e-5, atol=1e-4)
    result = layer.reduce(wanted, sorted_)
    for told in (sorted_, chosen):
        found = EXPERTS["JetMoeMoA.reduce"](layer, queries, told)
        torch.testing.assert_close(found, result, rtol=1e-5, atol=1e-4)
