"""Round each weight to the nearest code of a grid that spans its group's values and zero."""

from typing import ClassVar

from torch import Tensor

from intaglio.passes.calibrating import Statistics

from ._affine import Quantized, grid, quantize
from .low_bit_pass import LowBit


class Rtn(LowBit):
    """Quantize projections to the nearest codes; needs no data, but measures with it."""

    zero_points: bool = False
    """Offsets that are integer multiples of the scale: coarser, and faster on ONNX Runtime."""

    needs_data: ClassVar[bool] = False

    def solve(
        self,
        weight: Tensor,
        statistics: Statistics | None,  # noqa: ARG002
        bits: int,
        group: int,
    ) -> Quantized:
        """Round."""
        on = grid(weight, bits, group, zero_points=self.zero_points)
        rounded = quantize(weight, *on, bits, group)
        return rounded.on_zero_points() if self.zero_points else rounded
