"""AffineLowBitGather: loop, fast form and the body in ONNX Runtime say the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from intaglio.errors import InputError
from intaglio.ops import AFFINE_LOW_BIT_GATHER, affine_low_bit_gather
from intaglio.ops.op import Sample

OP = AFFINE_LOW_BIT_GATHER


def test_the_fast_form_equals_the_loop(close: Callable[..., None]) -> None:
    """In double precision, for indices of two dimensions."""
    for sample in OP.samples(torch.float64):
        close(affine_low_bit_gather(**sample), OP.reference(**sample)[0], 1e-15)


def test_the_body_computes_the_samples_in_onnx_runtime(
    own_engine_of: Callable[..., Any], close: Callable[..., None]
) -> None:
    """At the opset of the portable graph and at that of the lowered one."""
    for sample in OP.samples(torch.float32):
        wanted = OP.reference(**sample)[0]
        for opset in (24, 27):
            close(own_engine_of(OP, sample, opset)(sample)[0], wanted, OP.tolerance[torch.float32])


def test_gradients_reach_scale_and_offset() -> None:
    """Against finite differences, with the codes as they are."""
    sample = OP.samples(torch.float64)[2]
    rest = {name: sample[name] for name in ("indices", "codes", "K", "N", "bits", "group")}
    leaves = [sample[name].clone().requires_grad_() for name in ("scale", "offset")]
    assert torch.autograd.gradcheck(
        lambda scale, offset: affine_low_bit_gather(scale=scale, offset=offset, **rest), leaves
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits"),
        ({"scale": torch.zeros(11, 3)}, "scale"),
        ({"offset": torch.zeros(4, 2)}, "offset"),
        ({"codes": torch.zeros(11, 2, 7, dtype=torch.uint8)}, "codes"),
        ({"codes": torch.zeros(11, 2, 8)}, "uint8"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Sample, message: str) -> None:
    """The error names the argument."""
    with pytest.raises(InputError, match=message):
        affine_low_bit_gather(**{**OP.samples(torch.float32)[0], **change})
