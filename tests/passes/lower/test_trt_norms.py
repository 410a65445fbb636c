"""TrtNorms: norms of groups of channels that stand alone get an axis behind these."""

import numpy as np
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.lower.trt_norms import TrtNorms

TEXT = """<ir_version: 10, opset_import: ["" : 24]>
g (float[rows, 4{more}] x) => (float[rows, 4{more}] y)
<float[4] scale = {{1, 2, 3, 4}}, float[4] bias = {{0, 1, 0, 2}}>
{{ y = GroupNormalization <num_groups = 2, epsilon = 0.5> (x, scale, bias) }}"""


def test_channels_alone_are_normalised_as_before() -> None:
    """Of any rows; with an axis behind the channels nothing is done."""
    model, wide = (ir.from_onnx_text(TEXT.format(more=more)) for more in ("", ", time"))
    assert TrtNorms().run(model, Context()).changed
    assert not TrtNorms().run(model, Context()).changed
    assert not TrtNorms().run(wide, Context()).changed

    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    wanted = evaluate.run(wide, {"x": x[..., None]})["y"][..., 0]
    np.testing.assert_allclose(evaluate.run(model, {"x": x})["y"], wanted, rtol=1e-6)
