"""OrtConditional: attention behind a mask is computed where some token of a call is active."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.evaluate import run
from intaglio.passes.lower.ort_conditional import OrtConditional

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 4] x, bool[batch, time] padding, float[batch, 1, past, 4] past_key)
       => (float[batch, time, 4] y, float[batch, 1, total, 4] present_key {outputs})
      <float[4, 4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}}, int64[1] one = {{1}},
       float[4, 1] router = {{1, 0, 0, 0}}, float zero = {{0}},
       int64[1] last = {{2}}, float half = {{0.5}}>
    {{
      score = MatMul (x, router)
      scores = Squeeze (score, last)
      active = Greater (scores, zero)
      q = Unsqueeze (x, one)
      present_key = Concat <axis = 2> (past_key, q)
      h4 = Attention (q, present_key, present_key)
      h3 = Squeeze (h4, one)
      h = MatMul (h3, w)
      mask = Cast <to = 1> ({mask})
      weight = Mul (mask, half)
      m = Unsqueeze (weight, last)
      masked = {product}
      y = Add (masked, x)
      {more}
    }}
"""
BOOL, FLOAT = ir.DataType.BOOL, ir.DataType.FLOAT
SHAPES = {
    "score": ("batch", "time", 1),
    "scores": ("batch", "time"),
    "active": ("batch", "time"),
    "q": ("batch", 1, "time", 4),
    "present_key": ("batch", 1, "total", 4),
    "h4": ("batch", 1, "time", 4),
    "h3": ("batch", "time", 4),
    "h": ("batch", "time", 4),
    "mask": ("batch", "time"),
    "weight": ("batch", "time"),
    "m": ("batch", "time", 1),
    "masked": ("batch", "time", 4),
}


def graph(
    product: str = "Mul (h, m)", more: str = "", outputs: str = "", mask: str = "active"
) -> ir.Model:
    """Attention over what came before, let through where a token's first number is above 0."""
    text = TEXT.format(product=product, more=more, outputs=outputs, mask=mask)
    model = ir.from_onnx_text(text)
    for node in model.graph:
        for value in node.outputs:
            if value.name in SHAPES:
                value.shape = ir.Shape(list(SHAPES[value.name]))
                value.type = ir.TensorType(BOOL if value.name == "active" else FLOAT)
    return model


def types(model: ir.Model) -> list[str]:
    """The operators outside of branches."""
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("product", ["Mul (h, m)", "Mul (m, h)"])
@pytest.mark.parametrize("active", ["none", "one", "all"])
def test_a_call_gives_what_it_gave(product: str, active: str) -> None:
    """The state is written in each; where no token is active, no attention is computed."""
    model = graph(product)
    whole = model.clone()
    pipeline.run(model, [OrtConditional()], Context(), check=True)

    assert "If" in types(model)
    assert "Attention" not in types(model)
    assert types(model).count("MatMul") == 1  # the router's
    assert "Concat" in types(model)
    random = np.random.default_rng(0)
    feeds = {
        "x": random.normal(size=(2, 3, 4)).astype(np.float32),
        "past_key": random.normal(size=(2, 1, 5, 4)).astype(np.float32),
        "padding": np.ones((2, 3), bool),
    }
    feeds["x"][..., 0] = 1 if active == "all" else -1
    feeds["x"][1, 2, 0] = -1 if active == "none" else 1
    wanted, found = run(whole, feeds), run(model, feeds)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_call_in_which_nothing_is_active_computes_nothing_of_it() -> None:
    """What is not a number in the skipped part is not met."""
    model = graph()
    OrtConditional().run(model, Context())
    x, past = np.ones((1, 1, 4), np.float32), np.full((1, 1, 2, 4), np.nan, np.float32)
    feeds = {"past_key": past, "padding": np.ones((1, 1), bool)}
    skipped, computed = (run(model, feeds | {"x": each})["y"] for each in (-x, x))

    np.testing.assert_array_equal(skipped, -x)
    assert np.isnan(computed).all()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            graph(more="z = Neg (h4)", outputs=", float[a, b, c, d] z"), id="read besides"
        ),
        pytest.param(graph("Mul (h, x)"), id="no mask"),
        pytest.param(graph(mask="padding"), id="no choice of the model's"),
        pytest.param(graph("Add (h, m)"), id="no product"),
        pytest.param(graph("Mul (x, m)"), id="nothing that is heavy"),
    ],
)
def test_what_does_not_vanish_stays(model: ir.Model) -> None:
    before = types(model)
    assert not OrtConditional().run(model, Context()).changed
    assert types(model) == before
