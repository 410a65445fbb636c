"""OrtDiagonalSsm: state-space models in ONNX Runtime's kernel of linear attention."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.evaluate import run
from intaglio.passes.lower.ort_diagonal_ssm import OrtDiagonalSsm
from intaglio.passes.own_ops import define

TEXT = """
    <ir_version: 10, opset_import: ["" : 24, "intaglio" : 1]>
    g (float[batch, time, 3] u, float[batch, time, 2] B, float[batch, time, 2] C,
       float[batch, time, 3] delta, float[batch, 3, {N}] past)
       => (float[batch, time, 3] y, float[batch, 3, {N}] present)
      <float[3, 2] A = {{-0.1, -1.0, -2.0, -30.0, -0.5, -4.0}}, float[3, 1] minus = {{-1, -1, -1}},
       float[3, 1] rate = {{-0.5, -1.0, -30.0}}, float[3, 1] ones = {{1.0, 1.0, 1.0}},
       float[3, 2] S = {{1.0, 2.0, 3.0, 4.0, -5.0, 6.0}}>
    {{
      y, present = intaglio.DiagonalSSM <discretization = "{kind}", lti = {lti}> ({inputs})
    }}
"""


@pytest.mark.parametrize(
    ("kind", "lti", "inputs"),
    [
        ("mamba", 0, "u, A, B, C, delta, past"),
        ("none", 0, "u, A, B, C, delta, past"),
        ("none", 0, "u, A, B, C"),
        ("mamba", 1, "u, A, S, S,, past"),
        ("none", 1, "u, minus, ones, ones, delta, past"),
        ("none", 1, "u, rate, ones, rate"),
    ],
)
def test_the_kernel_gives_what_the_loop_gives(kind: str, lti: int, inputs: str) -> None:
    """At a decay of e^-30 a token, over more tokens than any chunk, and one token at a time."""
    states = 1 if "ones" in inputs else 2
    model = ir.from_onnx_text(TEXT.format(N=states, kind=kind, lti=lti, inputs=inputs))
    define(model)
    whole = model.clone()
    pipeline.run(model, [OrtDiagonalSsm()], Context(), check=True)

    assert "DiagonalSSM" not in {node.op_type for node in model.graph}
    random = np.random.default_rng(0)
    sizes = {"u": 3, "B": 2, "C": 2, "delta": 3}
    feeds = {name: random.normal(size=(2, 300, n)).astype(np.float32) for name, n in sizes.items()}
    feeds["delta"] = np.exp(3 * feeds["delta"])
    feeds["past"] = random.normal(size=(2, 3, states)).astype(np.float32)
    wanted, found = run(whole, feeds), run(model, feeds)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5 * np.abs(array).max())
    first = run(model, {n: x[:, :1] if n != "past" else x for n, x in feeds.items()})
    np.testing.assert_array_equal(first["y"], found["y"][:, :1])


@pytest.mark.parametrize(("channels", "stays"), [(64, False), (65, True)])
def test_more_states_than_the_kernel_is_quick_with_stay_in_their_loop(
    channels: int, stays: bool
) -> None:
    """Four states of each channel: 256 are taken one by one, more all at once."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 24, "intaglio" : 1]>
        g (float[batch, time, {channels}] u, float[{channels}, 4] A, float[{channels}, 4] S)
          => (float[batch, time, {channels}] y)
        {{
          y, present = intaglio.DiagonalSSM <discretization = "none", lti = 1> (u, A, S, S)
        }}
    """
    model = ir.from_onnx_text(text)
    define(model)
    pipeline.run(model, [OrtDiagonalSsm()], Context())
    assert ("DiagonalSSM" in {node.op_type for node in model.graph}) is stays
