"""OrtOneToken: a loop over one token is its body, in a branch that is taken for one alone."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.graph_keys import ONE_STEP
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.evaluate import run
from intaglio.passes.lower import ort_one_token
from intaglio.passes.lower.ort_one_token import OrtOneToken

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 3] x, float[batch, 3] past)
       => (float[batch, 3] present, float[{sizes}] y {outputs})
      <float[3, 3] w = {{1, 2, 3, -4, 5, 6, 7, -8, 9}}, float[3] bias = {{1, 0, 2}},
       float[1, 1, 3] wide = {{1, 0, 2}}, float[batch, time, 3] product,
       float[batch, time, 3] sum>
    {{
      {made}
      u = {given}
      present, found = Scan <num_scan_inputs = 1 {axes},
        body = step (float[batch, 3] h, float[batch, 3] token)
               => (float[batch, 3] later, float[batch, 3] result) {{
          mixed = MatMul (h, w)
          both = Add (mixed, token)
          later = Tanh (both)
          result = Mul (later, token)
        }}> ({start}, u)
      y = {placed}
    }}
"""
TURNED = {
    "made": "",
    "start": "past",
    "sizes": "batch, time, 3",
    "outputs": "",
    "given": "Transpose <perm = [1, 0, 2]> (x)",
    "axes": "",
    "placed": "Transpose <perm = [1, 0, 2]> (found)",
}
BY_AXES = TURNED | {
    "given": "Identity (x)",
    "axes": ", scan_input_axes = [1], scan_output_axes = [1]",
    "placed": "Identity (found)",
}
# Products and sums with weights that only the loop reads, and such that stand for every token.
MADE = TURNED | {
    "given": "Transpose <perm = [1, 0, 2]> (sum)",
    "made": "product = MatMul (x, w) sum = Add (bias, product)",
}
WIDE = MADE | {"made": "product = MatMul (x, w) sum = Add (product, wide)"}
BOTH = MADE | {"made": "product = MatMul (x, w) sum = Add (product, x)"}
# More than time is moved, or somebody else reads what is between.
REST = TURNED | {"placed": "Transpose <perm = [2, 1, 0]> (found)", "sizes": "3, batch, time"}
DEEP = TURNED | {
    "made": "rows = Transpose <perm = [2, 0, 1]> (x)",
    "given": "Transpose <perm = [2, 1, 0]> (rows)",
}
START = TURNED | {
    "made": "rows = Transpose (past) start = Transpose (rows)",
    "start": "start",
}
READ = TURNED | {"outputs": ", float[time, batch, 3] u, float[time, batch, 3] found"}


@pytest.mark.parametrize(
    "form",
    [TURNED, BY_AXES, REST, DEEP, START, READ, MADE, WIDE, BOTH],
    ids=["turned", "axes", "rest", "deep", "start", "read", "made", "wide", "both"],
)
@pytest.mark.parametrize("time", [1, 3])
def test_a_call_gives_what_it_gave(form: dict[str, str], time: int) -> None:
    """Of one token and of more, and each branch has the loop's own results."""
    model = ir.from_onnx_text(TEXT.format(**form))
    whole = model.clone()
    pipeline.run(model, [OrtOneToken()], Context(), check=True)

    assert "Scan" not in [node.op_type for node in model.graph]
    assert ONE_STEP in model.metadata_props
    random = np.random.default_rng(0)
    feeds = {
        "x": random.normal(size=(2, time, 3)).astype(np.float32),
        "past": random.normal(size=(2, 3)).astype(np.float32),
    }
    wanted, found = run(whole, feeds), run(model, feeds)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_no_turn_is_left_beside_the_branches() -> None:
    """Nothing would take it out of the graph of one token."""
    model = ir.from_onnx_text(TEXT.format(**TURNED))
    OrtOneToken().run(model, Context())
    (choice,) = [node for node in model.graph if node.op_type == "If"]

    assert "Transpose" not in [node.op_type for node in model.graph]
    once = [node.op_type for node in choice.attributes["then_branch"].as_graph()]
    assert once == ["Constant", "Squeeze", "MatMul", "Add", "Tanh", "Mul", "Identity", "Constant",
                    "Unsqueeze"]  # fmt: skip
    assert not OrtOneToken().run(model, Context()).changed


@pytest.mark.parametrize(("form", "left"), [(MADE, []), (WIDE, ["MatMul", "Add"])])
def test_products_that_the_loop_alone_reads_lose_the_axis_of_time(
    form: dict[str, str], left: list[str]
) -> None:
    """And stand in both branches, so that no call computes them twice."""
    model = ir.from_onnx_text(TEXT.format(**form))
    OrtOneToken().run(model, Context())

    kinds = [node.op_type for node in model.graph if node.op_type in ("MatMul", "Add")]
    assert kinds == left


def test_large_weights_are_not_packed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside them the loop's own share is small."""
    monkeypatch.setattr(ort_one_token, "MOST", 35)
    model = ir.from_onnx_text(TEXT.format(**TURNED))

    assert not OrtOneToken().run(model, Context()).changed
    assert ONE_STEP not in model.metadata_props
