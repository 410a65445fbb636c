"""Statefulize on graphs written as text: what no PyTorch module would trace to, or not plainly."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common

from intaglio.errors import PassError
from intaglio.ops import DIAGONAL_SSM, PIECEWISE_LINEAR_RNN
from intaglio.passes import evaluate, stepping
from intaglio.passes.base import Context
from intaglio.passes.exact.statefulize import Statefulize
from intaglio.passes.own_ops import define


def test_an_unknown_operator_is_refused_as_soon_as_time_reaches_it() -> None:
    """Nothing is passed through because no rule knows it."""
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 4] x) => (float[batch, time, 4] y) { y = Det4 (x) }
    """)
    with pytest.raises(PassError, match="not known to act on each token alone"):
        Statefulize().run(model, Context())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Reshape <allowzero=0> (x, shape)", "frozen"),
        ("y = Add (x, long)", "frozen"),
        ("z = Identity (x) y = Expand (long, whole)", "no time axis|not known"),
    ],
)
def test_a_frozen_number_of_tokens_is_refused(body: str, reason: str) -> None:
    """A constant that was as long as the example sequence does not pass for a parameter."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 4] x) => (float[batch, 5, 4] y)
        <float[5, 4] long = {{{", ".join(["1.0"] * 20)}}}, int64[3] shape = {{-1, 5, 4}},
         int64[3] whole = {{1, 5, 4}}>
        {{ {body} }}
    """)
    with pytest.raises(PassError, match=reason):
        Statefulize().run(model, Context())


def test_a_sliced_table_ends_the_context_of_a_graph_from_anywhere() -> None:
    """The limit is read off the graph, not only off the trace."""
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 2] x) => (float[batch, time, 2] y)
        <float[3, 2] table = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, int64[1] zero = {0}>
        {
          count = Shape <start = 1, end = 2> (x)
          rows = Slice (table, zero, count, zero)
          y = Add (x, rows)
        }
    """)
    sliced = next(node for node in model.graph if node.op_type == "Slice").outputs[0]
    sliced.shape, sliced.type = ir.Shape(["time", 2]), ir.TensorType(ir.DataType.FLOAT)
    context = Context()
    Statefulize().run(model, context)
    assert context.max_context == 3


def test_states_of_one_module_are_told_apart_by_the_order_of_its_calls() -> None:
    """A graph without modules counts its calls."""
    model = ir.from_onnx_text(
        """
        <ir_version: 13, opset_import: ["" : 27]>
        g (float[batch, time, 8] x) => (float[batch, time, 8] z)
        {
          y, s = LinearAttention <update_rule = "linear", %s> (x, x, x)
          z, r = LinearAttention <update_rule = "linear", %s> (y, y, y)
        }
    """.replace("%s", "q_num_heads = 2, kv_num_heads = 2")
    )
    context = Context()
    common.ShapeInferencePass()(model)
    Statefulize().run(model, context)
    names = [(spec.input, spec.call) for spec in context.states]
    assert names == [("past.0.recurrent.0", 0), ("past.0.recurrent.1", 1)]


def test_recurrent_states_are_single_precision_and_caches_follow_the_activations() -> None:
    """A half-precision model keeps its sums in single precision."""
    model = ir.from_onnx_text("""
        <ir_version: 13, opset_import: ["" : 27]>
        g (float16[batch, time, 8] x, float16[batch, 2, time, 4] q)
          => (float16[batch, time, 8] y, float16[batch, 2, time, 4] z)
        {
          y, state = LinearAttention <update_rule = "linear", q_num_heads = 2, kv_num_heads = 2,
            scale = 0.5> (x, x, x)
          z = Attention <is_causal = 1> (q, q, q)
        }
    """)
    context = Context()
    Statefulize().run(model, context)
    dtypes: dict[str, Any] = {spec.port: spec.dtype for spec in context.states}
    assert dtypes == {"recurrent": "float32", "key": "float16", "value": "float16"}


@pytest.mark.parametrize("kv", ["static", "grow"])
def test_the_window_of_an_attention_is_kept(kv: Any) -> None:
    """`left_window_size` lets token i see itself and the two before it."""
    model = ir.from_onnx_text("""
        <ir_version: 13, opset_import: ["" : 27]>
        g (float[batch, 2, time, 4] x) => (float[batch, 2, time, 4] y)
        { y = Attention <is_causal = 1, left_window_size = 2> (x, x, x) }
    """)
    x = np.random.default_rng(0).standard_normal((2, 2, 9, 4), np.float32)
    wanted = evaluate.run(model, {"x": x})["y"]
    context = Context()
    Statefulize(kv=kv).run(model, context)
    assert [spec.window for spec in context.states] == [3, 3]
    for parts in ([9], [1] * 9, [2, 6, 1]):
        found = stepping.roll(model, context.states, {"x": x}, parts)["y"]
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("axis", "dtype"), [(1, "float"), (-2, "float"), (1, "int64")])
def test_a_sum_over_time_is_carried(axis: int, dtype: str) -> None:
    """Any split gives the sums of the whole; numbers that count stay integers."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 3] x) => ({dtype}[batch, time, 3] y)
        <int64 axis = {{{axis}}}>
        {{ z = Cast <to = {7 if dtype == "int64" else 1}> (x)  y = CumSum (z, axis) }}
    """)
    common.ShapeInferencePass()(model)
    context = Context()
    Statefulize().run(model, context)
    x = 5 * np.random.default_rng(0).standard_normal((2, 7, 3), np.float32)
    wanted = x.astype(dtype.replace("float", "float32")).cumsum(1)

    (spec,) = context.states
    assert (spec.op, spec.port, spec.shape) == ("cumulative_sum", "sum", ("batch", 3))
    assert spec.dtype == dtype.replace("float", "float32")
    for parts in ([7], [2, 4, 1], [1] * 7):
        found = stepping.roll(model, context.states, {"x": x}, parts)["y"]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["reverse", "exclusive"])
def test_a_sum_of_something_else_is_refused(how: str) -> None:
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 3] x) => (float[batch, time, 3] y)
        <int64 axis = {{1}}> {{ y = CumSum <{how} = 1> (x, axis) }}
    """)
    with pytest.raises(PassError, match="sums up what comes later, or leaves out the token itself"):
        Statefulize().run(model, Context())


@pytest.mark.parametrize(("first", "works"), [("[2, 0, 1]", True), ("[1, 2, 0]", False)])
def test_constant_places_are_picked_from_other_axes_than_time(first: str, works: bool) -> None:
    """An index that is a list, as in x[..., [2]], picks channels; it never picks tokens."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 4] x) => (float[batch, time, 1] y)
        <int64[1, 1] places = {{2}}, float[4, batch, time] front, float[1, batch, time] picked>
        {{
          front = Transpose <perm = {first}> (x)
          picked = GatherND (front, places)
          y = Transpose <perm = [1, 2, 0]> (picked)
        }}
    """)
    if works:
        Statefulize().run(model, Context())
        return
    with pytest.raises(PassError, match="picks tokens out of the sequence"):
        Statefulize().run(model, Context())


@pytest.mark.parametrize(
    ("body", "works"),
    [
        ("rows = Reshape (x, width) z = Softmax (rows) y = Reshape (z, back)", True),
        ("flat = Reshape (x, tokens) rows = Reshape (flat, width) y = Reshape (rows, back)", True),
        ("rows = Reshape (x, width) z = CumSum (rows, zero) y = Reshape (z, back)", False),
        ("t = Transpose <perm = [0, 2, 1, 3]> (x) z = Reshape (t, width) y = Relu (z)", False),
    ],
)
def test_heads_may_be_merged_with_the_tokens_they_belong_to(body: str, works: bool) -> None:
    """As norms over each head and routers do; heads before time would be merged across tokens."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 2, 4] x) => (float[batch, time, 8] y)
        <int64[2] width = {{-1, 4}}, int64[2] tokens = {{-1, 8}}, int64[3] back = {{1, -1, 8}},
         int64 zero = {{0}}>
        {{ {body} }}
    """)
    heads: list[int | str] = ["2*batch*time", 4]
    shapes: dict[str | None, list[int | str]] = {
        "rows": heads,
        "z": heads,
        "flat": ["batch*time", 8],
        "t": ["batch", 2, "time", 4],
    }
    for value in (value for node in model.graph for value in node.outputs):
        if value.name in shapes:
            value.shape, value.type = ir.Shape(shapes[value.name]), model.graph.inputs[0].type
    if works:
        Statefulize().run(model, Context())
        return
    with pytest.raises(PassError, match=r"accumulates over|loses the time axis"):
        Statefulize().run(model, Context())


@pytest.mark.parametrize(("index", "works"), [("ids", True), ("turned", False)])
def test_rows_of_a_constant_table_are_picked_by_tokens(index: str, works: bool) -> None:
    """As the weights of the experts that each token goes to."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (int64[batch, time, 1] ids) => (float[batch, time, 2] y)
        <float[3, 2] table = {{1.0, 2.0, 3.0, 4.0, 5.0, 6.0}}, int64[batch, 1, time] turned>
        {{
          turned = Transpose <perm = [0, 2, 1]> (ids)
          y = GatherND (table, {index})
        }}
    """)
    common.ShapeInferencePass()(model)
    if works:
        Statefulize().run(model, Context())
        return
    with pytest.raises(PassError, match="picks entries"):
        Statefulize().run(model, Context())


@pytest.mark.parametrize("lti", [0, 1])
def test_a_state_space_model_carries_its_state(lti: int) -> None:
    """Any split gives what the operator's own loop gives over all tokens."""
    mixing = "float[3, 2]" if lti else "float[batch, time, 2]"
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 27, "intaglio" : 1]>
        g (float[batch, time, 3] x, float[batch, time, 2] b) => (float[batch, time, 3] y)
        <float[3, 2] A = {{-0.5, -1.0, -2.0, -0.1, -0.7, -3.0}}, {mixing} w>
        {{
          w = Identity ({"A" if lti else "b"})
          y, s = intaglio.DiagonalSSM <discretization = "none", lti = {lti}> (x, A, w, w, x)
        }}
    """)
    define(model)
    context = Context()
    Statefulize().run(model, context)
    draw = np.random.default_rng(0).random
    inputs = {"x": draw((2, 7, 3), np.float32), "b": draw((2, 7, 2), np.float32)}
    x, b = (torch.from_numpy(array) for array in inputs.values())
    rates = torch.tensor([[-0.5, -1.0], [-2.0, -0.1], [-0.7, -3.0]])
    w = rates if lti else b
    wanted, _ = DIAGONAL_SSM.reference(x, rates, w, w, x, discretization="none", lti=bool(lti))

    assert [(spec.op, spec.shape) for spec in context.states] == [("diagonal_ssm", ("batch", 3, 2))]
    for parts in ([7], [2, 4, 1], [1] * 7):
        found = stepping.roll(model, context.states, inputs, parts)["y"]
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_a_state_space_model_does_not_change_with_the_tokens() -> None:
    """Rates of each token have no place in the operator."""
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 27, "intaglio" : 1]>
        g (float[batch, time, 3] x, float[3, time] rates) => (float[batch, time, 3] y)
        { y, s = intaglio.DiagonalSSM <discretization = "none", lti = 0> (x, rates, x, x) }
    """)
    with pytest.raises(PassError, match="input 1 that is not the same for all tokens"):
        Statefulize().run(model, Context())


@pytest.mark.parametrize("num_relu", [0, 1])
def test_a_piecewise_linear_network_carries_its_state(num_relu: int) -> None:
    """Any split gives what the operator's own loop gives over all tokens, some of them forced."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 27, "intaglio" : 1]>
        g (float[batch, time, 3] x, float[batch, time, 2] f) => (float[batch, time, 3] y)
        <float[3] a = {{0.5, -0.4, 0.1}}, float[1] zero = {{0}}, int64[1] last = {{-1}},
         float[3, 3] w = {{0.1, 0.5, -0.3, -0.6, 0.2, 0.4, 0.3, -0.2, 0.6}}>
        {{
          most = ReduceMax <keepdims = 0> (x, last)
          mask = Greater (most, zero)
          y, s = intaglio.PiecewiseLinearRNN <num_relu = {num_relu}> (x, a, w, a, f, mask)
        }}
    """)
    common.ShapeInferencePass()(model)
    define(model)
    context = Context()
    Statefulize().run(model, context)
    draw = np.random.default_rng(0).standard_normal
    inputs = {"x": draw((2, 7, 3), np.float32), "f": draw((2, 7, 2), np.float32)}
    x, force = (torch.from_numpy(array) for array in inputs.values())
    a = torch.tensor([0.5, -0.4, 0.1])
    w = torch.tensor([[0.1, 0.5, -0.3], [-0.6, 0.2, 0.4], [0.3, -0.2, 0.6]])
    wanted, _ = PIECEWISE_LINEAR_RNN.reference(x, a, w, a, force, x.amax(-1) > 0, num_relu=num_relu)

    (spec,) = context.states
    assert (spec.op, spec.shape) == ("piecewise_linear_rnn", ("batch", 3))
    for parts in ([7], [2, 4, 1], [1] * 7):
        found = stepping.roll(model, context.states, inputs, parts)["y"]
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("x, rates, w, a", "input 1 that is not the same for all tokens"),
        ("still, a, w, a, x", r"input 0 that is not \[batch, time, ...\]"),
        ("x, a, w, a, x, , late", "each token would see those after it"),
    ],
)
def test_what_a_piecewise_linear_network_cannot_take_is_named(inputs: str, message: str) -> None:
    """Parameters are the same for all tokens, drives of each; a state is what is carried."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 27, "intaglio" : 1]>
        g (float[batch, time, 3] x, float[time] rates)
          => (float[batch, time, 3] y)
        <float[3] a = {{1, 1, 1}}, float[3, 3] w = {{1, 0, 0, 0, 1, 0, 0, 0, 1}},
         float[1, 1, 3] still = {{1, 1, 1}}, float[batch, 3] late>
        {{
          last = Constant <value = int64 {{-1}}> ()
          late = Gather <axis = 1> (x, last)
          y, s = intaglio.PiecewiseLinearRNN <num_relu = 1> ({inputs})
        }}
    """)
    with pytest.raises(PassError, match=message):
        Statefulize().run(model, Context())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("x, each, u", "input 1 that is not the same for all tokens"),
        ("each, w, u", r"input 0 that is not \[batch, time, ...\]"),
        ("x, w, u, , , late", "each token would see those after it"),
    ],
)
def test_what_a_recurrent_layer_cannot_take_is_named(inputs: str, message: str) -> None:
    """Weights are the same for all tokens, inputs of each; a state is what is carried."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 27, "intaglio" : 1]>
        g (float[batch, time, 2] x, float[time, 2] each)
          => (float[batch, time, 2] y)
        <float[2, 2] w = {{1, 0, 0, 1}}, float[2, 2] u = {{1, 0, 0, 1}},
         float[batch, 1, 2] late>
        {{
          last = Constant <value = int64[1] {{-1}}> ()
          late = Gather <axis = 1> (x, last)
          y, s = intaglio.RNN <mode = "RNN_TANH", hidden_size = 2> ({inputs})
        }}
    """)
    with pytest.raises(PassError, match=message):
        Statefulize().run(model, Context())


def test_a_recurrence_starts_from_what_is_given_where_a_row_is_new() -> None:
    """A weight, or an input without time; zeros, however they are made, cost nothing."""
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 27, "intaglio" : 1]>
        g (float[batch, time, 2] x, float[batch, 1, 2] start) => (float[batch, time, 2] y)
        <float[2, 2] w = {1, 0, 0, 1}, float[2, 2] u = {1, 0, 0, 1}, float nought = {0},
         float[batch, time, 2] z, float[batch, 1, 2] zeros>
        {
          shape = Shape (start)
          zeros = Expand (nought, shape)
          z, t = intaglio.RNN <mode = "RNN_TANH", hidden_size = 2> (x, w, u, , , zeros)
          y, s = intaglio.RNN <mode = "RNN_TANH", hidden_size = 2> (z, w, u, , , start)
        }
    """)
    define(model)
    before, context = model.clone(), Context()
    Statefulize().run(model, context)

    assert [node.op_type for node in model.graph].count("Where") == 1
    random = np.random.default_rng(0)
    inputs = {"x": random.standard_normal((3, 7, 2)), "start": random.standard_normal((3, 1, 2))}
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    wanted = evaluate.run(before, inputs)["y"]
    for parts in ([7], [2, 4, 1]):
        found = stepping.roll(model, context.states, inputs, parts)["y"]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "updates", "works"),
    [("front", "front", True), ("front", "x", False), ("late", "late", False)],
)
def test_constant_places_of_other_axes_than_time_are_written(
    data: str, updates: str, works: bool
) -> None:
    """As rotations of several position axes do; tokens are never written to."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 4] x) => (float[batch, time, 4] y)
        <int64[1, 1] places = {{2}}, float[4, batch, time] front,
         float[time, batch, 4] late>
        {{
          front = Transpose <perm = [2, 0, 1]> (x)
          late = Transpose <perm = [1, 0, 2]> (x)
          written = ScatterND ({data}, places, {updates})
          y = Transpose <perm = [1, 2, 0]> (written)
        }}
    """)
    for node in model.graph:
        if node.op_type == "ScatterND":
            node.outputs[0].shape = ir.Shape([4, "batch", "time"])
    if works:
        Statefulize().run(model, Context())
        return
    with pytest.raises(PassError, match=r"of other tokens|some of the tokens"):
        Statefulize().run(model, Context())


@pytest.mark.parametrize(("steps", "works"), [("one", True), ("back", False)])
def test_a_slice_that_cuts_nothing_off_may_be_counted_from_the_end(steps: str, works: bool) -> None:
    """As x[:, -T:] is of T tokens; in steps of -1 it would turn time around."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, time, 4] x) => (float[batch, time, 4] y)
        <int64[1] one = {{1}}, int64[1] back = {{-1}}, int64[1] end = {{9223372036854775807}}>
        {{
          count = Shape <start = 1, end = 2> (x)
          start = Neg (count)
          y = Slice (x, start, end, one, {steps})
        }}
    """)
    if works:
        Statefulize().run(model, Context())
        return
    with pytest.raises(PassError, match="slices at places"):
        Statefulize().run(model, Context())


@pytest.mark.parametrize(
    ("shape", "dims", "works"),
    [
        ("rows, four, more", "batch, 4, time + 2", True),
        ("rows, more, four", "batch, time + 2, 4", False),  # which mixes tokens
        ("one, all, more", "1, 4*batch, time + 2", False),  # rows merged with channels
    ],
)
def test_a_padded_sequence_is_reshaped_beside_time(shape: str, dims: str, works: bool) -> None:
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[batch, 2, 2, time] x) => (float[batch, 1, time] y)
        <float[1, 4, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}}, int64[1] one = {{1}},
         int64[8] pads = {{0, 0, 0, 2, 0, 0, 0, 0}}, int64[1] four = {{4}}, int64[1] two = {{2}},
         float[batch, 2, 2, long] p, float[a, b, c] r>
        {{
          p = Pad (x, pads)
          rows = Shape <start = 0, end = 1> (x)
          tokens = Shape <start = 3, end = 4> (x)
          more = Add (tokens, two)
          all = Mul (rows, four)
          s = Concat <axis = 0> ({shape})
          r = Reshape <allowzero = 1> (p, s)
          y = Conv (r, w)
        }}
    """)
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    values["p"].shape = ir.Shape(["batch", 2, 2, "time + 2"])
    sizes = dims.split(", ")
    values["r"].shape = ir.Shape([int(d) if d.isdigit() else d for d in sizes])
    before, context = model.clone(), Context()
    if not works:
        with pytest.raises(PassError, match="Reshape"):
            Statefulize().run(model, context)
        return
    Statefulize().run(model, context)
    x = np.random.default_rng(0).standard_normal((3, 2, 2, 7)).astype(np.float32)
    wanted = evaluate.run(before, {"x": x})["y"]
    for parts in ([7], [2, 4, 1]):
        found = stepping.roll(model, context.states, {"x": x}, parts)["y"]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
