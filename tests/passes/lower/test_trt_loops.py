"""TrtLoops: recurrent layers become those of the standard, and compute the same."""

import numpy as np
import onnx_ir as ir

from intaglio.graph_keys import MODULE
from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.graph import module_of
from intaglio.passes.lower.trt_loops import TrtLoops
from intaglio.passes.own_ops import define

TEXT = """<ir_version: 10, opset_import: ["" : 24, "intaglio" : 1]>
    g (float[batch, time, 3] x, float[6, 3] w, float[6, 2] u, float[2, 2] v,
       float[batch, 1, 2] past) => (float[batch, time, 2] y, float[batch, 1, 2] s) {
        a, s = intaglio.RNN <mode = "GRU", hidden_size = 2> (x, w, u, , , past)
        y, t = intaglio.RNN <mode = "RNN_RELU", hidden_size = 2> (a, v, v)
    }
"""


def test_layers_are_written_out_in_their_modules() -> None:
    model = ir.from_onnx_text(TEXT)
    define(model)
    for node, module in zip(model.graph, ("first", "second"), strict=True):
        node.metadata_props[MODULE] = module
    random = np.random.default_rng(0)
    shapes = {"x": (2, 5, 3), "w": (6, 3), "u": (6, 2), "v": (2, 2), "past": (2, 1, 2)}
    given = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    wanted = evaluate.run(model, given)
    result = TrtLoops().run(model, Context())
    got = evaluate.run(model, given)

    assert (result.changed, len(result.notes)) == (True, 2)
    layers = [n for n in model.graph if n.op_type in ("GRU", "RNN")]
    assert [(n.op_type, n.domain, module_of(n)) for n in layers] == [
        *(("GRU", "", "first"), ("RNN", "", "second")),
    ]
    assert not model.functions
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array)
    assert not TrtLoops().run(model, Context()).changed
