"""TrtPoolIndices: places of the largest entries of windows, counted as the standard counts them."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.lower.trt_pool_indices import TrtPoolIndices

TEXT = """<ir_version: 10, opset_import: ["" : 24]> g (float[batch, 2, %s] x)
    => (float[batch, 2, %s] y, int64[batch, 2, %s] i) {
    y, i = MaxPool <%s> (x)
}"""
CASES = {
    "plain": ("h, w", "oh, ow", "kernel_shape = [2, 2], strides = [2, 2]"),
    "padded": ("h, w", "oh, ow", "kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1]"),
    "apart": ("h, w", "oh, ow", "kernel_shape = [2, 2], dilations = [2, 1]"),
    "of one": ("h, w", "oh, ow", "kernel_shape = [1, 1]"),
    "in a row": ("w", "ow", "kernel_shape = [3], strides = [3]"),
}


@pytest.mark.parametrize("case", CASES)
def test_places_are_those_of_the_standard(case: str) -> None:
    given, made, how = CASES[case]
    text = TEXT % (given, made, made, how)
    plain, model = ir.from_onnx_text(text), ir.from_onnx_text(text)
    assert TrtPoolIndices().run(model, Context()).changed
    assert all(len(node.outputs) == 1 for node in model.graph)
    assert not TrtPoolIndices().run(model, Context()).changed
    for batch, height, width in ((2, 6, 7), (1, 4, 4), (3, 5, 9)):
        shape = (batch, 2, height, width) if "h" in given else (batch, 2, width)
        x = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)  # with equal ones
        found, wanted = (evaluate.run(each, {"x": x}) for each in (model, plain))
        for name in ("y", "i"):
            assert np.array_equal(found[name], wanted[name])


@pytest.mark.parametrize("more", [", ceil_mode = 1", ", storage_order = 1"])
def test_ends_and_orders_of_another_kind_stay(more: str) -> None:
    given, made, how = CASES["plain"]
    model = ir.from_onnx_text(TEXT % (given, made, made, how + more))
    assert not TrtPoolIndices().run(model, Context()).changed
