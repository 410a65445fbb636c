"""Weights as groups of affine codes: w = scale * code + offset, -2^(b-1) <= code < 2^(b-1).

A weight W is [N, K] in float64, a row per output; scale and offset are [N, G], the group of input
k being k // group, the last one shorter where K is no multiple.  The error of a row that was
quantized to w + e is e H e^T, H = X^T X of its inputs X: the squared error of that output.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

SHRINKS = 40  # how many clipped ranges a search tries, down to a fifth of the whole one


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized weight: `codes` int8 [N, K], `scale` and `offset` float64 [N, G]."""

    codes: Tensor
    scale: Tensor
    offset: Tensor
    bits: int
    group: int

    def dequantize(self) -> Tensor:
        """The weight [N, K] that the codes stand for, float64."""
        return self.codes * self.by_input(self.scale) + self.by_input(self.offset)

    def by_input(self, values: Tensor) -> Tensor:
        """The value [N, K] of each input's group, of values [N, G]."""
        return spread(values, self.group, self.codes.shape[1])

    def choose(self, rows: Tensor, other: "Quantized") -> "Quantized":
        """This weight with the `rows` (bool [N]) of another one."""
        pick = rows[:, None]
        return replace(
            self,
            codes=torch.where(pick, other.codes, self.codes),
            scale=torch.where(pick, other.scale, self.scale),
            offset=torch.where(pick, other.offset, self.offset),
        )

    def as_stored(self) -> "Quantized":
        """What is left in single precision, with no negative scale: its codes are mirrored."""
        negative = self.scale < 0
        offset = torch.where(negative, self.offset - self.scale, self.offset)
        return replace(
            self,
            codes=torch.where(self.by_input(negative), -1 - self.codes, self.codes),
            scale=self.scale.abs().float().double(),
            offset=offset.float().double(),
        )

    def on_zero_points(self) -> "Quantized":
        """Offsets moved to the integer multiple of the scale, as stored, that they are next to."""
        scale = self.scale.float()
        offset = (self.offset / self.scale).round().float() * scale
        return replace(self, scale=scale.double(), offset=offset.double())


def limits(bits: int) -> tuple[int, int]:
    """The least and the greatest code."""
    half = 2 ** (bits - 1)
    return -half, half - 1


def groups_of(group: int, inputs: int) -> tuple[int, int]:
    """Size and number of the groups of K inputs; a `group` of -1 or 0, or beyond K, is one."""
    size = inputs if group <= 0 or group > inputs else group
    return size, -(-inputs // size)


def spread(values: Tensor, group: int, inputs: int) -> Tensor:
    """Repeat values [N, G] for each input of their group: [N, K]."""
    return values.repeat_interleave(group, 1)[:, :inputs]


def by_group(values: Tensor, group: int) -> Tensor:
    """Cut the last axis of [..., K] into groups, the last filled with zeros: [..., G, group]."""
    missing = -values.shape[-1] % group
    return F.pad(values, (0, missing)).reshape(*values.shape[:-1], -1, group)


def grid(
    weight: Tensor, bits: int, group: int, *, zero_points: bool = False
) -> tuple[Tensor, Tensor]:
    """Scale and offset [N, G] whose codes span each group's values and zero.

    With `zero_points` offsets are integer multiples of the scale, so that one code stands for zero.
    """
    size, _ = groups_of(group, weight.shape[1])
    cut = by_group(weight, size)  # zeros that fill the last group do not move its range
    low, high = cut.amin(-1).clamp(max=0), cut.amax(-1).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    low = (low / scale).round() * scale if zero_points else low
    return scale, low + scale * 2 ** (bits - 1)


def quantize(weight: Tensor, scale: Tensor, offset: Tensor, bits: int, group: int) -> Quantized:
    """The nearest codes on a grid."""
    size, _ = groups_of(group, weight.shape[1])
    steps = spread(scale, size, weight.shape[1])
    codes = ((weight - spread(offset, size, weight.shape[1])) / steps).round()
    return Quantized(
        codes=codes.clamp(*limits(bits)).to(torch.int8),
        scale=scale,
        offset=offset,
        bits=bits,
        group=size,
    )


def errors(difference: Tensor, hessian: Tensor | None) -> Tensor:
    """The error e H e^T of each row of a difference [N, K]; None is the identity."""
    if hessian is None:
        return difference.square().sum(1)
    return ((difference @ hessian) * difference).sum(1)


def relative_error(difference: Tensor, weight: Tensor, hessian: Tensor | None) -> float:
    """Squared error of all outputs, as a part of the squares of the outputs themselves."""
    whole = errors(weight, hessian).sum().clamp(min=torch.finfo(weight.dtype).tiny)
    return float(errors(difference, hessian).sum() / whole)


def search_grid(
    weight: Tensor, hessian: Tensor, scale: Tensor, offset: Tensor, bits: int, group: int
) -> tuple[Tensor, Tensor]:
    """Scale and offset [N, G] of the part of a range whose nearest codes err least, row by row.

    All groups of a row are clipped by the same part, which is enough to find the few ranges that
    matter at two bits.  The search runs in single precision; nothing of it is kept but the part.
    """
    coarse, blame = weight.float(), hessian.float()
    best = torch.full((weight.shape[0],), torch.inf)
    part = torch.ones(weight.shape[0], 1, dtype=weight.dtype)
    for index in range(SHRINKS):
        shrunk = 1 - 0.8 * index / SHRINKS
        tried = quantize(coarse, scale.float() * shrunk, offset.float() * shrunk, bits, group)
        error = errors(tried.dequantize() - coarse, blame)
        better = error < best
        best = torch.where(better, error, best)
        part[better] = shrunk
    return scale * part, offset * part
