"""A directory whose weights came quantized computes what its dequantized weights do."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from intaglio.errors import SourceError
from intaglio.exporter.sources.huggingface.directory import read_directory
from intaglio.exporter.sources.huggingface.library_module import build
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.low_bit_formats import FORMATS, StoredWeight
from intaglio.exporter.sources.low_bit_modules import LowBitLinear
from intaglio.exporter.tracing.trace import trace
from intaglio.ops import unpack_codes
from intaglio.passes.low_bit import low_bit_nodes, parameter_of, weight_of

GROUP = 16
WEIGHTS = "model.safetensors"
MLP = "model.layers.0.mlp"
CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"group_size": GROUP, "desc_act": True},
    "awq": {"group_size": GROUP, "bits": 4, "version": "gemm"},
    "hqq": {"quant_config": {}},
    "decoupleq": {},
}
NOTE = "projections came quantized, to 4 bits in groups of 16: their codes are taken as they are."


def quantize(directory: Path, method: str) -> dict[str, StoredWeight]:
    """Replace the projections of a directory by random weights of 4 bits; return them by path."""
    form = next(x for x in FORMATS if method == x.METHOD)
    random, tensors = np.random.default_rng(0), load_file(directory / WEIGHTS)
    config, stored = CONFIGS[method], {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        N, K = tensors.pop(name).shape
        path = name.removesuffix(".weight")
        zero = torch.from_numpy(random.integers(0, 16, (N, K // GROUP)).astype(np.int32))
        scale = torch.from_numpy(random.uniform(0.01, 0.02, zero.shape).astype(np.float16))
        stored[path] = StoredWeight(
            values=random.integers(0, 16, (N, K)).astype(np.uint8),
            scale=scale,
            zero={"hqq": zero.half(), "decoupleq": None}.get(method, zero),
            offset=scale * 3 if method == "decoupleq" else None,
            bits=4,
            group=GROUP,
            groups=random.permutation(K) // GROUP if method == "gptq" else None,
        )
        tensors |= {f"{path}.{part}": x for part, x in form.write(stored[path], config).items()}
    (directory / WEIGHTS).unlink()
    if method == "decoupleq":
        torch.save(tensors, directory / "true_quant.pth")
    else:
        save_file(tensors, directory / WEIGHTS)
        configure(directory, quantization_config={"quant_method": method, **config})
    return stored


def configure(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


def dequantized(stored: StoredWeight) -> Tensor:
    groups = np.arange(stored.shape[1]) // GROUP if stored.groups is None else stored.groups
    scale = stored.scale.float()[:, groups]
    if stored.zero is None:
        assert stored.offset is not None
        return (torch.from_numpy(stored.values) - 8.0) * scale + stored.offset.float()[:, groups]
    return (torch.from_numpy(stored.values) - stored.zero.float()[:, groups]) * scale


@pytest.mark.parametrize("method", CONFIGS)
def test_the_module_computes_with_the_dequantized_weights(directory: Path, method: str) -> None:
    """The library's own model with float weights agrees, and every projection is replaced."""
    model = LlamaForCausalLM.from_pretrained(directory)
    stored = quantize(directory, method)
    weights = {f"{path}.weight": dequantized(x) for path, x in stored.items()}
    model.load_state_dict({**model.state_dict(), **weights})
    module, notes = build(read_directory(directory), allow_code=False)
    tokens = torch.arange(12)[None]

    assert notes[0] == f"14 {NOTE}"
    assert {p for p, m in module.named_modules() if isinstance(m, LowBitLinear)} == set(stored)
    torch.testing.assert_close(module(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


def test_the_graph_holds_the_integers_of_the_file(directory: Path) -> None:
    """Codes, scales and zero points stand in the graph, their columns sorted by group."""
    stored = quantize(directory, "gptq")
    module, _ = build(read_directory(directory), allow_code=False)
    source = load_source(module.get_submodule(MLP), inputs={"x": torch.randn(2, 7, 32)})
    nodes = list(low_bit_nodes(trace(source).model))

    assert len(nodes) == 3
    for node in nodes:
        wanted, weight = stored[f"{MLP}.{parameter_of(node)[0]}"], weight_of(node)
        order = np.argsort(np.asarray(wanted.groups), kind="stable")
        codes = unpack_codes(weight.packed, weight.K, weight.bits, weight.group)
        assert wanted.zero is not None
        assert weight.offset is not None
        np.testing.assert_array_equal(codes.astype(int) + 8, wanted.values[:, order])
        np.testing.assert_array_equal(weight.scale, wanted.scale.float())
        np.testing.assert_array_equal(8 - weight.offset / weight.scale, wanted.zero)


def bias(value: float) -> Mapping[str, Tensor]:
    return {f"{MLP}.up_proj.bias": torch.full((48,), value)}


def test_biases_of_zeros_are_left_out_and_others_kept(directory: Path) -> None:
    """AutoGPTQ writes zeros where the model has no bias; what is not zero is part of the model."""
    quantize(directory, "gptq")
    found = []
    for value in (0.0, 1.0):
        save_file({**load_file(directory / WEIGHTS), **bias(value)}, directory / WEIGHTS)
        module, notes = build(read_directory(directory), allow_code=False)
        found.append(dict(module.named_buffers()).get(f"{MLP}.up_proj.bias"))
        assert notes == (f"14 {NOTE}",)

    assert found[0] is None
    assert torch.equal(torch.as_tensor(found[1]), torch.ones(48))


def test_what_does_not_fit_is_refused_by_name(directory: Path) -> None:
    """A projection that the model lacks, or has in another size, or of an unknown method."""
    quantize(directory, "gptq")
    tensors = load_file(directory / WEIGHTS)
    moved = {name.replace("layers.1.mlp.up", "layers.1.mlp.ap"): x for name, x in tensors.items()}
    save_file(moved, directory / WEIGHTS)
    with pytest.raises(SourceError, match="has none of this name"):
        build(read_directory(directory), allow_code=False)
    save_file(tensors, directory / WEIGHTS)
    configure(directory, intermediate_size=64)
    with pytest.raises(SourceError, match="is of 32 outputs and 48 inputs"):
        build(read_directory(directory), allow_code=False)
    configure(directory, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(SourceError, match="'bitsandbytes' are not read; gptq, awq, hqq"):
        build(read_directory(directory), allow_code=False)
