"""A LoRA of the library PEFT, scaled as it says."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.peft import is_peft, read_peft

A, B = torch.arange(8.0).reshape(2, 4), torch.arange(6.0).reshape(3, 2)
MODULE = nn.ModuleDict({"body": nn.ModuleDict({"proj": nn.Linear(4, 3)})})


def write(folder: Path, layer: str = "body.proj", **config: Any) -> Path:
    tensors: dict[str, Tensor] = {
        f"base_model.model.{layer}.lora_A.weight": A.clone(),
        f"base_model.model.{layer}.lora_B.weight": B.clone(),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "lora_alpha": 6, "r": 2, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"proj": 4}}, 2.0),
        ({"alpha_pattern": {"roj": 4}, "init_lora_weights": True, "lora_dropout": 0.1}, 3.0),
    ],
)
def test_the_product_is_scaled(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    """By alpha over the rank, over its root, or by the alpha of a layer."""
    parts = read_peft(write(tmp_path, **config), MODULE).parts["body.proj.weight"]
    np.testing.assert_allclose(parts["up"] @ parts["down"], scale * (B @ A).numpy(), rtol=1e-6)


def test_a_turned_weight_has_the_turned_product(tmp_path: Path) -> None:
    module = nn.ModuleDict({"body": nn.ModuleDict({"proj": nn.Linear(3, 4)})})
    parts = read_peft(write(tmp_path, fan_in_fan_out=True), module).parts["body.proj.weight"]
    np.testing.assert_allclose(parts["up"] @ parts["down"], 3 * (B @ A).T.numpy(), rtol=1e-6)


def test_a_layer_is_found_below_the_head_of_a_model(tmp_path: Path) -> None:
    assert list(read_peft(write(tmp_path, "proj"), MODULE).parts) == ["body.proj.weight"]


@pytest.mark.parametrize(
    ("layer", "config", "words"),
    [
        ("proj", {"peft_type": "IA3"}, "'IA3'"),
        ("proj", {"use_dora": True}, "use_dora"),
        ("proj", {"bias": "all"}, "bias"),
        ("other", {}, "no such layer"),
        ("proj", {"lora_alpha": "much"}, "no number"),
        ("proj", {"lora_alpha": math.nan}, "no number"),
        ("proj", {"lora_alpha": 10**400}, "no number"),
        ("proj", {"r": 3}, "has the rank 3; it has 2"),
        ("proj", {"rank_pattern": {"proj": 8}}, "has the rank 8; it has 2"),
        ("proj", {"rank_pattern": [8]}, "no table of layers"),
        ("proj", {"alpha_pattern": {"(a+)+$": 4}}, "by the pattern"),
        ("proj", {"init_lora_weights": "pissa"}, "started from 'pissa'"),
        ("proj", {"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ],
)
def test_what_is_no_lora_of_this_model(
    tmp_path: Path, layer: str, config: dict[str, Any], words: str
) -> None:
    assert is_peft(write(tmp_path, layer, **config))
    with pytest.raises(SourceError, match=words):
        read_peft(tmp_path, MODULE)


def test_weights_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    folder = write(tmp_path)
    held = {"lora_A": torch.full((2, 4), math.nan), "lora_B": B.clone()}
    tensors = {f"base_model.model.proj.{part}.weight": each for part, each in held.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(SourceError, match="holds NaN or Inf"):
        read_peft(folder, MODULE)
