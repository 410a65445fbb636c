"""Every operator is what its signature declares: in the standard, in PyTorch, in a step graph."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from emulator.plugins import taken
from emulator.requests import wide
from onnx_ir.passes import common
from torch import Tensor

from intaglio.errors import PassError
from intaglio.operators import BY_TYPE, SIGNATURES
from intaglio.ops import OPS
from intaglio.ops.op import Op, Sample, own_function
from intaglio.passes import stepping
from intaglio.passes.base import Context
from intaglio.passes.exact.statefulize import Statefulize
from intaglio.passes.lower.trt_given_inputs import TrtGivenInputs
from intaglio.passes.lower.trt_half import TrtHalf
from intaglio.passes.lower.trt_loops import TrtLoops
from intaglio.passes.own_ops import define, input_names
from intaglio.runtime.launch import evaluate as size_of
from intaglio.runtime.onnx_graph import parse_graph
from intaglio.runtime.work import NodeWork, Works
from intaglio.signature import ACTIVATIONS, DOMAIN, Signature, evaluate
from intaglio.state import BATCH, CAPACITY, TIME, Layout
from intaglio.trt_plugins import NAMES, find
from intaglio.trt_plugins.launch_torch import request_of

DOCS = Path(__file__).parents[1] / "docs"
STATEFUL = [pytest.param(op, id=op.name) for op in OPS if op.signature.states]
RECURRENT = [pytest.param(op, id=op.name) for op in OPS if op.signature.recurrent]
EVERY = [pytest.param(op, id=op.name) for op in OPS]
FLOAT16, FLOAT32, FLOAT64 = torch.float16, torch.float32, torch.float64
KINDS = {"float16": "FLOAT16", "float32": "FLOAT", "bool": "BOOL"}


def attributes_of(op: Op, sample: Sample) -> dict[str, Any]:
    """ONNX attributes, sizes that a signature takes from them included."""
    return dict(op.attributes(sample))


def tensors(op: Op, values: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: values[name] for name in op.inputs if isinstance(values.get(name), Tensor)}


def misfits(
    signature: Signature, given: Mapping[str, Tensor], attributes: Mapping[str, Any], kind: str
) -> Iterator[str]:
    """Tensors whose shape or dtype is none of those declared, activations being `kind`."""
    shapes = {name: tuple(x.shape) for name, x in given.items()}
    sizes = signature.bind(shapes, attributes)
    for name, x in given.items():
        formal = signature.formal(name)
        options = []
        for terms in formal.shapes(attributes):
            lead = len(shapes[name]) - len(terms) + 1 if terms[0].startswith("*") else 0
            rest = tuple(evaluate(term, sizes) for term in terms[bool(lead) :])
            options.append((*shapes[name][:lead], *rest))
        if options and shapes[name] not in options:
            yield f"{name} has the shape {shapes[name]}, not one of {options}"
        wanted = kind if formal.dtype == ACTIVATIONS else formal.dtype
        if str(x.dtype).removeprefix("torch.") != wanted:
            yield f"{name} is {x.dtype}, not {wanted}"


def test_each_operator_has_its_signature() -> None:
    """By name and by type of node; those of ONNX Runtime's own kernels are the same."""
    assert [op.signature for op in OPS] == list(SIGNATURES)
    for op in OPS:
        domains = [op.domain, *([op.ort_domain] if op.ort_domain else [])]
        for domain in domains:
            assert BY_TYPE[f"{domain}::{op.onnx_type}" if domain else op.onnx_type] is op.signature


@pytest.mark.parametrize("op", EVERY)
def test_inputs_are_those_of_the_standard(op: Op) -> None:
    """In its order; what may be left out may be so there, and each state is one of each side."""
    option = onnx.defs.OpSchema.FormalParameterOption.Optional
    for declared, formal in zip(op.signature.inputs, op.schema.inputs, strict=False):
        assert declared.optional == (formal.option == option), declared.name
        if op.name != "attention":  # whose first inputs have one letter each
            assert declared.name == formal.name
    for state in op.signature.states:
        past, present = (op.signature.formal(name) for name in (state.past, state.present))
        assert past.optional
        assert past.dtype == present.dtype
        assert state.layout is None or past.dims == present.dims
        assert state.port not in [x.port for x in op.signature.states if x is not state]


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        pytest.param(op, dtype, id=f"{op.name}-{dtype}")
        for op in OPS
        for dtype in (FLOAT32, FLOAT16)
        if dtype in op.tolerance
    ],
)
def test_samples_and_what_they_give_have_the_declared_shapes(op: Op, dtype: torch.dtype) -> None:
    """Every shape that is declared is met by a sample, and so is each input."""
    kind, seen = str(dtype).removeprefix("torch."), set[str]()
    for sample in op.samples(dtype):
        results = op.forward(**sample)
        results = (results,) if isinstance(results, Tensor) else results
        outputs = dict(zip((formal.name for formal in op.signature.outputs), results, strict=True))
        if sample.get("window") is not None:
            outputs = {"output": outputs["output"]}  # its cache is shorter than past and present
        given, attributes = tensors(op, sample), attributes_of(op, sample)
        assert list(misfits(op.signature, given | outputs, attributes, kind)) == []
        seen |= given.keys()

    assert seen == set(op.inputs) - {"attn_mask"}


@pytest.mark.parametrize("op", STATEFUL)
def test_a_sequence_may_be_cut_along_the_axes_that_are_time(op: Op) -> None:
    """What is declared to be carried, and nothing else, goes from one call to the next."""
    signature = op.signature
    for sample in op.samples(FLOAT64):
        given, attributes = tensors(op, sample), attributes_of(op, sample)
        axes = {name: signature.formal(name).time(attributes) for name in given}
        timed = {name: axis for name, axis in axes.items() if axis is not None}
        lengths = {given[name].shape[axis] for name, axis in timed.items()}
        assert len(lengths) == 1
        names = [formal.name for formal in signature.outputs]
        whole = dict(zip(names, op.reference(**sample), strict=True))
        carried: dict[str, Tensor] = {}
        parts = []
        for t in range(lengths.pop()):
            cut = {name: given[name].narrow(axis, t, 1) for name, axis in timed.items()}
            results = dict(zip(names, op.reference(**{**sample, **cut, **carried}), strict=True))
            carried = {state.past: results[state.present] for state in signature.states}
            parts.append(results)
        for formal in signature.outputs:
            axis = formal.time(attributes)
            name, last = formal.name, parts[-1][formal.name]
            found = last if axis is None else torch.cat([part[name] for part in parts], axis)
            torch.testing.assert_close(found, whole[name])


@pytest.mark.parametrize("op", RECURRENT)
def test_a_state_that_is_left_out_is_its_initial_value(op: Op) -> None:
    for sample in op.samples(FLOAT64):
        state = {x.past: x.initial for x in op.signature.states}
        names = [formal.name for formal in op.signature.outputs]
        without = {name: x for name, x in sample.items() if name not in state}
        results = dict(zip(names, op.reference(**without), strict=True))
        filled = {
            x.past: torch.full_like(results[x.present], x.initial) for x in op.signature.states
        }
        for found, wanted in zip(op.reference(**without, **filled), results.values(), strict=True):
            assert torch.equal(found, wanted)


def graph_of(op: Op, sample: Sample) -> ir.Model:
    """A graph of one node, in training form: what lies along time is an input, the rest weights."""
    attributes, given = attributes_of(op, sample), tensors(op, sample)
    values = {}
    for name, x in given.items():
        formal, array = op.signature.formal(name), x.numpy()
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        axis = formal.time(attributes)
        if axis is None:
            value.const_value = ir.tensor(array, name=name)
            value.shape = ir.Shape(array.shape)
        else:
            sizes = [BATCH, *array.shape[1:]]
            value.shape = ir.Shape([TIME if i == axis else size for i, size in enumerate(sizes)])
        values[name] = value
    if op.name == "attention":
        attributes.pop("left_window_size", None)
    order = [values.get(name) for name in op.inputs]
    while order[-1] is None:
        order.pop()
    outputs = [
        ir.Value(name=formal.name, type=ir.TensorType(ir.DataType.FLOAT))
        for formal in op.signature.outputs
    ]
    node = ir.node(op.onnx_type, order, attributes, domain=op.domain, outputs=outputs, name="node")
    imports = {"": 27, **({DOMAIN: 1} if op.domain else {})}
    weights = [value for value in values.values() if value.const_value is not None]
    inputs = [value for value in values.values() if value.const_value is None]
    graph = ir.Graph(
        inputs, outputs[:1], nodes=[node], initializers=weights, opset_imports=imports, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    if op.domain:
        define(model)
        bound = op.signature.bind({n: tuple(x.shape) for n, x in given.items()}, attributes)
        fixed = {n: size for n, size in bound.items() if n not in (BATCH, TIME)}
        outputs[0].shape = ir.Shape(list(op.signature.shape("output", fixed, attributes)))
    else:
        common.ShapeInferencePass()(model)
    return model


def stateless(op: Op) -> Iterator[Sample]:
    """Samples in single precision without states or windows, of two rows."""
    for sample in op.samples(FLOAT32):
        if sample.get("window") is None:
            pasts = op.signature.pasts
            yield {name: value for name, value in sample.items() if name not in pasts}


@pytest.mark.parametrize("op", STATEFUL)
def test_statefulize_gives_a_node_the_states_that_are_declared(op: Op) -> None:
    """Shape, dtype, layout and initial value; any split of a sequence gives the operator's own."""
    for sample in stateless(op):
        model, context, given = graph_of(op, sample), Context(), tensors(op, sample)
        attributes = attributes_of(op, sample)
        sizes = op.signature.bind({n: tuple(x.shape) for n, x in given.items()}, attributes)
        Statefulize(kv="static").run(model, context)

        assert [spec.port for spec in context.states] == [s.port for s in op.signature.states]
        for spec, state in zip(context.states, op.signature.states, strict=True):
            known = {name: size for name, size in sizes.items() if name not in (BATCH, TIME)}
            shape = list(op.signature.shape(state.past, known, attributes))
            if state.axis is not None:
                shape[state.axis] = CAPACITY
            assert (spec.op, list(spec.shape), spec.dtype) == (op.name, shape, "float32")
            assert spec.layout is (state.layout or Layout.STATIC)
            assert (spec.axis, spec.initial) == (state.axis, state.initial)
        timed = [name for name in given if op.signature.formal(name).time(attributes) is not None]
        axis = op.signature.formal(timed[0]).time(attributes) or 0
        length = given[timed[0]].shape[axis]
        inputs = {name: given[name].numpy() for name in timed}
        wanted = op.reference(**sample)[0].numpy()
        for parts in ([length], [1] * length):
            found = stepping.roll(model, context.states, inputs, parts)["output"]
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def counted(op: Op, sample: Sample, factor: int) -> NodeWork:
    """What the runtime says that a node has to do, for `factor` times as many tokens or rows."""
    given, attributes = tensors(op, sample), attributes_of(op, sample)
    values = []
    for name, x in given.items():
        shape, formal = list(x.shape), op.signature.formal(name)
        axis = 0 if (formal.dims or "").startswith("*") else formal.time(attributes)
        if axis is not None:
            shape[axis] *= factor
        kind = onnx.helper.np_dtype_to_tensor_dtype(x.numpy().dtype)
        values.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    names = [name if name in given else "" for name in op.inputs]
    node = onnx.helper.make_node(op.onnx_type, names, ["y"], "node", domain=op.domain, **attributes)
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [0])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values, [y]))
    found = Works(parse_graph(model.SerializeToString()), {}).of(["node"])
    assert found is not None
    return found


@pytest.mark.parametrize("op", [case for case in EVERY if case.id != "attention"])
def test_the_runtime_counts_what_a_node_computes(op: Op) -> None:
    """By its declaration, each token the same; nothing follows from its output, which is empty."""
    for sample in op.samples(FLOAT32):
        one, three = (counted(op, sample, factor) for factor in (1, 3))
        assert three.operations == 3 * one.operations > 0


def test_of_a_table_the_rows_that_are_looked_up_are_read() -> None:
    op = next(op for op in OPS if op.signature.tabled)
    sample = next(iter(op.samples(FLOAT32)))
    one, two = (counted(op, sample, factor) for factor in (1, 2))
    table = sum(sample[name].numel() * sample[name].itemsize for name in op.signature.tabled)
    picked = sample["indices"].numel()

    assert one.bytes == pytest.approx(picked * (8 + table / sample["N"]), abs=3)
    assert two.bytes - 2 * picked * 8 == table  # no more than there is


@pytest.mark.parametrize("op", RECURRENT)
def test_a_state_follows_the_activations_where_it_is_declared_so(op: Op) -> None:
    """Sums stay in single precision, what only moves tokens does not."""
    pasts = op.signature.pasts
    sample = {n: x for n, x in op.samples(FLOAT16)[0].items() if n not in pasts}
    context = Context()
    Statefulize().run(graph_of(op, sample), context)
    declared = [op.signature.formal(past).dtype for past in pasts]

    wanted = ["float16" if dtype == ACTIVATIONS else dtype for dtype in declared]
    assert [spec.dtype for spec in context.states] == wanted


@pytest.mark.parametrize("op", RECURRENT)
def test_a_last_state_that_is_computed_with_is_refused(op: Op) -> None:
    """Tokens would see those after them."""
    model = graph_of(op, next(stateless(op)))
    (node,) = model.graph
    total = ir.node("ReduceSum", [node.outputs[1]], {"keepdims": 0}, name="total")
    late = ir.node("Add", [node.outputs[0], total.outputs[0]], name="late")
    model.graph.extend([total, late])
    for value in (total.outputs[0], late.outputs[0]):
        value.type = node.outputs[0].type
    total.outputs[0].shape, late.outputs[0].shape = ir.Shape([]), node.outputs[0].shape
    model.graph.outputs[0] = late.outputs[0]
    with pytest.raises(PassError, match="each token would see those after it"):
        Statefulize().run(model, Context())


@pytest.mark.parametrize("op", RECURRENT)
def test_what_follows_the_activations_is_in_fp16_and_nothing_else(op: Op) -> None:
    """As TensorRT is given it, absent inputs left out; steps are those of fp32, rounded.

    Nothing is where steps enlarge what was rounded.
    """
    activations = "float32" if op.signature.amplifies else "float16"
    for sample in stateless(op):
        model, context, given = graph_of(op, sample), Context(), tensors(op, sample)
        attributes = attributes_of(op, sample)
        Statefulize().run(model, context)
        inputs = {
            name: x.numpy()
            for name, x in given.items()
            if op.signature.formal(name).time(attributes) is not None
        }
        axis = op.signature.outputs[0].time(attributes) or 0
        tokens = [op.reference(**sample)[0].shape[axis]]
        wanted = stepping.roll(model, context.states, inputs, tokens)["output"]
        TrtGivenInputs().run(model, context)
        TrtHalf().run(model, context)
        node = next(node for node in model.graph if node.op_type == op.onnx_type)
        names = input_names(model, node)[: len(node.inputs)]
        formals = [*map(op.signature.formal, names), *op.signature.outputs]
        pairs = zip(formals, [*node.inputs, *node.outputs], strict=True)
        for formal, value in pairs:
            if value is not None:
                kind = activations if formal.dtype == ACTIVATIONS else formal.dtype
                assert (formal.name, value.dtype) == (formal.name, ir.DataType[KINDS[kind]])
        states = [spec.stored_in("float16") for spec in context.states]
        TrtLoops().run(model, context)
        found = stepping.roll(model, states, inputs, tokens)["output"]
        error = np.abs(found - wanted).max()
        assert error <= 4e-3 * np.abs(wanted).max()
        assert (error == 0) == op.signature.amplifies


def row_of(signature: Signature) -> str:
    """As the table of docs/architecture.md has it."""
    timed = [f.name for f in signature.inputs if f.time({}) is not None]
    known = (*timed, *signature.pasts)
    others = [f.name for f in signature.inputs if f.dims and f.name not in known]
    carried = ", ".join(map(signature.carried, signature.states))
    return f"| `{signature.onnx_type}` | {', '.join(timed)} | {', '.join(others)} | {carried} |"


def test_the_documents_tell_what_every_operator_carries() -> None:
    """A row for each in the architecture; those with kernels in the page on TensorRT."""
    page = (DOCS / "architecture.md").read_text().splitlines()
    rows = [row_of(signature) for signature in SIGNATURES if signature.states]
    kernels = (DOCS / "tensorrt.md").read_text()
    unlisted = [op.name for op in OPS if op.name in NAMES and f"`{op.onnx_type}`" not in kernels]

    assert [row for row in rows if row not in page] == [], "rows that docs/architecture.md lacks"
    assert [line for line in page if line in rows] == rows, "in the order of SIGNATURES"
    assert unlisted == [], "with kernels, and not in docs/tensorrt.md"


@pytest.mark.parametrize("name", NAMES)
def test_the_emulator_has_sizes_for_its_kernels(name: str) -> None:
    """Of several blocks; whether these kernels compute there, `test_emulated.py` says."""
    assert find(name).kernels(wide(name, 80)).ways


@pytest.mark.parametrize("name", NAMES)
def test_plans_of_kernels_give_what_is_declared(name: str) -> None:
    """Shapes and dtypes of every output, for the samples that there are kernels for."""
    plugin = find(name)
    signature = plugin.op.signature
    for sample in taken(plugin, FLOAT16, sm=80):
        request, given = request_of(plugin, sample, 80)
        shapes = [None if x is None else tuple(x.shape) for x in given]
        attributes = attributes_of(plugin.op, sample)
        sizes = signature.bind(
            {n: tuple(x.shape) for n, x in tensors(plugin.op, sample).items()}, attributes
        )
        outputs = plugin.kernels(request).outputs
        for formal, output in zip(signature.outputs, outputs, strict=True):
            found = [size_of(size, shapes) for size in output.shape]
            kind = "float16" if formal.dtype == ACTIVATIONS else formal.dtype
            assert output.dtype == kind
            if not (formal.dims or "").startswith("*"):
                assert found == list(signature.shape(formal.name, sizes, attributes))


def test_a_body_may_have_no_attributes() -> None:
    """An operator of our own that takes inputs alone: ONNX's text has no empty list of names."""
    op = next(each for each in OPS if each.name == "diagonal_ssm")
    bare = replace(op, body=lambda *_: "output = Identity (input)")

    assert list(own_function(bare, ("input",), {}, 27).attribute) == []
