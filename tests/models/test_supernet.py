"""A supernet: its layers at each number of bits, what folds, and the wave of average bits."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intaglio.errors import SourceError
from intaglio.models import llama
from intaglio.models.supernet import (
    BITS,
    SuperLinear,
    Supernet,
    draw_bits,
    quantized,
    restore,
    save,
    set_bits,
    super_layers,
)
from intaglio.models.tuning import of_text

CONFIG = llama.Config(vocab_size=256, hidden_size=16, intermediate_size=24, num_layers=1)


def layer(inputs: int = 12) -> SuperLinear:
    torch.manual_seed(0)
    made = SuperLinear.of(nn.Linear(inputs, 5), 8, 3, torch.Generator().manual_seed(0))
    for bits in BITS:
        nn.init.normal_(made.get_parameter(f"up_{bits}"))
    return made


@pytest.mark.parametrize("bits", BITS)
def test_a_layer_is_the_equation_of_its_bits(bits: int) -> None:
    """By loops in float64: codes by group, and the adapter on the sums of groups."""
    made, x = layer(), torch.randn(3, 12)
    made.bits = bits
    part: Any = {n: t.detach().double().numpy() for n, t in made.state_dict().items()}
    wanted = np.zeros((3, 5))
    for row in range(3):
        values = x[row].double().numpy()
        sums = [values[g * made.group : (g + 1) * made.group].sum() for g in range(2)]
        low = [sum(part[f"down_{bits}"][r, g] * sums[g] for g in range(2)) for r in range(3)]
        for n in range(5):
            wanted[row, n] = part["bias"][n]
            wanted[row, n] += sum(part[f"up_{bits}"][n, r] * low[r] for r in range(3))
            for k in range(12):
                g = k // made.group
                weight = part[f"scale_{bits}"][n, g] * part[f"codes_{bits}"][n, k]
                wanted[row, n] += (weight + part[f"offset_{bits}"][n, g]) * values[k]
    with torch.no_grad():
        np.testing.assert_allclose(made(x).double().numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_the_adapter_folds_into_the_offsets(bits: int) -> None:
    made, x = layer(), torch.randn(3, 12)
    made.bits = bits
    codes, scale, offset = made.folded(bits)
    weight = codes * scale.repeat_interleave(made.group, 1)[:, :12]
    weight = weight + offset.repeat_interleave(made.group, 1)[:, :12]
    with torch.no_grad():
        torch.testing.assert_close(
            x @ weight.T + made.get_parameter("bias"), made(x), rtol=1e-5, atol=1e-5
        )


def test_more_bits_are_nearer() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    errors = []
    for bits in BITS:
        codes, scale, offset = quantized(weight, bits, 32)
        assert int(codes.min()) >= -(2 ** (bits - 1))
        assert int(codes.max()) < 2 ** (bits - 1)
        near = codes * scale.repeat_interleave(32, 1) + offset.repeat_interleave(32, 1)
        errors.append(float((near - weight).square().mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_the_wave_spreads_averages() -> None:
    """Down from the most bits to the least and up; averages differ at least thrice as much."""
    how = Supernet(period=8)
    assert [how.mean(step) for step in (0, 2, 4, 6, 8)] == [4.0, 3.0, 2.0, 3.0, 4.0]
    spreads = []
    for each in (how, Supernet(period=None)):
        generator = torch.Generator().manual_seed(0)
        drawn = [draw_bits(each.mean(step), 28, generator) for step in range(400)]
        assert set().union(*drawn) == set(BITS)
        spreads.append(np.std([np.mean(bits) for bits in drawn]))
    assert spreads[0] > 3 * spreads[1]


def test_tuning_changes_adapters_alone_and_a_file_gives_it_back(tmp_path: Any) -> None:
    torch.manual_seed(0)
    module = llama.build(CONFIG).eval()
    weight = module.lm_head.weight.clone()
    draw = of_text(bytes(range(256)) * 4, 4, 16)
    Supernet(group=8, rank=2, steps=6, period=3, rate=0.01).tune(module, draw)
    layers = super_layers(module)
    assert len(layers) == 7
    assert any(x.get_parameter(f"up_{b}").abs().max() > 0 for x in layers.values() for b in BITS)
    assert torch.equal(module.lm_head.weight, weight)
    save(tmp_path / "super.pt", "llama", CONFIG, module)
    again = restore(torch.load(tmp_path / "super.pt", weights_only=True))
    ids = torch.arange(20)[None]
    bits = (2, 3, 4, 2, 3, 4, 2)
    for each in (module, again):
        assert [layer.bits for _, layer in set_bits(each, bits)] == list(bits)
    with torch.no_grad():
        torch.testing.assert_close(again(ids), module(ids), rtol=0, atol=0)


def test_what_is_no_supernet() -> None:
    with pytest.raises(SourceError, match="no supernet"):
        restore({"format": "other"})
