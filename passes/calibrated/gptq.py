"""GPTQ: round column by column, passing each error on to the columns that are still open.

Frantar et al. 2022, arXiv:2210.17323.  With `clip`, each row is rounded on a second grid as well,
its range clipped by the part that rounds best, and keeps the better result.
"""

from torch import Tensor

from intaglio.passes.calibrating import Statistics

from ._affine import Quantized, grid, search_grid
from ._columns import better, damped, factor, round_columns
from .low_bit_pass import LowBit


class Gptq(LowBit):
    """Quantize projections column by column, each error passed on to later columns."""

    clip: bool = False
    """Search clipped ranges, too."""
    zero_points: bool = False
    """Offsets that are integer multiples of the scale: coarser, and faster on ONNX Runtime."""
    damping: float = 0.01
    """Part of the mean diagonal of X^T X that is added to it."""

    def solve(
        self, weight: Tensor, statistics: Statistics | None, bits: int, group: int
    ) -> Quantized:
        """Round on the whole range, and on a clipped one if asked to."""
        assert statistics is not None
        hessian = damped(statistics.fitted, self.damping)
        inverse = factor(hessian)
        on = grid(weight, bits, group, zero_points=self.zero_points)
        found = round_columns(weight, *on, bits, group, inverse)
        if self.clip:
            searched = search_grid(weight, hessian, *on, bits, group)
            clipped = round_columns(weight, *searched, bits, group, inverse)
            found = better(weight, hessian, found, clipped)[0]
        return found.on_zero_points() if self.zero_points else found
