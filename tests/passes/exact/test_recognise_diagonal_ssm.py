"""RecogniseDiagonalSsm: heads with values of one number whose parts are products, and no others."""

import onnx
import onnx_ir as ir
import pytest

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.recognise_diagonal_ssm import RecogniseDiagonalSsm

TEXT = """
    <ir_version: 10, opset_import: ["" : 27]>
    g (float[batch, time, 3] u, float[batch, time, 3] dt, float[batch, time, 2] b,
       float[batch, time, 2] c, float[batch, time, 3, 2] any, float[3, time, batch] turned,
       float[batch, time] row)
       => (float[batch, time, 3] y, float[batch, 3, 2, 1] after)
      <float[batch, time, 3, 2] asked, float[batch, time, 3, 2] kept,
       float[3, 2] A = {{0.1, 1.0, 2.0, 30.0, 0.5, 4.0}}, float[2] fixed = {{0.5, -2.0}},
       float[3] skip = {{1.0, 2.0, 3.0}}, float two = {{2.0}}, int64[1] last = {{-1}},
       int64[1] mid = {{2}}, int64[3] packed = {{0, 0, 6}}, int64[4] wide = {{1, 1, 3, 1}},
       float[1, 1, 3, 2] unit = {{1.0, 1.0, 1.0, 1.0, 1.0, 1.0}}>
    {{
      ud = Unsqueeze (u, last)
      rate = Softplus (dt)
      rd = Unsqueeze (rate, last)
      bn = Unsqueeze (b, mid)
      cn = Unsqueeze (c, mid)
      negative = Neg (A)
      {kept}
      {added}
      {asked}
      k = Reshape (added, packed)
      q = Reshape (asked, packed)
      g = Reshape (kept, packed)
      v = {value}
      y, after = LinearAttention <update_rule = "gated", q_num_heads = 3, kv_num_heads = 3,
        scale = {scale}> (q, k, v,, g)
    }}
"""
KEPT = "kept = Mul (rd, negative)"
ADDED = "once = Mul (rd, bn) added = Mul (once, ud)"
ASKED = "asked = Expand (cn, wide)"


def recognised(
    kept: str = KEPT, added: str = ADDED, asked: str = ASKED, value: str = "Identity (u)",
    scale: float = 1.0,
) -> bool:  # fmt: skip
    """Whether the graph becomes a DiagonalSSM, the pass being held to its promise."""
    text = TEXT.format(kept=kept, added=added, asked=asked, value=value, scale=scale)
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(
        onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    )
    pipeline.run(model, [RecogniseDiagonalSsm()], Context(), check=True)
    kinds = {node.op_type for node in model.graph}
    assert ("DiagonalSSM" in kinds) is not ("LinearAttention" in kinds)
    return "DiagonalSSM" in kinds


@pytest.mark.parametrize(
    "spelling",
    [
        {},
        {"scale": 0.5},
        {"added": "once = MatMul (rd, bn) twice = Mul (once, two) added = Mul (twice, ud)"},
        {"added": "added = Expand (bn, wide)", "value": "Mul (rate, u)"},
        {"kept": "s = Mul (rd, two) n = Neg (s) kept = Mul (n, A)"},
        {"added": "t = Transpose <perm = [2, 1, 0]> (turned) td = Unsqueeze (t, last) "
                  "added = Mul (td, bn)"},
        {"added": "r = Unsqueeze (row, last) rr = Unsqueeze (r, last) s = Mul (rr, bn) "
                  "added = Mul (s, ud)",
         "asked": "r1 = Unsqueeze (row, last) r2 = Unsqueeze (r1, last) s1 = Mul (r2, cn) "
                  "asked = Expand (s1, wide)"},
        {"added": "added = Mul (ud, fixed)",
         "asked": "like = Shape (any) asked = Expand (fixed, like)"},
        {"added": "sd = Unsqueeze (skip, last) s = Mul (ud, sd) added = Mul (s, bn)"},
    ],
)  # fmt: skip
def test_factors_over_channels_and_over_states_are_found(spelling: dict[str, str]) -> None:
    """Whatever products make them, in whatever order of axes; scales and numbers included."""
    assert recognised(**spelling)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spelling",
    [
        {"kept": "f = Softplus (any) kept = Neg (f)"},
        {"kept": "s = Mul (rd, negative) f = Sigmoid (bn) kept = Mul (s, f)"},
        {"added": "added = Mul (any, bn)"},
        {"asked": "asked = Mul (cn, ud)"},
        {"added": "sum = Add (ud, bn) added = Mul (sum, unit)"},
        {"added": "added = Mul (ud, fixed)"},  # the query is of each token, the key is not
        {"kept": "like = Shape (any) kept = Expand (negative, like)"},
    ],
)
def test_what_depends_on_token_channel_and_state_at_once_stays(spelling: dict[str, str]) -> None:
    """In the decay, the key or the query; sums of both; one side of each token alone."""
    assert not recognised(**spelling)  # type: ignore[arg-type]
