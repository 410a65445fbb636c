"""Rows of a table of 2, 3, 4 or 8 bits: `intaglio::AffineLowBitGather`, the embedding's operator.

    Y = W[indices],    W[n, k] = scale[n, k // group] code[n, k] + offset[n, k // group]

The table is that of `affine_low_bit_mat_mul`, so that tied embeddings and heads share their bytes;
its rows are written out one by one, never the whole table.  The standard can gather packed bytes
and write them out with two dozen nodes; one operator keeps that recognisable for an engine that
has a kernel for it.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from intaglio import operators
from intaglio.errors import InputError

from ._low_bit_packing import body_of_weight, dequantize_tensor, groups_of, pack_codes, packed_shape
from .op import Op, Sample, own_node, own_schema


def affine_low_bit_gather(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> Tensor:
    """Look rows up in a table of few bits.

    Args:
        indices: int64 of any shape, in 0 .. N - 1.
        codes: uint8 [N, ceil(K/group), ceil(group·bits/8)], see `pack_codes`.
        scale: [N, ceil(K/group)].
        offset: like `scale`, or None for zeros.
        K: columns of the table.
        N: rows of the table.
        bits: 2, 3, 4 or 8.
        group: columns per scale; K for one scale per row.

    Returns:
        [*indices.shape, K] in the dtype of `scale`.

    Raises:
        InputError: if an argument does not fit the others; it is named.
    """
    differentiated = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (scale, offset)
    )
    function = forward if differentiated and not torch.compiler.is_exporting() else TORCH_OP
    output: Tensor = function(indices, codes, scale, offset, K=K, N=N, bits=bits, group=group)
    return output


def forward(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> Tensor:
    """Compute `affine_low_bit_gather`: gather bytes, then write them out."""
    _check(codes, scale, offset, K=K, N=N, bits=bits, group=group)
    offsets = None if offset is None else offset[indices]
    return dequantize_tensor(codes[indices], scale[indices], offsets, K=K, bits=bits, group=group)


def reference(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> tuple[Tensor, ...]:
    """Compute `affine_low_bit_gather` column by column, each code read from its bits."""
    _check(codes, scale, offset, K=K, N=N, bits=bits, group=group)
    columns = []
    for k in range(K):
        at, place = divmod(k, group)
        code = torch.full(indices.shape, -(1 << (bits - 1)))
        for bit in range(bits):
            byte, shift = divmod(place * bits + bit, 8)
            code += ((codes[indices, at, byte].long() >> shift) & 1) << bit
        column = scale[indices, at] * code
        columns.append(column if offset is None else column + offset[indices, at])
    return (torch.stack(columns, -1),)


def _check(
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> None:
    shape = (N, groups_of(K, group))
    expected = {"codes": packed_shape(N, K, bits, group), "scale": shape, "offset": shape}
    for name, x in (("codes", codes), ("scale", scale), ("offset", offset)):
        if x is not None and x.shape != expected[name]:
            raise InputError(
                f"{name} has the shape {list(x.shape)}; for K = {K}, N = {N}, {bits} bits and "
                f"groups of {group} it should be {list(expected[name])}."
            )
    if codes.dtype != torch.uint8:
        raise InputError(f"codes are {codes.dtype}; packed codes are torch.uint8.")


@torch.library.custom_op("intaglio::affine_low_bit_gather", mutates_args=())
def _op(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> Tensor:
    return forward(indices, codes, scale, offset, K=K, N=N, bits=bits, group=group)


@_op.register_fake
def _shape(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> Tensor:
    _check(codes, scale, offset, K=K, N=N, bits=bits, group=group)
    return scale.new_empty(*indices.shape, K)


TORCH_OP: Any = torch.ops.intaglio.affine_low_bit_gather.default

SCHEMA = own_schema(
    operators.AFFINE_LOW_BIT_GATHER,
    "Y = W[indices] with W = scale * code + offset for each row and group of columns.",
)
_node = own_node(SCHEMA)


def translation(
    indices: Any,
    codes: Any,
    scale: Any,
    offset: Any = None,
    *,
    K: int,
    N: int,
    bits: int,
    group: int,
) -> Any:
    """Emit the node for the torch op."""
    return _node(indices, codes, scale, offset, K=K, N=N, bits=bits, group=group)


def body(present: Collection[str], attributes: Mapping[str, Any]) -> str:
    """Write the Gather in standard operators: rows of bytes, then their weights."""
    sizes = {name: attributes[name] for name in ("K", "bits", "group")}
    tables = [name for name in ("codes", "scale", "offset") if name in present]
    return "\n".join(
        [
            "line = Constant <value_ints = [-1]> ()",
            "flat_indices = Reshape (indices, line)",
            *(f"{name}_rows = Gather <axis = 0> ({name}, flat_indices)" for name in tables),
            body_of_weight(**sizes, offset="offset" in present, suffix="_rows"),
            "outer = Shape (indices)",
            "shape = Concat <axis = 0> (outer, columns)",
            "output = Reshape (weight, shape)",
        ]
    )


def samples(dtype: torch.dtype) -> list[Sample]:
    """Every number of bits, a short last group, one group per row, with and without offset."""
    generator = torch.Generator().manual_seed(0)

    def sample(bits: int, K: int, group: int, *, moved: bool) -> Sample:
        N, half, shape = 11, 1 << (bits - 1), (11, groups_of(K, group))

        def normal() -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        codes = torch.randint(-half, half, (N, K), generator=generator, dtype=torch.int8)
        return {
            "indices": torch.randint(0, N, (2, 3), generator=generator),
            "codes": torch.from_numpy(pack_codes(codes.numpy(), bits, group)),
            "scale": normal(),
            **({"offset": normal()} if moved else {}),
            "K": K,
            "N": N,
            "bits": bits,
            "group": group,
        }

    return [
        sample(2, 64, 32, moved=True),
        sample(2, 30, 30, moved=False),
        sample(3, 21, 8, moved=True),
        sample(4, 40, 16, moved=False),
        sample(8, 10, 4, moved=True),
    ]


AFFINE_LOW_BIT_GATHER = Op(
    signature=operators.AFFINE_LOW_BIT_GATHER,
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
        torch.float64: 1e-15,
        torch.float32: 2e-7,
        torch.float16: 2e-3,
        torch.bfloat16: 1e-2,
    },
    source="Guo et al. 2024, arXiv:2404.12759, equation 3",
)
