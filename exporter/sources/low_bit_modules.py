"""Modules whose weights are of few bits: what importers put in place of Linear and Embedding."""

import torch
from torch import Tensor, nn

from intaglio.ops import (
    Codes,
    affine_low_bit_gather,
    affine_low_bit_mat_mul,
    pack_codes,
    unpack_codes,
)


class _LowBitWeight(nn.Module):
    """Packed codes, scale and offset as buffers called codes, scale and offset."""

    codes: Tensor
    scale: Tensor
    offset: Tensor | None

    def __init__(
        self, codes: Codes, scale: Tensor, offset: Tensor | None, *, bits: int, group: int
    ) -> None:
        super().__init__()
        self.bits, self.group = bits, group
        self.N, self.K = codes.shape
        self.register_buffer("codes", torch.from_numpy(pack_codes(codes, bits, group)))
        self.register_buffer("scale", scale.float())
        self.register_buffer("offset", None if offset is None else offset.float())

    def signed(self) -> Codes:
        """The signed codes int8 [N, K]."""
        return unpack_codes(self.codes.numpy(), self.K, self.bits, self.group)

    def extra_repr(self) -> str:
        """What distinguishes it in a printed module."""
        return f"K={self.K}, N={self.N}, bits={self.bits}, group={self.group}"


class LowBitLinear(_LowBitWeight):
    """`nn.Linear` with a weight of few bits.

    `codes` are the signed codes int8 [N, K]; `scale` and `offset` are [N, ceil(K/group)].  `order`
    [K] says which input stands at each column, None where that is the column's own.
    """

    bias: Tensor | None
    order: Tensor | None

    def __init__(
        self,
        codes: Codes,
        scale: Tensor,
        offset: Tensor | None,
        bias: Tensor | None = None,
        order: Tensor | None = None,
        *,
        bits: int,
        group: int,
    ) -> None:
        super().__init__(codes, scale, offset, bits=bits, group=group)
        self.register_buffer("bias", None if bias is None else bias.float())
        self.register_buffer("order", order)
        self.in_features, self.out_features = self.K, self.N

    def forward(self, x: Tensor) -> Tensor:
        """Multiply [..., K] to [..., N]."""
        return affine_low_bit_mat_mul(
            x if self.order is None else x.index_select(-1, self.order),
            self.codes,
            self.scale,
            self.offset,
            self.bias,
            K=self.K,
            N=self.N,
            bits=self.bits,
            group=self.group,
        )


class LowBitEmbedding(_LowBitWeight):
    """`nn.Embedding` with a table of few bits; arguments as of `LowBitLinear`."""

    def __init__(
        self, codes: Codes, scale: Tensor, offset: Tensor | None, *, bits: int, group: int
    ) -> None:
        super().__init__(codes, scale, offset, bits=bits, group=group)
        self.num_embeddings, self.embedding_dim = self.N, self.K

    def forward(self, indices: Tensor) -> Tensor:
        """Look [...] up as [..., K]."""
        return affine_low_bit_gather(
            indices,
            self.codes,
            self.scale,
            self.offset,
            K=self.K,
            N=self.N,
            bits=self.bits,
            group=self.group,
        )
