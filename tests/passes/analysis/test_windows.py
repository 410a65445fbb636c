"""Convolutions and pooling over time: what each step gives is what the whole sequence gives."""

import numpy as np
import onnx_ir as ir
import pytest

from intaglio.errors import PassError
from intaglio.passes import evaluate, stepping
from intaglio.passes.base import Context
from intaglio.passes.exact.statefulize import Statefulize
from intaglio.passes.graph import set_dims
from intaglio.passes.shapes import infer_shapes
from intaglio.state import BATCH, TIME

TOKENS = 9
SPLITS = ([TOKENS], [1] * TOKENS, [2, 4, 1, 2])


def graph(given: str, made: str, weights: str, body: str) -> ir.Model:
    """A training-form graph of an input x, its weights random, its shapes known."""
    given_text, made_text = (
        ", ".join(d if d.isdigit() else d.strip("0123456789*") for d in each.split(", "))
        for each in (given, made)
    )
    text = f"""
        <ir_version: 10, opset_import: ["" : 24]>
        g (float[{given_text}] x) => (float[{made_text}] y)
        <{weights}> {{ {body} }}
    """
    random = np.random.default_rng(0)
    model = ir.from_onnx_text(text)
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        if value.const_value.dtype == ir.DataType.FLOAT:
            shape = value.const_value.shape.numpy()
            array = random.standard_normal(shape).astype(np.float32)
            value.const_value = ir.tensor(array, name=name)
    set_dims(model.graph.inputs[0], [int(d) if d.isdigit() else d for d in given.split(", ")])
    infer_shapes(model)
    return model


def floats(name: str, *shape: int) -> str:
    """The declaration of a weight, whose numbers come later."""
    count = int(np.prod(shape))
    return f"float[{','.join(map(str, shape))}] {name} = {{{', '.join(['0.0'] * count)}}}"


def integers(name: str, *numbers: int) -> str:
    """The declaration of constant places."""
    return f"int64[{len(numbers)}] {name} = {{{', '.join(map(str, numbers))}}}"


CUT = [integers("s", 0), integers("e", -2), integers("a", 2)]

CAUSAL = {
    "over time and bands": (
        "batch, 2, time, 8",
        "batch, 3, time, 4",
        [floats("w", 3, 2, 3, 3), floats("b", 3), integers("p", 0, 0, 2, 0, 0, 0, 0, 0)],
        "z = Pad (x, p) y = Conv <strides = [1, 2], pads = [0, 1, 0, 1]> (z, w, b)",
        [2],
    ),
    "padded in time and over bands at once": (
        "batch, 2, time, 8",
        "batch, 3, time, 8",
        [floats("w", 3, 2, 2, 3), integers("p", 0, 0, 3, 1, 0, 0, 0, 1)],
        "z = Pad (x, p) y = Conv <dilations = [3, 1]> (z, w)",
        [3],
    ),
    "cut at its end": (
        "batch, 2, 8, time",
        "batch, 3, 8, time",
        [floats("w", 3, 2, 1, 3), integers("s", 0), integers("e", -2), integers("a", 3)],
        "z = Conv <pads = [0, 2, 0, 2]> (x, w) u = Tanh (z) y = Slice (u, s, e, a)",
        [2],
    ),
    "a stack that is padded once": (
        "batch, 2, time",
        "batch, 2, time",
        [
            floats("v", 2, 2, 2),
            floats("w", 2, 2, 2),
            floats("b", 2),
            integers("p", 0, 0, 3, 0, 0, 0),
        ],
        "z = Pad (x, p) t = Conv (z, v, b) u = Tanh (t) y = Conv <dilations = [2]> (u, w, b)",
        [1, 2],
    ),
    "padding with a number": (
        "batch, 2, time",
        "batch, 2, time",
        [floats("w", 2, 2, 3), "float f = {1.5}", integers("p", 0, 0, 2, 0, 0, 0)],
        "z = Pad (x, p, f) y = Conv (z, w)",
        [2],
    ),
    "a residual stack that is padded once": (
        "batch, 2, time",
        "batch, 2, time",
        [
            floats("v", 2, 2, 2),
            floats("w", 2, 2, 2),
            floats("b", 2),
            integers("p", 0, 0, 3, 0, 0, 0),
            *(integers(n, k) for n, k in (("one", 1), ("two", 2), ("end", 2**31 - 1))),
        ],
        (
            "z = Pad (x, p) t = Conv (z, v, b) k = Slice (z, one, end, two) u = Add (t, k) "
            "c = Conv <dilations = [2]> (u, w, b) m = Slice (u, two, end, two) y = Add (c, m)"
        ),
        [1, 2],
    ),
    "transposed over time and bands": (
        "batch, 2, time, 4",
        "batch, 3, time, 7",
        [floats("w", 2, 3, 3, 3), floats("b", 3), *CUT],
        (
            "z = ConvTranspose <strides = [1, 2], pads = [0, 1, 0, 1]> (x, w, b) "
            "y = Slice (z, s, e, a)"
        ),
        [2],
    ),
    "the mean of the last three": (
        "batch, 2, time",
        "batch, 2, time",
        [integers("p", 0, 0, 2, 0, 0, 0)],
        "z = Pad (x, p) y = AveragePool <kernel_shape = [3]> (z)",
        [2],
    ),
    "the largest of the last three": (
        "batch, 2, time",
        "batch, 2, time",
        [integers("p", 0, 0, 2, 0, 0, 0)],
        "z = Pad (x, p) y = MaxPool <kernel_shape = [3]> (z)",
        [2],
    ),
    "frames that are warped": (
        "batch, time, 2, 4, 3",
        "batch, time, 2, 4, 3",
        [integers("s", -1, 2, 4, 3)],
        (
            "f = Reshape (x, s) g = Transpose <perm = [0, 2, 3, 1]> (f) "
            "h = GridSample <align_corners = 1> (f, g) z = Shape (x) y = Reshape (h, z)"
        ),
        [],
    ),
}


def holds(given: str, made: str, weights: list[str], body: str, fronts: list[int]) -> None:
    """Any split gives what the whole gives, with states of as many entries as `fronts` says."""
    model = graph(given, made, ", ".join(weights), body)
    step, context = model.clone(), Context()
    Statefulize().run(step, context)
    inputs = stepping.random_inputs(model, [], {BATCH: 3, TIME: TOKENS})
    wanted = evaluate.run(model, inputs)["y"]
    for parts in SPLITS:
        got = stepping.roll(step, context.states, inputs, parts)["y"]
        np.testing.assert_allclose(got, wanted, atol=2e-6, err_msg=str(parts))
    axis = next(at for at, dim in enumerate(given.split(", ")) if TIME in dim)
    assert [spec.shape[axis] for spec in context.states] == fronts


@pytest.mark.parametrize("name", CAUSAL)
def test_every_split_gives_what_the_whole_sequence_gives(name: str) -> None:
    """The first tokens included, before which is padding, or what layers made of it."""
    holds(*CAUSAL[name])


REFUSED = {
    "ahead": (
        "batch, 2, time, 8",
        "batch, 3, time, 8",
        [floats("w", 3, 2, 3, 1)],
        "y = Conv <pads = [1, 0, 1, 0]> (x, w)",
        "looks 1 tokens ahead",
    ),
    "ahead by a transposed one": (
        "batch, 2, time",
        "batch, 3, time",
        [floats("w", 2, 3, 3)],
        "y = ConvTranspose <pads = [1, 1]> (x, w)",
        "looks 1 tokens ahead",
    ),
    "a stride that leaves tokens over": (
        "batch, 2, time",
        "batch, 3, rest",
        [floats("w", 3, 2, 3), integers("p", 0, 0, 2, 0, 0, 0)],
        "z = Pad (x, p) y = Conv <strides = [2]> (z, w)",
        "strides of 2",
    ),
    "zeros in front of what padding became": (
        "batch, 2, time",
        "batch, 2, rest",
        [floats("w", 2, 2, 2), floats("b", 2), integers("p", 0, 0, 2, 0, 0, 0)],
        "z = Pad (x, p) t = Conv (z, w, b) y = Conv <pads = [1, 0]> (t, w, b)",
        "puts zeros in front",
    ),
    "means of which padding does not count": (
        "batch, 2, time",
        "batch, 2, time",
        CUT,
        "z = AveragePool <kernel_shape = [3], pads = [2, 2]> (x) y = Slice (z, s, e, a)",
        "what is not counted",
    ),
    "places among tokens": (
        "batch, 2, 1, time",
        "batch, 2, 1, 5",
        [floats("g", 1, 1, 5, 2), integers("k", 1, 5, 2)],
        (
            "n = Shape <start = 0, end = 1> (x) s = Concat <axis = 0> (n, k) e = Expand (g, s) "
            "y = GridSample (x, e)"
        ),
        "samples along time",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_state_can_reproduce_is_refused(name: str) -> None:
    given, made, weights, body, reason = REFUSED[name]
    model = graph(given, made, ", ".join(weights), body)
    with pytest.raises(PassError, match=reason):
        Statefulize().run(model, Context())


def test_padding_that_a_condition_changes_is_refused() -> None:
    """What stands before the first token is a weight then of no graph."""
    model = graph(
        "batch, 2, time",
        "batch, 2, time",
        ", ".join([floats("w", 2, 2, 2), integers("p", 0, 0, 2, 0, 0, 0)]),
        "z = Pad (x, p) t = Conv (z, w) y = Conv (t, w)",
    )
    convolved = next(node for node in model.graph if node.op_type == "Conv")
    label = ir.Value(
        name="label", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([BATCH, 2, 1])
    )
    model.graph.inputs.append(label)
    shifted = ir.node("Add", [convolved.outputs[0], label])
    shifted.outputs[0].type, shifted.outputs[0].shape = (
        convolved.outputs[0].type,
        convolved.outputs[0].shape,
    )
    for node, index in list(convolved.outputs[0].uses()):
        if node is not shifted:
            node.replace_input_with(index, shifted.outputs[0])
    model.graph.insert_after(convolved, shifted)
    with pytest.raises(PassError, match="conditions change"):
        Statefulize().run(model, Context())


RATES = {
    "half as many": (
        "batch, 2, 2*time",
        "batch, 3, time",
        [floats("w", 3, 2, 3), floats("b", 3), integers("p", 0, 0, 1, 0, 0, 0)],
        "z = Pad (x, p) y = Conv <strides = [2]> (z, w, b)",
        [1],
    ),
    "a third, of windows that overlap": (
        "batch, 2, 3*time",
        "batch, 3, time",
        [floats("w", 3, 2, 8), integers("p", 0, 0, 7, 0, 0, 0)],
        "z = Pad (x, p) y = Conv <strides = [3]> (z, w)",
        [7],
    ),
    "of windows side by side": (
        "batch, 2, 4*time",
        "batch, 3, time",
        [floats("w", 3, 2, 4)],
        "y = Conv <strides = [4]> (x, w)",
        [],
    ),
    "fewer, then more": (
        "batch, 2, 6*time",
        "batch, 2, 6*time",
        [
            *(floats("v", 3, 2, 6), floats("w", 3, 2, 7), floats("b", 2)),
            *(integers("p", 0, 0, 4, 0, 0, 0), CUT[0], integers("e", -4), CUT[2]),
        ],
        (
            "z = Pad (x, p) t = Conv <strides = [3]> (z, v) u = Tanh (t) "
            "c = ConvTranspose <strides = [3]> (u, w, b) y = Slice (c, s, e, a)"
        ),
        [4, 2],
    ),
    "more, of results that overlap": (
        "batch, 2, time",
        "batch, 3, 2*time",
        [floats("w", 2, 3, 5), floats("b", 3), CUT[0], integers("e", -3), CUT[2]],
        "z = ConvTranspose <strides = [2]> (x, w, b) y = Slice (z, s, e, a)",
        [2],
    ),
    "means of pairs": (
        "batch, 2, 2*time",
        "batch, 2, time",
        [floats("w", 2)],
        "y = AveragePool <kernel_shape = [2], strides = [2]> (x)",
        [],
    ),
    "stacked in pairs": (
        "batch, 2*time, 3",
        "batch, time, 6",
        [integers("q", 0, -1, 6)],
        "z = Reshape (x, q) y = Tanh (z)",
        [],
    ),
    "every second one": (
        "batch, 2*time, 3",
        "batch, time, 3",
        [integers("s", 1), integers("e", 2**31 - 1), integers("a", 1), integers("d", 2)],
        "y = Slice (x, s, e, a, d)",
        [],
    ),
    "repeated": (
        "batch, 2, time",
        "batch, 2, 3*time",
        [floats("w", 2, 2, 2), integers("p", 0, 0, 1, 0, 0, 0)],
        (
            "f = Constant <value = float[3] {1.0, 1.0, 3.0}> () "
            'r = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", '
            'nearest_mode = "floor"> (x, , f) z = Pad (r, p) y = Conv (z, w)'
        ),
        [1],
    ),
}


@pytest.mark.parametrize("name", RATES)
def test_a_stream_may_change_its_rate(name: str) -> None:
    """Tokens are counted at the slowest rate; a value of another has several entries for each."""
    holds(*RATES[name])
