"""Gated DeltaNet: which layers attend, and how far its convolutions reach."""

import torch

from intaglio.models.gated_deltanet import Config, build, mixer
from intaglio.models.llama import Attention


def test_one_layer_in_four_is_attention() -> None:
    """Layers 3 and 7 of eight."""
    module = build(Config(hidden_size=16, head_size=8, num_layers=8))
    attends = [isinstance(layer.mixer, Attention) for layer in module.layers]
    assert attends == [False, False, False, True] * 2


def test_keys_written_twice_replace_their_value() -> None:
    """With full strength and no decay, the delta rule overwrites what the key held."""
    torch.manual_seed(0)
    layer = mixer(Config(hidden_size=16, head_size=8, num_heads=2)).double()
    with torch.no_grad():
        for conv in (layer.q_conv1d, layer.k_conv1d, layer.v_conv1d):
            conv.get_parameter("weight").zero_()
            conv.get_parameter("weight")[:, 0, -1] = 1
        layer.A_log.fill_(-60)  # no decay
        layer.b_proj.weight.mul_(0).add_(1e6)  # beta = 1 for positive inputs
    first, second = torch.rand(2, 16, dtype=torch.float64)
    twice = torch.stack([first, second, first, first])[None]
    once = torch.stack([second, first])[None]
    with torch.no_grad():
        y, z = layer(twice), layer(once)
    # the norm of keys has an epsilon of 1e-6, so that they are not quite of unit length
    torch.testing.assert_close(y[0, -1], y[0, -2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(y[0, -1], z[0, -1])
