"""What rounding the input of a product to 8 bits alone makes of its output, on the user's data."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes.base import Context
from intaglio.passes.calibrating import entries, replay

from ._mat_mul import LowBitMatMul
from ._two_parts import STEPS, TINY

Array = npt.NDArray[Any]

ENTRIES = 1 << 24  # of outputs that are computed at once


def rounding_errors(
    model: ir.Model, context: Context, products: Sequence[LowBitMatMul]
) -> dict[LowBitMatMul, float]:
    """max|Y' - Y| / max|Y| of each product, Y' being that of the rounded input.

    Over the rows of the calibration data that nothing was fitted to, or all where there are none
    such; empty without data.  Products in the bodies of loops and branches are left out.
    """
    data = context.calibration
    known = [product for product in products if product.node.graph is model.graph]
    if data is None or not known:
        return {}
    kept = data.held_out or data.fitted
    run = replay(model, context, kept)
    errors = {}
    try:
        for product in known:
            run.run_to(product.node)
            arrays = run.values(str(product.input.name))
            pairs = zip(kept, arrays, strict=True)
            inputs = [entries(product.input, x, data.batches[i]) for i, x in pairs]
            errors[product] = _error(product, inputs)
    finally:
        run.close()
    return errors


def _error(product: LowBitMatMul, inputs: Iterable[Array]) -> float:
    matrix = product.weight.dequantize().T
    wrong = largest = 0.0
    for x in _parts(inputs, max(1, ENTRIES // product.rows)):
        wrong = max(wrong, float(np.abs((rounded(x, product) - x) @ matrix).max()))
        largest = max(largest, float(np.abs(x @ matrix).max()))
    return wrong / largest if largest else 0.0


def _parts(inputs: Iterable[Array], rows: int) -> Iterator[Array]:
    for x in inputs:
        for start in range(0, len(x), rows):
            yield x[start : start + rows]


def rounded(x: Array, product: LowBitMatMul) -> Array:
    """`x` [tokens, K] with each block rounded as the kernel does."""
    blocks, (tokens, K) = product.blocks, x.shape
    group = K if blocks.width is None else product.group
    width = blocks.width or K + -K % blocks.block
    whole = np.pad(x, [(0, 0), (0, -K % group)]).reshape(tokens, -1, group)
    filled = np.pad(whole, [(0, 0), (0, 0), (0, width - group)])
    apart = filled.reshape(tokens, -1, blocks.block)
    step = np.maximum(np.abs(apart).max(-1, keepdims=True), np.float32(TINY)) / np.float32(STEPS)
    near: Array = (np.round(apart / step) * step).reshape(filled.shape)
    return near[..., :group].reshape(tokens, -1)[:, :K]
