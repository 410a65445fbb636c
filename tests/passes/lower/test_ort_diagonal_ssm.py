"""OrtDiagonalSsm: state-space models in the kernel of linear attention, or by blocks of tokens."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.evaluate import run
from intaglio.passes.lower import ort_diagonal_ssm
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
@pytest.mark.parametrize("blocks", [False, True])
def test_both_forms_give_what_the_loop_gives(
    kind: str, lti: int, inputs: str, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a decay of e^-30 a token, over more tokens than any block, and cut anywhere."""
    if blocks:
        monkeypatch.setattr(ort_diagonal_ssm, "MOST", 0)
    states = 1 if "ones" in inputs else 2
    model = ir.from_onnx_text(TEXT.format(N=states, kind=kind, lti=lti, inputs=inputs))
    define(model)
    whole = model.clone()
    pipeline.run(model, [OrtDiagonalSsm()], Context(), check=True)

    assert ("DiagonalSSM" in {node.op_type for node in model.graph}) is blocks
    random = np.random.default_rng(0)
    sizes = {"u": 3, "B": 2, "C": 2, "delta": 3}
    feeds = {name: random.normal(size=(2, 300, n)).astype(np.float32) for name, n in sizes.items()}
    feeds["delta"] = np.exp(3 * feeds["delta"])
    feeds["past"] = random.normal(size=(2, 3, states)).astype(np.float32)
    wanted, found = run(whole, feeds), run(model, feeds)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5 * np.abs(array).max())
    parts, state = [], feeds["past"]
    for cut in (slice(0, 1), slice(1, 17), slice(17, 20), slice(20, 300)):
        of_part = {name: array[:, cut] for name, array in feeds.items()} | {"past": state}
        part = run(model, of_part)
        parts.append(part["y"])
        state = part["present"] if "past" in inputs else state
        if "past" not in inputs:
            break
    whole_y = found["y"][:, : sum(part.shape[1] for part in parts)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole_y)


@pytest.mark.parametrize(
    ("channels", "delta", "bodies"),
    [
        (64, ", delta", []),
        (65, ", delta", [(False, True)]),
        (65, "", [(True, False)]),  # no step sizes: the same for all tokens
    ],
)
def test_more_states_than_the_kernel_is_quick_with_go_by_blocks(
    channels: int, delta: str, bodies: list[tuple[bool, bool]]
) -> None:
    """Four states of each channel: 256 are taken one by one, more all of a token at once.

    A system that is the same for all tokens stays a loop, which has what it keeps at hand.
    """
    text = f"""
        <ir_version: 10, opset_import: ["" : 24, "intaglio" : 1]>
        g (float[batch, time, {channels}] u, float[batch, time, {channels}] delta,
           float[{channels}, 4] A, float[{channels}, 4] S) => (float[batch, time, {channels}] y)
        {{
          y, present = intaglio.DiagonalSSM <discretization = "none", lti = 1> (u, A, S, S{delta})
        }}
    """
    model = ir.from_onnx_text(text)
    define(model)
    pipeline.run(model, [OrtDiagonalSsm()], Context())
    found = [{node.op_type for node in each} for each in model.functions.values()]
    assert [("Scan" in body, "If" in body) for body in found] == bodies
