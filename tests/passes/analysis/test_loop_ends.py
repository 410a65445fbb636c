"""What a loop's condition compares, and nothing else reads, only tells how the loop ended."""

import onnx
import onnx_ir as ir
import pytest

from intaglio.passes.analysis.loop_ends import told, tolerances

HALVES = "x2 = Mul(x, half)\n r2 = Abs(x2)\n k2 = Add(k, one)\n c2 = Greater(r2, tol)"
KEPT = HALVES.replace("r2 = Abs(x2)", "a = Abs(x2)\n m = Greater(r, tol)\n r2 = Where(m, a, r)")
CASES = {
    "a residual and a count": (
        f"{HALVES}\n b = Less(k2, cap)\n go = And(c2, b)",
        {"residual", "count"},
    ),
    "a residual that ends the loop above a number": (
        f"{HALVES.replace('Greater', 'Less')}\n go = Identity(c2)",
        {"residual"},
    ),
    "a residual below a number, turned round": (
        f"{HALVES.replace('c2 = Greater(r2, tol)', 'd = Less(r2, tol)')}\n go = Not(d)",
        {"residual"},
    ),
    "a count that no condition reads": (f"{HALVES}\n go = Identity(c2)", {"residual"}),
    "a residual that the solution is made of": (
        f"{HALVES.replace('Mul(x, half)', 'Mul(x, r)')}\n go = Identity(c2)",
        set(),
    ),
    "a solution that is compared itself": (
        "x2 = Mul(x, half)\n r2 = Abs(x2)\n k2 = Add(k, one)\n go = Greater(x2, tol)",
        set(),
    ),
    "a residual that is kept where a row is done": (
        f"{KEPT}\n go = Greater(r2, tol)",
        {"residual"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_only_tells_is_found(case: str) -> None:
    lines, wanted = CASES[case]
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
    loop (float x0) => (float solution, float residual, int64 count) {{
      half = Constant<value = float {{0.5}}>()
      tol = Constant<value = float {{0.01}}>()
      one = Constant<value = int64 {{1}}>()
      cap = Constant<value = int64 {{9}}>()
      zero = Constant<value = int64 {{0}}>()
      yes = Constant<value = bool {{1}}>()
      s, t, count = Loop(, yes, x0, x0, zero) <body = trip
        (int64 i, bool c, float x, float r, int64 k) => (bool go, float x2, float r2, int64 k2) {{
          {lines}
        }}>
      solution = Identity(s)
      residual = Identity(t)
    }}"""
    proto = onnx.parser.parse_model(text)
    model = ir.serde.deserialize_model(proto)
    assert told(model.graph) == wanted
    below = {name: pytest.approx(0.01) for name in wanted - {"count"} if "above" not in case}
    assert tolerances(model.graph) == below
