"""A product with weights of 2, 3, 4 or 8 bits: `intaglio::AffineLowBitMatMul`.

    Y = X W^T + bias,    W[n, k] = scale[n, k // group] code[n, k] + offset[n, k // group]

with signed codes, and a scale and an additive offset that may be any floats, negative and zero
included: decoupleQ solves for them (Guo et al. 2024, arXiv:2404.12759, equation 3).  The standard's
DequantizeLinear has integer zero points instead, which cannot say that, and no 3 bits.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from intaglio import operators
from intaglio.errors import InputError

from ._low_bit_packing import (
    body_of_weight,
    dequantize_tensor,
    groups_of,
    pack_codes,
    packed_shape,
)
from .op import Op, Sample, own_node, own_schema


def affine_low_bit_mat_mul(
    input: Tensor,  # noqa: A002
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> Tensor:
    """Multiply by a weight of few bits.

    Args:
        input: [..., K].
        codes: uint8 [N, ceil(K/group), ceil(group·bits/8)], see `pack_codes`.
        scale: [N, ceil(K/group)], in the dtype of `input`.
        offset: like `scale`, or None for zeros.
        bias: [N], or None.
        K: columns of the weight.
        N: rows of the weight.
        bits: 2, 3, 4 or 8.
        group: columns per scale; K for one scale per row.

    Returns:
        [..., N] in the dtype of `input`.

    Raises:
        InputError: if an argument does not fit the others; it is named.
    """
    differentiated = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (input, scale, offset, bias)
    )
    function = forward if differentiated and not torch.compiler.is_exporting() else TORCH_OP
    output: Tensor = function(input, codes, scale, offset, bias, K=K, N=N, bits=bits, group=group)
    return output


def forward(
    input: Tensor,  # noqa: A002
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> Tensor:
    """Compute `affine_low_bit_mat_mul` by writing the weight out."""
    _check(input, codes, scale, offset, bias, K=K, N=N, bits=bits, group=group)
    weight = dequantize_tensor(codes, scale, offset, K=K, bits=bits, group=group)
    return torch.nn.functional.linear(input, weight, bias)


def reference(
    input: Tensor,  # noqa: A002
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> tuple[Tensor, ...]:
    """Compute `affine_low_bit_mat_mul` column by column, each code read from its bits."""
    _check(input, codes, scale, offset, bias, K=K, N=N, bits=bits, group=group)
    output = input.new_zeros(*input.shape[:-1], N)
    for k in range(K):
        at, place = divmod(k, group)
        code = torch.full((N,), -(1 << (bits - 1)))
        for bit in range(bits):
            byte, shift = divmod(place * bits + bit, 8)
            code += ((codes[:, at, byte].long() >> shift) & 1) << bit
        weight = scale[:, at] * code
        if offset is not None:
            weight = weight + offset[:, at]
        output += input[..., k, None] * weight
    return (output if bias is None else output + bias,)


def _check(
    input: Tensor,  # noqa: A002
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    bias: Tensor | None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> None:
    expected = {"codes": packed_shape(N, K, bits, group), "scale": (N, groups_of(K, group))}
    expected |= {"offset": expected["scale"], "bias": (N,)}
    if not input.dim() or input.shape[-1] != K:
        raise InputError(f"input has the shape {list(input.shape)}; it should be [..., {K}].")
    for name, x in (("codes", codes), ("scale", scale), ("offset", offset), ("bias", bias)):
        if x is not None and x.shape != expected[name]:
            raise InputError(
                f"{name} has the shape {list(x.shape)}; for K = {K}, N = {N}, {bits} bits and "
                f"groups of {group} it should be {list(expected[name])}."
            )
    if codes.dtype != torch.uint8:
        raise InputError(f"codes are {codes.dtype}; packed codes are torch.uint8.")


@torch.library.custom_op("intaglio::affine_low_bit_mat_mul", mutates_args=())
def _op(
    input: Tensor,  # noqa: A002
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> Tensor:
    return forward(input, codes, scale, offset, bias, K=K, N=N, bits=bits, group=group)


@_op.register_fake
def _shape(
    input: Tensor,  # noqa: A002
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> Tensor:
    _check(input, codes, scale, offset, bias, K=K, N=N, bits=bits, group=group)
    return input.new_empty(*input.shape[:-1], N)


TORCH_OP: Any = torch.ops.intaglio.affine_low_bit_mat_mul.default

SCHEMA = own_schema(
    operators.AFFINE_LOW_BIT_MAT_MUL,
    "Y = X W^T + bias with W = scale * code + offset for each row and group of columns.",
)
_node = own_node(SCHEMA)


def translation(
    input: Any,  # noqa: A002
    codes: Any,
    scale: Any,
    offset: Any = None,
    bias: Any = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> Any:
    """Emit the node for the torch op."""
    return _node(input, codes, scale, offset, bias, K=K, N=N, bits=bits, group=group)


def body(present: Collection[str], attributes: Mapping[str, Any]) -> str:
    """Write the product in standard operators: the weight in full, transposed, multiplied."""
    sizes = {name: attributes[name] for name in ("K", "bits", "group")}
    biased = "bias" in present
    product = "product" if biased else "output"
    return "\n".join(
        [
            body_of_weight(**sizes, offset="offset" in present),
            "turned = Transpose <perm = [1, 0]> (weight)",
            f"{product} = MatMul (input, turned)",
            *(["output = Add (product, bias)"] if biased else []),
        ]
    )


def samples(dtype: torch.dtype) -> list[Sample]:
    """Every number of bits, short last groups, one group per row, with and without offset, bias."""
    generator = torch.Generator().manual_seed(0)

    def sample(bits: int, K: int, group: int, *names: str) -> Sample:
        N, half, shape = 5, 1 << (bits - 1), (5, groups_of(K, group))

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        codes = torch.randint(-half, half, (N, K), generator=generator, dtype=torch.int8)
        others = {"offset": normal(*shape), "bias": normal(N)}
        return {
            "input": normal(2, 3, K),
            "codes": torch.from_numpy(pack_codes(codes.numpy(), bits, group)),
            "scale": normal(*shape),
            **{name: others[name] for name in names},
            "K": K,
            "N": N,
            "bits": bits,
            "group": group,
        }

    return [
        sample(2, 160, 32, "offset", "bias"),
        sample(2, 30, 30, "offset"),
        sample(3, 48, 16, "offset", "bias"),
        sample(3, 21, 21),
        sample(4, 40, 16, "bias"),
        sample(4, 7, 7, "offset"),
        sample(8, 24, 8, "offset", "bias"),
        sample(8, 10, 4),
    ]


AFFINE_LOW_BIT_MAT_MUL = Op(
    signature=operators.AFFINE_LOW_BIT_MAT_MUL,
    since=1,
    own=SCHEMA,
    body=body,
    attributes=lambda sample: {name: sample[name] for name in ("K", "N", "bits", "group")},
    reference=reference,
    forward=forward,
    torch_op=TORCH_OP,
    translation=translation,
    samples=samples,
    tolerance={
        torch.float64: 1e-12,
        torch.float32: 2e-6,
        torch.float16: 4e-3,
        torch.bfloat16: 3e-2,
    },
    source="Guo et al. 2024, arXiv:2404.12759, equation 3",
)
