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
from intaglio.exporter.sources.adapted import fuse
from intaglio.exporter.sources.peft import is_peft, read_peft
from intaglio.runtime.adapters import Adapter

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


def test_whole_parameters_take_the_place_of_the_models(tmp_path: Path) -> None:
    """Biases too, whether the file has the name of the copy or that of the module."""
    linear, norm = nn.Linear(4, 3), nn.LayerNorm(3)
    module = nn.Sequential(linear, norm)
    tensors = {
        "base_model.model.0.lora_A.default.weight": A,
        "base_model.model.0.lora_B.default.weight": B,
        "base_model.model.0.bias": torch.ones(3),
        "base_model.model.1.modules_to_save.default.weight": torch.full((3,), 2.0),
    }
    config = {"peft_type": "LORA", "lora_alpha": 6, "r": 2, "modules_to_save": ["0", "1"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    torch.save(tensors, tmp_path / "checkpoint.pt")
    wanted = linear.weight.detach() + 3 * B @ A
    read_peft(tmp_path, module).save(tmp_path / "whole.npz")
    fuse(module, Adapter.read(tmp_path / "whole.npz"))
    torch.testing.assert_close(linear.weight.detach(), wanted)
    assert (linear.bias == 1).all()
    assert (norm.weight == 2).all()
    torch.save(tensors | {"base_model.model.1.bias": torch.zeros(4)}, tmp_path / "checkpoint.pt")
    with pytest.raises(SourceError, match=r"1.bias has the shape \(4,\), and the base's \(3,\)"):
        fuse(module, read_peft(tmp_path, module))


def test_a_weight_that_is_used_twice_is_not_changed_for_one(tmp_path: Path) -> None:
    """The head of a model whose embedding is the same weight."""
    module = nn.ModuleDict({"head": nn.Linear(4, 3), "embed": nn.Embedding(3, 4)})
    module["head"].weight = module["embed"].weight
    with pytest.raises(SourceError, match=r"changes head.weight alone.* the same weight as embed"):
        read_peft(write(tmp_path, "head"), module)


def test_the_official_keys_of_safe_eraser_are_those_of_llava(tmp_path: Path) -> None:
    """At full size, by the names that the library gave the layers when they were trained."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    with torch.device("meta"):
        module = LlavaForConditionalGeneration(LlavaConfig())
    keys = json.loads((Path(__file__).parents[2] / "data/keys/safe_eraser.json").read_text())
    rank, alpha = keys["config"]["r"], keys["config"]["lora_alpha"]
    made = {  # of rank 1, which is as quick as it is small; saved with their gradients on
        name: torch.ones(1, requires_grad=True)
        .half()
        .expand([1 if size == rank else size for size in shape])
        for name, shape in keys["keys"].items()
    }
    config = keys["config"] | {"r": 1, "lora_alpha": alpha // rank}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    torch.save(made, tmp_path / "checkpoint.pt")
    parts = read_peft(tmp_path, module).parts
    assert len(parts) == 32 * 7 + 4
    shapes = {name: tuple(each.shape) for name, each in module.named_parameters()}
    for name, found in parts.items():
        if "value" in found:
            assert found["value"].shape == shapes[name]
        else:
            assert (len(found["up"]), found["down"].shape[1]) == shapes[name]
            assert found["up"][0, 0] == 8
