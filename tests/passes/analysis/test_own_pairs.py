"""A value is the same for a token as query and as key only where both sides are one."""

import onnx_ir as ir
import pytest

from intaglio.passes.analysis.own_pairs import same_at_own
from intaglio.passes.shapes import infer_shapes

BEFORE = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (int64[batch, time] d, int64[batch, time] e, float[batch, 5, 5, time] x) => (bool[1] y)
    <int64[1] last = {-1}, int64[1] middle = {1}, int64[2] both = {0, 1}, int64 four = {4},
     int64 three = {3}, int64 zero = {0}, int64 one = {1}, int64[1] start = {0},
     int64[1] wide = {5}> {
        size = Shape <start = 1, end = 2> (d)
        n = Squeeze (size)
        i = Range (zero, n, one)
        shifted = Range (one, n, one)
        """
AFTER = " y = Cast <to = 9> (middle) }"
PAIRS = {
    "axes added": ("l = Unsqueeze (d, last) r = Unsqueeze (d, middle)", True),
    "the same computed on both sides": (
        "a = Unsqueeze (d, last) b = Unsqueeze (d, middle) l = Div (a, four) r = Div (b, four)",
        True,
    ),
    "positions": (
        """a = Unsqueeze (i, last) j = Range (zero, n, one) b = Unsqueeze (j, start)
           l = Mod (a, four) r = Mod (b, four)""",
        True,
    ),
    "other data": ("l = Unsqueeze (d, last) r = Unsqueeze (e, middle)", False),
    "other numbers": ("l = Div (d, four) r = Div (d, three)", False),
    "another operator": ("l = Div (d, four) r = Mod (d, four)", False),
    "turned around": ("l = Sub (d, e) r = Sub (e, d)", False),
    "positions from one": ("l = Div (i, four) r = Div (shifted, four)", False),
    "other attributes": ("l = Mod <fmod = 1> (d, four) r = Mod (d, four)", False),
    "sums along other axes": (
        "a = Unsqueeze (d, last) b = Unsqueeze (d, middle) l = CumSum (a, one) r = CumSum (b, one)",
        False,
    ),
    "rows and tokens turned": ("l = Unsqueeze (d, last) r = Transpose <perm = [1, 0]> (d)", False),
    "axes of one size turned": ("l = Identity (x) r = Transpose <perm = [0, 2, 1, 3]> (x)", False),
}


@pytest.mark.parametrize(("body", "same"), PAIRS.values(), ids=PAIRS)
def test_values_of_tokens_with_themselves(body: str, same: bool) -> None:
    model = ir.from_onnx_text(BEFORE + body + AFTER)
    infer_shapes(model)
    values = {value.name: value for node in model.graph for value in node.outputs}
    assert same_at_own(values["l"], values["r"]) is same
