"""Round each weight to the nearest code of a grid that spans its group's values and zero."""

from typing import ClassVar

from torch import Tensor

from intaglio.passes.calibration import Statistics

from ._affine import Quantized, grid, quantize
from ._low_bit import LowBit


class Rtn(LowBit):
    """Quantize projections to the nearest codes; needs no data, but measures with it."""

    needs_data: ClassVar[bool] = False

    def solve(
        self,
        weight: Tensor,
        statistics: Statistics | None,  # noqa: ARG002
        bits: int,
        group: int,
    ) -> Quantized:
        """Round."""
        return quantize(weight, *grid(weight, bits, group), bits, group)
