"""AffineLowBitMatMul: packing, loop, fast form and the body in ONNX Runtime say the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intaglio.errors import InputError
from intaglio.ops import (
    AFFINE_LOW_BIT_MAT_MUL,
    affine_low_bit_mat_mul,
    dequantize_codes,
    pack_codes,
    unpack_codes,
)
from intaglio.ops._low_bit_packing import unpack_tensor
from intaglio.ops.op import Sample

OP = AFFINE_LOW_BIT_MAT_MUL


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from((2, 3, 4, 8)),
    rows=st.integers(1, 4),
    columns=st.integers(1, 70),
    group=st.integers(1, 70),
    seed=st.integers(0, 9),
)
def test_packing_loses_nothing(bits: int, rows: int, columns: int, group: int, seed: int) -> None:
    """Any codes come back, from numpy and from torch, in as many bytes as they need."""
    half = 1 << (bits - 1)
    codes = np.random.default_rng(seed).integers(-half, half, (rows, columns)).astype(np.int8)
    packed = pack_codes(codes, bits, group)
    assert packed.shape == (rows, -(-columns // group), -(-group * bits // 8))
    assert np.array_equal(unpack_codes(packed, columns, bits, group), codes)
    assert np.array_equal(unpack_tensor(torch.from_numpy(packed), columns, bits, group), codes)


def test_codes_stand_low_bits_first() -> None:
    """The bytes are written out by hand: 2 bits as MatMulNBits has them, 3 bits as a stream."""
    assert pack_codes(np.array([[-2, -1, 0, 1]], np.int8), 2, 4).tolist() == [[[0b11100100]]]
    assert pack_codes(np.array([[-8, 7]], np.int8), 4, 2).tolist() == [[[0xF0]]]
    assert pack_codes(np.array([[-128, 127]], np.int8), 8, 2).tolist() == [[[0, 255]]]
    stream = pack_codes(np.array([[3, -4, 1, -1]], np.int8), 3, 4)  # 7, 0, 5, 3
    assert stream.tolist() == [[[0b01000111, 0b0111]]]


def test_three_bits_take_three() -> None:
    """Groups whose codes end with a byte waste nothing."""
    assert pack_codes(np.zeros((16, 64), np.int8), 3, 32).nbytes * 8 == 16 * 64 * 3


def test_the_weight_is_scale_times_code_plus_offset() -> None:
    """Scales and offsets belong to their group; the last one may be shorter."""
    packed = pack_codes(np.array([[-2, -1, 0, 1, 1]], np.int8), 2, 3)
    scale, offset = np.array([[2.0, -3.0]]), np.array([[0.5, 10.0]])
    weight = dequantize_codes(packed, scale, offset, K=5, bits=2, group=3)
    assert weight.tolist() == [[-3.5, -1.5, 0.5, 7.0, 7.0]]


def test_the_fast_form_equals_the_loop(close: Callable[..., None]) -> None:
    """In double precision."""
    for sample in OP.samples(torch.float64):
        close(affine_low_bit_mat_mul(**sample), OP.reference(**sample)[0], 1e-12)


def test_the_body_computes_the_samples_in_onnx_runtime(
    own_engine_of: Callable[..., Any], close: Callable[..., None]
) -> None:
    """At the opset of the portable graph and at that of the lowered one."""
    for sample in OP.samples(torch.float32):
        exact = {
            name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in sample.items()
        }
        for opset in (24, 27):
            found = own_engine_of(OP, sample, opset)(sample)[0]
            close(found, OP.reference(**exact)[0], OP.tolerance[torch.float32])


def test_gradients_reach_input_scale_offset_and_bias() -> None:
    """Against finite differences, with the codes as they are."""
    sample = OP.samples(torch.float64)[2]
    names = ("input", "scale", "offset", "bias")
    rest = {name: sample[name] for name in ("codes", "K", "N", "bits", "group")}
    leaves = [sample[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(
        lambda *x: affine_low_bit_mat_mul(**dict(zip(names, x, strict=True)), **rest), leaves
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "bits"),
        ({"group": 0}, "group"),
        ({"input": torch.zeros(2, 3)}, "input"),
        ({"scale": torch.zeros(5, 6)}, "scale"),
        ({"offset": torch.zeros(4, 5)}, "offset"),
        ({"bias": torch.zeros(4)}, "bias"),
        ({"codes": torch.zeros(5, 5, 7, dtype=torch.uint8)}, "codes"),
        ({"codes": torch.zeros(5, 5, 8)}, "uint8"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Sample, message: str) -> None:
    """The error names the argument."""
    with pytest.raises(InputError, match=message):
        affine_low_bit_mat_mul(**{**OP.samples(torch.float32)[0], **change})


def test_codes_that_do_not_fit_are_refused() -> None:
    """Rather than cut to their low bits."""
    with pytest.raises(InputError, match="2 bits hold -2"):
        pack_codes(np.array([[2]], np.int8), 2, 1)
