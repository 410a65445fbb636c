"""Modules with weights of few bits compute with the weights that their codes stand for."""

import numpy as np
import torch

from intaglio.exporter.sources.low_bit_modules import LowBitEmbedding, LowBitLinear
from intaglio.ops import dequantize_codes


def test_a_linear_and_an_embedding_share_one_form() -> None:
    """The weight is that of `dequantize_codes`, and the buffers are what a checkpoint holds."""
    random = np.random.default_rng(0)
    codes = random.integers(-4, 4, (6, 10)).astype(np.int8)
    scale, offset = (torch.from_numpy(random.standard_normal((6, 3))) for _ in range(2))
    bias = torch.from_numpy(random.standard_normal(6))
    linear = LowBitLinear(codes, scale, offset, bias, bits=3, group=4)
    table = LowBitEmbedding(codes, scale, offset, bits=3, group=4)
    arrays = (linear.codes.numpy(), linear.scale.numpy(), offset.float().numpy())
    weight = torch.from_numpy(dequantize_codes(*arrays, K=10, bits=3, group=4))
    x = torch.from_numpy(random.standard_normal((2, 3, 10))).float()
    wanted = torch.nn.functional.linear(x, weight, bias.float())
    torch.testing.assert_close(linear(x), wanted)
    rows = torch.tensor([[5, 0]])
    torch.testing.assert_close(table(rows), weight[rows])
    assert set(linear.state_dict()) == {"codes", "scale", "offset", "bias"}
