"""RecogniseRecurrences: loops become operators where they are equal, and stay where not."""

import onnx
import onnx_ir as ir
import pytest

from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.recognise_recurrences import RecogniseRecurrences

VECTOR = """
    <ir_version: 10, opset_import: ["" : 27]>
    g (float[batch, time, 4] x, float[batch, time, 4] u) => (float[batch, time, 4] y)
      <int64[1] four = {{4}}, float zero = {{0.0}}, float one = {{1.0}},
       float[4] w = {{0.9, -1.0, 0.5, 2.0}}>
    {{
      rows = Shape <start = 0, end = 1> (x)
      shape = Concat <axis = 0> (rows, four)
      h0 = Expand ({start}, shape)
      xs = Transpose <perm = [1, 0, 2]> (x)
      us = Transpose <perm = [1, 0, 2]> (u)
      last, ys = Scan <num_scan_inputs = 2, body = token
          (float[batch, 4] h, float[batch, 4] x_t, float[batch, 4] u_t)
          => (float[batch, 4] next, float[batch, 4] out) {{
        {body}
      }}> (h0, xs, us)
      y = Transpose <perm = [1, 0, 2]> (ys)
    }}
"""
MATRIX = """
    <ir_version: 10, opset_import: ["" : 27]>
    g (float[batch, time, 4] q, float[batch, time, 4] k, float[batch, time, 3] v,
       float[batch, time, 1] b, float[batch, time, 1] a) => (float[batch, time, 3] y)
      <int64[2] sizes = {{4, 3}}, float zero = {{0.0}}>
    {{
      rows = Shape <start = 0, end = 1> (q)
      shape = Concat <axis = 0> (rows, sizes)
      s0 = Expand (zero, shape)
      qs = Transpose <perm = [1, 0, 2]> (q)
      ks = Transpose <perm = [1, 0, 2]> (k)
      vs = Transpose <perm = [1, 0, 2]> (v)
      bs = Transpose <perm = [1, 0, 2]> (b)
      ga = Sigmoid (a)
      gs = Transpose <perm = [1, 0, 2]> (ga)
      last, ys = Scan <num_scan_inputs = 5, body = token
          (float[batch, 4, 3] s, float[batch, 4] q_t, float[batch, 4] k_t, float[batch, 3] v_t,
           float[batch, 1] b_t, float[batch, 1] g_t)
          => (float[batch, 4, 3] next, float[batch, 3] out) {{
        two = Constant <value_ints = [2]> ()
        mid = Constant <value_ints = [1]> ()
        {body}
      }}> (s0, qs, ks, vs, bs, gs)
      y = Transpose <perm = [1, 0, 2]> (ys)
    }}
"""
GATE = "g = Sigmoid (x_t) f = Sub (one, g)"
MIX = f"{GATE} a = Mul (g, h) b = Mul (f, u_t) next = Add (a, b) out = Identity (next)"
ERROR = 'r = Einsum <equation = "bkv,bk->bv"> (s, k_t) e = Sub (v_t, r) d = Mul (b_t, e)'
WRITE = 'w = Einsum <equation = "bk,bv->bkv"> (k_t, d) next = Add (s, w)'
READ = 'out = Einsum <equation = "bkv,bk->bv"> (next, q_t)'
GATED = "g1 = Unsqueeze (g_t, two) sg = Mul (s, g1)"
LOW_RANK = (
    'r = Einsum <equation = "bkv,bk->bv"> (s, q_t) kb = Mul (k_t, b_t) '
    'p = Einsum <equation = "bv,bk->bkv"> (r, kb) low = Sub (sg, p) '
    'w = Einsum <equation = "bk,bv->bkv"> (k_t, v_t) next = Add (low, w)'
)
LAID_OUT = (
    "many = Shape <start = 0, end = 1> (s) three = Constant <value_ints = [3]> () "
    "to = Concat <axis = 0> (many, three) out = Reshape (o, to)"
)
SCALED = " rv = Mul (r, v_t) p ="
TWICE = (
    'o1 = Einsum <equation = "bkv,bk->bv"> (next, q_t) '
    'o2 = Einsum <equation = "bkv,bk->bv"> (next, k_t) out = Mul (o1, o2)'
)


def taken_apart(text: str, body: str, start: str = "zero") -> list[str]:
    """The operators with states that the loop becomes, the pass being held to its promise."""
    proto = onnx.parser.parse_model(text.format(body=body, start=start))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    pipeline.run(model, [RecogniseRecurrences()], Context(), check=True)
    carrying = ("Scan", "DiagonalSSM", "LinearAttention", "DPLRDeltaRule", "CumSum", "Conv")
    return [node.op_type for node in model.graph if node.op_type in carrying]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (MIX, ["DiagonalSSM"]),
        (f"{GATE} d = Sub (u_t, h) e = Mul (f, d) next = Add (h, e) out = Neg (next)",
         ["DiagonalSSM"]),
        (("a = Softplus (x_t) n = Neg (a) g = Exp (n) b = Mul (g, h) next = Add (b, u_t)"
         " out = Sin (next)"), ["DiagonalSSM"]),
        ("d = Sub (u_t, h) c = Sigmoid (w) e = Mul (c, d) next = Add (h, e) out = Tanh (next)",
         ["DiagonalSSM"]),
        (
            ("s = Sigmoid (x_t) b = Sigmoid (w) r = Sub (one, b) p = Mul (r, s) f = Add (b, p)"
            " a = Mul (f, h) next = Add (a, u_t) out = Sin (next)"),
            ["DiagonalSSM"],
        ),
        (
            ("s = Sigmoid (x_t) e = Exp (u_t) p = Add (s, e) f = Div (s, p)"
            " a = Mul (f, h) next = Add (a, u_t) out = Sin (next)"),
            ["DiagonalSSM"],
        ),
        ("next = Sub (h, x_t) m = Mul (next, u_t) out = Tanh (m)", ["CumSum"]),
        ("next = Mul (x_t, u_t) out = Sub (next, h)", ["Conv"]),
        (MIX.replace("out = Identity (next)", "out = Mul (h, next)"), ["DiagonalSSM", "Conv"]),
    ],
)  # fmt: skip
def test_what_is_affine_entry_by_entry(body: str, wanted: list[str]) -> None:
    assert taken_apart(VECTOR, body) == wanted


@pytest.mark.parametrize(
    "gate",
    [
        "Tanh (x_t)",  # of both signs
        "Exp (x_t)",  # above 1
        "Softplus (x_t)",
        "Identity (w)",  # a weight of which some entries are no decays
        "Sigmoid (h)",  # no factor of data alone
    ],
)
def test_what_is_no_decay_stays_a_loop(gate: str) -> None:
    body = f"g = {gate} a = Mul (g, h) b = Cos (u_t) next = Add (a, b) out = Tanh (next)"

    assert taken_apart(VECTOR, body) == ["Scan"]


def test_a_loop_keeps_what_depends_on_its_state_alone() -> None:
    body = "a = Cos (x_t) b = Add (a, h) next = Tanh (b) c = Mul (next, u_t) out = Sin (c)"
    proto = onnx.parser.parse_model(VECTOR.format(body=body, start="zero"))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    pipeline.run(model, [RecogniseRecurrences()], Context(), check=True)
    (scan,) = [node for node in model.graph if node.op_type == "Scan"]

    inside = [node.op_type for node in scan.attributes["body"].as_graph()]
    assert inside == ["Add", "Tanh", "Identity", "Identity"]


def test_a_loop_over_some_of_the_tokens_stays() -> None:
    """What it gives is not one entry for each token."""
    assert taken_apart(VECTOR.replace("time", "later"), MIX) == ["Scan"]


def test_what_is_handed_through_keeps_the_name_of_what_it_is() -> None:
    body = MIX.replace("out = Identity (next)", "out = Identity (x_t)")

    assert taken_apart(VECTOR, body) == []


def test_an_initial_value_that_is_not_zero_is_where_it_starts() -> None:
    assert taken_apart(VECTOR, MIX, start="w") == ["DiagonalSSM"]
    assert taken_apart(VECTOR, "next = Add (h, x_t) out = Mul (next, u_t)", start="w") == ["CumSum"]


@pytest.mark.parametrize(
    "body",
    [
        f"{ERROR} {WRITE} {READ}",
        # the same in products of matrices
        ("kr = Unsqueeze (k_t, mid) r = MatMul (kr, s) vr = Unsqueeze (v_t, mid) e = Sub (vr, r) "
        "br = Unsqueeze (b_t, mid) d = Mul (e, br) kc = Unsqueeze (k_t, two) w = MatMul (kc, d) "
        "next = Add (w, s) qr = Unsqueeze (q_t, mid) o = MatMul (qr, next) out = Squeeze (o, mid)"),
        # expanded: S - b k (k^T S) + b k v^T
        ('r = Einsum <equation = "bkv,bk->bv"> (s, k_t) rb = Mul (r, b_t) '
        'c = Einsum <equation = "bv,bk->bkv"> (rb, k_t) '
        'kb = Mul (k_t, b_t) w = Einsum <equation = "bk,bv->bkv"> (kb, v_t) '
        f"p = Sub (s, c) next = Add (p, w) {READ}"),
        # after a decay
        (f"{GATED} {ERROR.replace('(s, k_t)', '(sg, k_t)')} {WRITE.replace('(s, w)', '(sg, w)')}"
        f" {READ}"),
        # without reading what is there; twice the query
        (f"{GATED} d = Mul (v_t, b_t) {WRITE.replace('(s, w)', '(sg, w)')} "
        "q2 = Add (q_t, q_t) qc = Unsqueeze (q2, two) p = Mul (next, qc) "
        "out = ReduceSum <keepdims = 0> (p, mid)"),
        # laid out by the rows of the state
        f"{ERROR} {WRITE} {READ.replace('out =', 'o =')} {LAID_OUT}",
        # two readings
        f"{ERROR} {WRITE} {TWICE}",
    ],
)  # fmt: skip
def test_outer_products(body: str) -> None:
    assert taken_apart(MATRIX, body) == ["LinearAttention"]


@pytest.mark.parametrize(
    "body",
    [
        f"{ERROR.replace('(s, k_t)', '(s, q_t)')} {WRITE} {READ}",  # written with another key
        f"{GATED} {ERROR} {WRITE.replace('(s, w)', '(sg, w)')} {READ}",  # read before the decay
        # RWKV-7's: read along q, added along k times b, and an outer product of its own
        f"{GATED} {LOW_RANK} {READ}",
        # the state before, and no decay
        f"{LOW_RANK.replace('(sg, p)', '(s, p)')} {READ}",
    ],
)  # fmt: skip
def test_what_is_read_and_added_along_other_keys_is_a_transition_of_low_rank(body: str) -> None:
    assert taken_apart(MATRIX, body) == ["DPLRDeltaRule"]


@pytest.mark.parametrize(
    "body",
    [
        (
            f"{ERROR.replace('Sub (v_t, r)', 'Add (v_t, r)').replace('Mul (b_t, e)', 'Tanh (e)')}"
            f" {WRITE} {READ}"
        ),
        f"{ERROR} {WRITE} {READ.replace('next, q_t', 's, q_t')}",  # the state before
        # what is read is scaled for each value, and what is of low rank is asked twice
        f"{GATED} {LOW_RANK.replace('(r, kb)', '(rv, kb)').replace(' p =', SCALED)} {READ}",
        f"{GATED} {LOW_RANK} {TWICE}",
    ],
)
def test_other_updates_stay_loops(body: str) -> None:
    assert taken_apart(MATRIX, body) == ["Scan"]
