"""Couplings of sources, by names of their state dicts, and of bundles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, Qwen3Config

import intaglio
from intaglio.exporter.coupled import couplings, couplings_of_bundle
from intaglio.exporter.sources.load import load_source
from intaglio.models.llama import Config, build
from intaglio.passes.analysis.coupling import Coupling, permuted
from intaglio.runtime.bundle import Bundle

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 40,
}


def tied() -> nn.Module:
    torch.manual_seed(0)
    return build(
        Config(
            hidden_size=32, intermediate_size=40, num_layers=1, vocab_size=40, tie_embeddings=True
        )
    )


def of_library(config: Any) -> nn.Module:
    made: Any = AutoModelForCausalLM
    module: nn.Module = made.from_config(config)
    return module


def qwen() -> nn.Module:
    return of_library(Qwen3Config(**SIZES, intermediate_size=40, num_key_value_heads=2, head_dim=8))


def opt() -> nn.Module:
    return of_library(
        OPTConfig(**SIZES, ffn_dim=40, word_embed_proj_dim=32, max_position_embeddings=64)
    )


def gpt2() -> nn.Module:
    return of_library(
        GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=40, bos_token_id=0, eos_token_id=0)
    )


def expected(module: nn.Module) -> list[int]:
    """Sizes of the groups of a family: residual stream, feed-forward, heads, their channels."""
    return {
        "Qwen3ForCausalLM": [2, 2, 8, 32, 40],  # pairs need the table of positions, which no
        "LanguageModel": [2, 2, 8, 32, 40],  # state dict holds
        "OPTForCausalLM": [4, 8, 8, 32, 40],
        "GPT2LMHeadModel": [4, 8, 8, 32, 128],
    }[type(module).__name__]


@pytest.mark.parametrize("make", [tied, qwen, opt, gpt2])
def test_a_permuted_state_dict_is_the_same_model(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    module: Any = make().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    path: Any = module
    if hasattr(module, "save_pretrained"):
        module.save_pretrained(tmp_path / "saved")
        path = tmp_path / "saved"
    inputs: Any = {} if path is not module else {"inputs": {"input_ids": torch.arange(8)[None]}}
    groups = couplings(load_source(path, **inputs))
    random = np.random.default_rng(0)
    orders = {group.name: random.permutation(group.size) for group in groups}
    twin = make().eval()
    twin.load_state_dict(permuted(module.state_dict(), groups, orders))
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        wanted, found = (_logits(each, ids) for each in (module, twin))
    moved = [n for n, x in module.state_dict().items() if not torch.equal(x, twin.state_dict()[n])]

    assert sorted(group.size for group in groups) == expected(module)
    assert len(moved) > len(groups)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _logits(module: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found = module(ids)
    logits: torch.Tensor = found if isinstance(found, torch.Tensor) else found.logits
    return logits


def test_tied_weights_are_permuted_under_each_of_their_names() -> None:
    groups = couplings(tied().eval(), inputs={"input_ids": torch.arange(8)[None]})
    (stream,) = (group for group in groups if group.size == 32)
    assert {"embed_tokens.weight", "lm_head.weight"} <= set(stream.weights)


def test_a_bundle_tells_the_groups_of_its_source(tmp_path: Path) -> None:
    """Caches are permuted with what writes and reads them, the folded table with its pairs."""
    module = tied().eval()
    inputs = {"input_ids": torch.arange(8)[None]}
    intaglio.export(module, tmp_path / "bundle", inputs=inputs, verify=False)
    found = couplings_of_bundle(Bundle.open(tmp_path / "bundle").graph())

    def of(groups: list[Coupling]) -> list[int]:
        return sorted(group.size for group in groups)

    assert of(found) == sorted([*of(couplings(module, inputs=inputs)), 4])
