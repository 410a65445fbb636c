"""A LoRA of the library PEFT, scaled as it says."""

import json
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
    [({}, 3.0), ({"use_rslora": True}, 6 / 2**0.5), ({"alpha_pattern": {"proj": 4}}, 2.0)],
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
    ],
)
def test_what_is_no_lora_of_this_model(
    tmp_path: Path, layer: str, config: dict[str, Any], words: str
) -> None:
    assert is_peft(write(tmp_path, layer, **config))
    with pytest.raises(SourceError, match=words):
        read_peft(tmp_path, MODULE)
