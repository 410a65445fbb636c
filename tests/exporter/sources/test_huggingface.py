"""Hugging Face directories: the library's own modules become step engines, whatever the family.

Directories are made in the test, tiny and random; the module that was saved is the judge.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import intaglio
from intaglio.exporter.load import load_source
from intaglio.runtime import Session

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(path)
    return path


def test_a_directory_becomes_a_step_engine(llama: Path, tmp_path: Path) -> None:
    """Tokens one by one give what the library's own full forward gives, under its own names."""
    report = intaglio.export(llama, tmp_path / "bundle", steps=70, check_passes=True)
    ids = np.random.default_rng(0).integers(0, 128, (2, 20))
    session = Session.load(tmp_path / "bundle")
    found = [session.step({"input_ids": ids[:, t : t + 1]})["logits"] for t in range(20)]

    module = transformers.AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        expected = module(torch.from_numpy(ids)).logits.numpy()

    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-5)
    assert [spec.module for spec in report.manifest.states[::2]] == [
        f"model.layers.{i}.self_attn" for i in (0, 1)
    ]


def test_parameters_keep_the_names_of_the_checkpoint(llama: Path) -> None:
    source = load_source(llama)

    assert source.model == "LlamaForCausalLM"
    assert "model.layers.1.self_attn.q_proj.weight" in dict(source.module.named_parameters())
