"""Families with a state of one size for texts of any length, held to the library."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import intaglio
from intaglio.runtime import Session, generate

LIBRARY: Any = transformers  # partly without types
VOCABULARY, TIME = 31, 20
SCAN: dict[str, Any] = {
    "state_size": 4,
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
}
FAMILIES: dict[str, tuple[Any, list[str]]] = {
    "mamba": (transformers.MambaConfig(**SCAN, eos_token_id=None), ["causal_conv", "diagonal_ssm"]),
    "mamba2": (
        transformers.Mamba2Config(
            **SCAN, num_heads=8, head_dim=4, n_groups=2, chunk_size=4, eos_token_id=None
        ),
        ["causal_conv", "linear_attention"],
    ),
    "qwen3_next": (
        LIBRARY.Qwen3NextConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, eos_token_id=None,
            layer_types=["linear_attention", "full_attention"], num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, linear_key_head_dim=4, linear_value_head_dim=4,
            linear_num_key_heads=2, linear_num_value_heads=4, num_experts=3, num_experts_per_tok=2,
            moe_intermediate_size=8, shared_expert_intermediate_size=8, intermediate_size=8,
            mlp_only_layers=[1],
        ),
        ["causal_conv", "linear_attention", "attention", "attention"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recurrent_family_steps_as_the_library_does(family: str, tmp_path: Path) -> None:
    """Its full forward, its greedy tokens with its own cache, and states of the kinds it has."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config, kinds = FAMILIES[family]
    judge = LIBRARY.AutoModelForCausalLM.from_config(config).eval()
    judge.save_pretrained(tmp_path / "source")
    report = intaglio.export(tmp_path / "source", tmp_path / "bundle", steps=TIME)
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (2, TIME))
    session = Session.load(tmp_path / "bundle", threads=1)
    parts = [session.step({"input_ids": ids[:, a:b]})["logits"] for a, b in ((0, 9), (9, TIME))]
    prompt = torch.from_numpy(ids[:1])
    with torch.no_grad():
        expected = judge(torch.from_numpy(ids)).logits.numpy()
        mask = torch.ones_like(prompt)
        wanted = judge.generate(prompt, attention_mask=mask, max_new_tokens=12, do_sample=False)
    session.state.reset()

    assert [spec.op for spec in report.manifest.main.states] == kinds
    assert report.parity is not None
    assert report.parity.unknown == ()  # each state was compared with the source's own
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=1e-4, atol=1e-5)
    assert list(generate(session, ids[0], max_new_tokens=12)) == wanted[0, TIME:].tolist()
