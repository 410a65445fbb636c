"""AffineLowBitMatMul's kernels equal the operator in float64: every way, group and tail."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from intaglio.ops._low_bit_packing import groups_of, pack_codes
from intaglio.ops.op import Sample
from intaglio.trt_plugins.affine_low_bit_mat_mul import DEQUANTIZE, PLUGIN, kernels, prepare
from intaglio.trt_plugins.plugin import Input, Request, UnsupportedError

Check = Callable[..., None]
TURING = 75  # where few rows of any dtype are multiplied without tensor cores


def draw(
    rows: tuple[int, ...] = (3,),
    N: int = 70,
    K: int = 256,
    group: int = 64,
    *,
    dtype: torch.dtype = torch.float32,
    offset: bool = True,
    bias: bool = True,
) -> Sample:
    """Random arguments; scales of either sign, every fifth of them almost 0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    codes = torch.randint(-2, 2, (N, K), generator=generator, dtype=torch.int8)
    scale = normal(N, groups_of(K, group))
    scale[::5] *= 1e-6
    sample: Sample = {
        "input": (normal(*rows, K) + 0.5).to(dtype),
        "codes": torch.from_numpy(pack_codes(codes.numpy(), 2, group)),
        "scale": scale.to(dtype),
    }
    if offset:
        sample["offset"] = normal(N, groups_of(K, group)).to(dtype)
    if bias:
        sample["bias"] = normal(N).to(dtype)
    return sample | {"K": K, "N": N, "bits": 2, "group": group}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_samples_of_the_operator(check: Check, dtype: torch.dtype) -> None:
    """Groups of half a plane pair, and one group narrower than a block."""
    for sample in PLUGIN.op.samples(dtype):
        if sample["bits"] == 2:
            check(PLUGIN, sample)
