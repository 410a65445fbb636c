"""decoupleQ: integers, scales and offsets of a layer solved as one problem; then blocks tuned.

Guo et al. 2024, arXiv:2404.12759.  The layer stage is `_alternate.py`, the block stage
`_blocks.py`; the latter needs the source's PyTorch module and is left out, with a note, where the
source has none.
"""

from typing import Any

import onnx_ir as ir
from torch import Tensor

from intaglio.passes.base import Context
from intaglio.passes.calibrating import Statistics

from . import _blocks
from ._affine import Quantized, grid
from ._alternate import alternate
from ._chosen import Chosen
from ._columns import damped, factor, round_columns
from .low_bit_pass import LowBit, Outcome


class Decoupleq(LowBit):
    """Quantize projections by decoupleQ: codes and grids fitted in turns, then blocks tuned."""

    damping: float = 0.01
    """Part of the mean diagonal of X^T X that is added to it."""
    rounds: int = 4
    """How often codes and grids are fitted in turns, at most."""
    blocks: bool = True
    """Tune scales, offsets and norms of each block by gradient, codes frozen."""
    epochs: int = 4
    """Times that the block stage goes through the data."""
    rate: float = 1e-3
    """Learning rate of the block stage, relative to a group's scale or a norm's weight."""

    def _facts(self) -> dict[str, Any]:
        return {n: x for n, x in super()._facts().items() if n not in ("blocks", "epochs", "rate")}

    def solve(
        self, weight: Tensor, statistics: Statistics | None, bits: int, group: int
    ) -> Quantized:
        """Start from GPTQ and alternate."""
        assert statistics is not None
        hessian = damped(statistics.fitted, self.damping)
        inverse = factor(hessian)
        start = round_columns(weight, *grid(weight, bits, group), bits, group, inverse)
        return alternate(weight, hessian, inverse, start, self.rounds)

    def refine(self, model: ir.Model, context: Context, chosen: Chosen, found: Outcome) -> bool:
        """Tune blocks through the source's module."""
        if not self.blocks:
            return False
        return _blocks.tune(model, context, chosen, found, epochs=self.epochs, rate=self.rate)
