"""Parameters as graphs hold them: every form writes out what the operators compute with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from low_bit_graphs import FLOAT, draw, graph_of, lowered

from intaglio.graph_keys import LOW_BIT
from intaglio.passes.base import Context
from intaglio.passes.exact.remove_dead import RemoveDead
from intaglio.passes.graph import add_initializer
from intaglio.passes.low_bit import add_weight
from intaglio.passes.lower.ort_packed_products import OrtPackedProducts
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.onnx_graph import parse_graph
from intaglio.runtime.weight_forms import Form, forms_of

Array = npt.NDArray[Any]
MakeBundle = Callable[..., Path]


def forms(model: ir.Model, bundle: Bundle) -> dict[str, list[Form]]:
    content = ir.to_proto(model).SerializeToString()
    return forms_of(bundle, parse_graph(content))


@pytest.fixture(scope="module")
def bundle(build_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build_bundle(tmp_path_factory.mktemp("forms") / "bundle", ("conv",)))


SHAPES = [
    # bits, K, group: whole rows, groups that are blocks, padded ones, short last ones
    (2, 40, 16), (2, 64, 64), (3, 40, 12), (3, 7, 7), (4, 200, 96), (4, 64, 32), (4, 256, 128),
    (8, 40, 40), (8, 70, 64), (4, 160, 64), (2, 130, 128), (4, 256, 256), (4, 300, 192),
]  # fmt: skip


@pytest.mark.parametrize("offset", ["none", "floats", "points"])
@pytest.mark.parametrize(("bits", "K", "group"), SHAPES)
def test_few_bits_are_written_out_before_and_after_lowering(
    bits: int, K: int, group: int, offset: str, bundle: Bundle
) -> None:
    """Two products of one input are stacked; the second has other rows."""
    weights = [draw(bits, rows, K, group, offset) for rows in (3, 5)]
    for model in (graph_of(weights), lowered(graph_of(weights))):
        found = forms(model, bundle)
        for index, weight in enumerate(weights):
            [form] = found[f"w{index}"]
            written = form.write()
            assert written is not None
            np.testing.assert_allclose(written, weight.dequantize(), rtol=1e-6, atol=1e-6)
            assert form.kind == f"{bits} bits, groups of {min(group, K)}"


def test_stacks_of_three_and_four_bits_are_told_apart(bundle: Bundle) -> None:
    """Both are stored in four."""
    weights = [draw(3, 4, 64, 32), draw(4, 6, 64, 32)]
    found = forms(lowered(graph_of(weights)), bundle)

    assert found["w0"][0].tensors == found["w1"][0].tensors
    assert [found[f"w{i}"][0].bits for i in range(2)] == [3, 4]


@pytest.mark.parametrize("change", [lambda m: m, lowered])
def test_turned_and_tied_weights_are_written_as_their_parameter_stands(
    change: Callable[[ir.Model], ir.Model], bundle: Bundle
) -> None:
    weight = draw(4, 6, 64, 32)
    turned = forms(change(graph_of([weight], turned=True)), bundle)["w0"]
    tied = forms(change(graph_of([weight], table=True)), bundle)["w0"]

    wanted = [(turned[0], weight.dequantize().T), *((form, weight.dequantize()) for form in tied)]
    for form, array in wanted:
        written = form.write()
        assert written is not None
        np.testing.assert_allclose(written, array, atol=1e-6)
    assert len(tied) == (1 if change is not lowered else 2)


def test_codes_that_stand_for_a_parameter_that_others_read_bear_its_name(bundle: Bundle) -> None:
    model = graph_of([draw(4, 6, 64, 32)])
    add_weight(model.graph, "w0", draw(4, 6, 64, 32), stands_for=("shared", True))
    [form] = forms(lowered(model), bundle)["shared"]
    written = form.write()

    assert written is not None
    assert written.shape == (64, 6)


def test_metadata_that_does_not_fit_is_no_form(bundle: Bundle) -> None:
    """Whoever edits a file gets no traceback, and no wrong numbers."""
    for wrong in ("{", "[]", '{"of": 3}', '{"of": ["w0"], "turned": [0], "K": 900, "group": 7}'):
        model = lowered(graph_of([draw(4, 6, 64, 32)]))
        model.graph.initializers["w0.codes.ort.data"].metadata_props[LOW_BIT] = wrong
        assert all(form.floats or form.write() is None for each in forms(model, bundle).values()
                   for form in each)  # fmt: skip


def test_factors_are_multiplied_in_the_layout_of_the_parameter(bundle: Bundle) -> None:
    """[N, r] [r, K], or [K, r] [r, N]; what a user calls so is no product."""
    model = graph_of([draw(8, 3, 40, 16)])
    graph = model.graph
    shapes = {"a": ((2, 5), (4, 2)), "b": ((6, 2), (2, 6))}
    for stem, (first, second) in shapes.items():
        of = [f"{stem}.weight"]
        add_initializer(graph, f"{stem}.first.weight", np.ones(first, np.float32), of=of)
        add_initializer(graph, f"{stem}.second.weight", np.ones(second, np.float32), of=of)
    add_initializer(graph, "user.first.weight", np.ones((2, 5), "f4"))
    add_initializer(graph, "user.second.weight", np.ones((4, 2), "f4"))
    found = forms(model, bundle)

    for name, shape in (("a.weight", (4, 5)), ("b.weight", (6, 6))):
        [form] = found[name]
        np.testing.assert_array_equal(form.write(), np.full(shape, 2))
    assert "user.weight" not in found  # whose factors no pass made


def test_a_stack_of_floats_is_each_of_its_parts(bundle: Bundle) -> None:
    x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape(["batch", 32]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 24}, name="g")
    whole = {n: np.full((rows, 32), rows, "f4") for n, rows in (("a", 8), ("b", 24))}
    for name, array in whole.items():
        weight = add_initializer(graph, name, array)
        turned = ir.node("Transpose", [weight], {"perm": [1, 0]})
        turned.outputs[0].name = f"{name}.turned"
        y = ir.node("MatMul", [x, turned.outputs[0]])
        y.outputs[0].type, y.outputs[0].shape = (
            ir.TensorType(FLOAT),
            ir.Shape(["batch", len(array)]),
        )
        z = ir.node("Relu", [y.outputs[0]])
        graph.extend([turned, y, z])
        graph.outputs.append(z.outputs[0])
    model = ir.Model(graph, ir_version=12)
    OrtPackedProducts().run(model, Context())
    RemoveDead().run(model, Context())
    found = forms(model, bundle)

    for name, array in whole.items():
        [form] = found[name]
        assert form.tensors == {"a|b"}
        np.testing.assert_array_equal(form.write(), array)
