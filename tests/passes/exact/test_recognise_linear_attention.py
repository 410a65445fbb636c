"""RecogniseLinearAttention: sums that one recurrence computes become it, others stay."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from intaglio.exporter.export import export
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.evaluate import run
from intaglio.passes.exact.recognise_linear_attention import RecogniseLinearAttention

TEXT = """
    <ir_version: 10, opset_import: ["" : 27]>
    g (float[batch, 2, time, 4] q, float[batch, 2, time, 4] k, float[batch, 2, time, 3] v,
       float[batch, time, 2] a) => (float[batch, 2, time, {width}] y)
      <int64[time] place, int64[time, 1] i, int64[1, time] j, bool[time, time] earlier,
       int64[time, time] between, float[time, time] distance, float[time, time] ones,
       bool[time, time] after, float[batch, 2, time, time] many,
       float[batch, 2, time, time] seg, float zero = {{0.0}}, float one = {{1.0}},
       float low = {{-inf}}, int64 start = {{0}}, int64 step = {{1}}, int64[1] first = {{0}},
       int64[1] second = {{1}}, int64 along = {{2}}, int64[1] last = {{-1}}, int64 strict = {{-1}},
       int64[1] keys = {{-2}}, int64[1] axis3 = {{3}},
       float[2, 1, 1] rates = {{-0.1, -0.5}}, float[2, 1, 1] bases = {{0.9, 0.5}},
       float[2, 1, 1] rising = {{-0.1, 0.5}}, float[2, 1, 1] turning = {{-0.9, 0.5}},
       float half = {{0.5}}, int64 pair = {{2}}, float six = {{6.0}}>
    {{
      n = Shape <start = 2, end = 3> (q)
      length = Squeeze (n)
      place = Range (start, length, step)
      i = Unsqueeze (place, second)
      j = Unsqueeze (place, first)
      earlier = GreaterOrEqual (i, j)
      between = Sub (i, j)
      distance = Cast <to = 1> (between)
      square = Concat <axis = 0> (n, n)
      ones = Expand (one, square)
      turned = Transpose <perm = [0, 1, 3, 2]> (k)
      scores = MatMul (q, turned)
      gate = LogSigmoid_ (a)
      gates = Transpose <perm = [0, 2, 1]> (gate)
      summed = CumSum (gates, along)
      {body}
    }}
""".replace("LogSigmoid_ (a)", "Neg (soft)").replace(
    "gate = Neg", "soft = Softplus (a)\n      gate = Neg"
)
GATES = "r = Unsqueeze (summed, axis3) c = Unsqueeze (summed, keys) d = Sub (r, c) "
READ = " y = MatMul (w, v)"


def becomes(body: str, width: int = 3) -> list[str]:
    """The operators that mix tokens afterwards, the pass being held to its promise."""
    proto = onnx.parser.parse_model(TEXT.format(body=body, width=width))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    pipeline.run(model, [RecogniseLinearAttention()], Context(), check=True)
    mixing = ("MatMul", "LinearAttention", "ReduceSum")
    return [node.op_type for node in model.graph if node.op_type in mixing]


TAKEN = {
    "no decay": "w = Trilu <upper = 0> (scores)" + READ,
    "a mask of ones": "m = Trilu <upper = 0> (ones) w = Mul (scores, m)" + READ,
    "a choice": "w = Where (earlier, scores, zero)" + READ,
    "a power of the distance": "p = Pow (bases, distance) m = Where (earlier, p, zero) "
    "w = Mul (scores, m)" + READ,
    "an exponential of the distance": "e = Mul (distance, rates) f = Where (earlier, e, low) "
    "m = Exp (f) w = Mul (m, scores)" + READ,
    "a distance bounded from below": "b = Max (distance, zero) e = Mul (rates, b) m = Exp (e) "
    "t = Mul (m, scores) w = Trilu <upper = 0> (t)" + READ,
    "gates": GATES + "f = Where (earlier, d, low) m = Exp (f) w = Mul (scores, m)" + READ,
    "gates, and a rate": GATES + "h = Mul (distance, rates) d2 = Add (d, h) "
    "f = Where (earlier, d2, low) m = Exp (f) w = Mul (scores, m)" + READ,
    "gates, and one of the key alone": GATES + "u = Unsqueeze (gates, keys) d2 = Add (d, u) "
    "f = Where (earlier, d2, low) m = Exp (f) w = Mul (scores, m)" + READ,
    "half of the scores": "s = Mul (scores, half) w = Trilu <upper = 0> (s)" + READ,
    "scores divided by a number": "s = Div (scores, six) w = Trilu <upper = 0> (s)" + READ,
}
KEPT = {
    "the token itself is left out": "w = Trilu <upper = 0> (scores, strict)" + READ,
    "a window": "t = Trilu <upper = 0> (scores) w = Trilu <upper = 1> (t, strict)" + READ,
    "something not linear": "s = Relu (scores) w = Trilu <upper = 0> (s)" + READ,
    "later tokens": "w = Mul (scores, half)" + READ,
    "what grows": "e = Mul (distance, rising) f = Where (earlier, e, low) m = Exp (f) "
    "w = Mul (scores, m)" + READ,
    "a base below zero": "p = Pow (turning, distance) m = Where (earlier, p, zero) "
    "w = Mul (scores, m)" + READ,
    "sums that do not cancel": GATES + "d2 = Add (d, r) f = Where (earlier, d2, low) m = Exp (f) "
    "w = Mul (scores, m)" + READ,
    "sums of other heads": "turn = Transpose <perm = [0, 2, 1]> (summed) "
    "back = Reshape (turn, shape) r = Unsqueeze (summed, axis3) c = Unsqueeze (back, keys) "
    "d = Sub (r, c) f = Where (earlier, d, low) m = Exp (f) w = Mul (scores, m)" + READ,
    "an exponent of any size": GATES + "x = Transpose <perm = [0, 2, 1]> (a) "
    "u = Unsqueeze (x, keys) d2 = Add (d, u) f = Where (earlier, d2, low) m = Exp (f) "
    "w = Mul (scores, m)" + READ,
    "a distance in steps of two": "h = Div (between, pair) n2 = Cast <to = 1> (h) "
    "e = Mul (n2, rates) f = Where (earlier, e, low) m = Exp (f) w = Mul (scores, m)" + READ,
    "a distance that is cut to whole numbers": "h = Mul (distance, half) "
    "n1 = Cast <to = 7> (h) n2 = Cast <to = 1> (n1) e = Mul (n2, rates) "
    "f = Where (earlier, e, low) m = Exp (f) w = Mul (scores, m)" + READ,
    "sums that are cut to whole numbers": "whole = Cast <to = 7> (summed) "
    "again = Cast <to = 1> (whole) r = Unsqueeze (again, axis3) c = Unsqueeze (again, keys) "
    "d = Sub (r, c) f = Where (earlier, d, low) m = Exp (f) w = Mul (scores, m)" + READ,
    "another use of the weights": "w = Trilu <upper = 0> (scores) t = Abs (w) "
    "s = ReduceSum (t, last) z = MatMul (w, v) y = Add (z, s)",
}
KEPT["sums of other heads"] = "shape = Shape (summed) " + KEPT["sums of other heads"]


@pytest.mark.parametrize("name", TAKEN)
def test_weights_that_decay_become_a_recurrence(name: str) -> None:
    assert becomes(TAKEN[name]) == ["LinearAttention"]


@pytest.mark.parametrize("name", KEPT)
def test_other_weights_keep_their_form(name: str) -> None:
    found = becomes(KEPT[name])
    assert "LinearAttention" not in found
    assert "MatMul" in found


def test_weights_that_are_normalised_by_their_sum_are_two_recurrences() -> None:
    body = (
        "p = Pow (bases, distance) m = Where (earlier, p, zero) w0 = Mul (scores, m) "
        "s = ReduceSum (w0, last) w = Div (w0, s)" + READ
    )
    assert becomes(body) == ["LinearAttention", "LinearAttention"]


DIVIDED = (
    "soft2 = Softplus (k) gk = Neg (soft2) {total} grown = Exp (up) less = Exp (down) "
    "qg = Mul (q, grown) {keys} kt = Transpose <perm = [0, 1, 3, 2]> (kg) "
    "both = MatMul (qg, kt) w = Trilu <upper = 0> (both) y = MatMul (w, v)"
)
NUMBERS = (
    "float minus = {{-1.0}}, int64 middle = {{1}}, int64[3] flat = {{0, 0, 8}}, "
    "int64[4] apart = {{0, 0, 2, 4}},"
)
FLAT = (
    "kp = Transpose <perm = [0, 2, 1, 3]> (k) kf = Reshape (kp, flat) s3 = Softplus (kf) "
    "g3 = Neg (s3) t3 = CumSum (g3, middle) r3 = Reshape (t3, apart) "
    "up = Transpose <perm = [0, 2, 1, 3]> (r3) down = Neg (up)"
)
CUT_AFTER = (
    "n3 = Neg (t3) l3 = Exp (n3) m3 = Mul (kf, l3) a3 = Reshape (m3, apart) "
    "kg = Transpose <perm = [0, 2, 1, 3]> (a3)"
)
SUMMED = "up = CumSum (gk, along) down = Neg (up)"


@pytest.mark.parametrize(
    ("total", "keys"),
    [
        (SUMMED, "kg = Mul (k, less)"),
        (SUMMED, "kg = Div (k, grown)"),
        ("s = CumSum (gk, along) up = Div (s, six) down = Mul (up, minus)", "kg = Mul (k, less)"),
        (FLAT, CUT_AFTER),
    ],
)
def test_gates_that_are_divided_out_of_keys_are_decays(total: str, keys: str) -> None:
    """After 1000 tokens e^-G is no number any more; the recurrence holds all of them."""
    body = DIVIDED.format(total=total, keys=keys)
    proto = onnx.parser.parse_model(
        TEXT.replace("float half =", f"{NUMBERS} float half =").format(body=body, width=3)
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    pipeline.run(model, [RecogniseLinearAttention()], Context(), check=True)
    node = next(each for each in model.graph if each.op_type == "LinearAttention")
    assert node.attributes["update_rule"].value == "gated"
    draw = np.random.default_rng(0).normal
    shapes = {"q": (1, 2, 1000, 4), "k": (1, 2, 1000, 4), "v": (1, 2, 1000, 3), "a": (1, 1000, 2)}
    y = run(model, {name: draw(size=shape).astype(np.float32) for name, shape in shapes.items()})
    assert np.isfinite(y["y"]).all()


@pytest.mark.parametrize(
    ("total", "keys"),
    [
        ("up = CumSum (gk, along) other = CumSum (v4, along) down = Neg (other)",
         "kg = Mul (k, less)"),
        ("up = CumSum (gk, along) down = Div (up, six)", "kg = Mul (k, less)"),
        ("up = CumSum (gk, keyed) down = Neg (up)", "kg = Mul (k, less)"),
        ("down = CumSum (gk, along) up = Neg (down)", "kg = Mul (k, less)"),
    ],
)  # fmt: skip
def test_exponents_that_do_not_cancel_are_no_decays(total: str, keys: str) -> None:
    """Of two sums, of one times two numbers, along another axis, of what grows."""
    text = TEXT.replace("float half =", "int64 keyed = {{3}}, float half =")
    body = "v4 = Neg (q) " + DIVIDED.format(total=total, keys=keys)
    proto = onnx.parser.parse_model(text.format(body=body, width=3))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    pipeline.run(model, [RecogniseLinearAttention()], Context(), check=True)
    rules = [
        n.attributes["update_rule"].value for n in model.graph if n.op_type.startswith("Linear")
    ]
    assert "gated" not in rules


def test_sums_between_two_tokens_written_over_pairs() -> None:
    """As Mamba-2 writes them; a mask that leaves the diagonal in is another sum."""
    body = (
        "wide = Unsqueeze (gates, axis3) heads = Shape <start = 0, end = 3> (wide) "
        "all = Concat <axis = 0> (heads, n) many = Expand (wide, all) "
        "after = {} (i, j) part = Where (after, many, zero) seg = CumSum (part, along) "
        "f = Where (earlier, seg, low) m = Exp (f) w = Mul (scores, m)" + READ
    )
    assert becomes(body.format("Greater")) == ["LinearAttention"]
    assert becomes(body.format("GreaterOrEqual")) == ["MatMul", "MatMul"]


class Retention(nn.Module):
    """The parallel form of RetNet with its norm (Sun et al. 2023), as its users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(8, 24), nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = (y.view(batch, time, 2, 4).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        n = torch.arange(time)[:, None] - torch.arange(time)
        decay = torch.tensor([0.9, 0.97])[:, None, None] ** n * (n >= 0).float()
        decay[decay != decay] = 0  # noqa: PLR0124  of what overflows ahead of a token
        y = ((q @ k.transpose(-1, -2)) * decay) @ v
        normal: Tensor = self.norm(y.transpose(1, 2).reshape(-1, 8))
        return normal.view(batch, time, 8)


def test_retention_steps_with_a_constant_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = export(
        Retention().eval(),
        tmp_path / "bundle",
        inputs={"x": torch.randn(2, 12, 8)},
        axes={"x": ["batch", "time", 8]},
        check_passes=True,
        steps=100,
    )
    assert report.parity is not None
    assert report.parity.passed
    assert [spec.shape for spec in report.manifest.main.states] == [("batch", 2, 4, 4)]
