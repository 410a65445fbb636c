"""Types and shapes of every value of a training-form graph, found by running it.

What the standard's shape inference loses behind a Reshape, and what other exporters call by names
of their own, is measured: the graph runs on several sizes of batch and time with every value as an
output, and each dimension is the one of these that fits all runs: a number, ``batch``, ``time``,
``batch*time``, one of them times a number, or ``time`` and a number more or less.
"""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.state import BATCH, TIME

from . import evaluate, stepping
from .graph import attribute, dims, set_dims, subgraphs

SIZES = ((2, 7), (3, 5), (5, 11), (4, 13))
"""(batch, time) of the runs: no multiple of one, and no sum with a number, is the other."""


def infer_shapes(model: ir.Model) -> None:
    """Give every value of `model`, whose inputs say batch and time, its type and shape, in place.

    A dimension that depends on contents, or on sizes in another way, is left without a name.
    """
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    values = [
        value
        for node in model.graph
        for value in node.outputs
        if value.name and isinstance(value.type, ir.TensorType | None)
    ]
    probe = _exposed(model, [str(value.name) for value in values])
    session = evaluate.session(probe)
    outputs = session.get_outputs()
    runs = [
        {
            out.name: (result.shape, result.dtype)
            for out, result in zip(
                outputs,
                session.run(None, stepping.random_inputs(model, [], batch, time)),
                strict=True,
            )
            if hasattr(result, "shape")
        }
        for batch, time in SIZES
    ]
    for value in (*values, *model.graph.outputs):
        found = [run[value.name] for run in runs if value.name in run]
        if len(found) == len(runs) and len({len(shape) for shape, _ in found}) == 1:
            shapes = [shape for shape, _ in found]
            value.shape = ir.Shape([_dimension(sizes) for sizes in zip(*shapes, strict=True)])
            value.type = value.type or ir.TensorType(ir.DataType.from_numpy(found[0][1]))


def _exposed(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of `model` that returns the values `names`."""
    clone = model.clone()
    values = {value.name: value for node in clone.graph for value in node.outputs}
    returned = {value.name for value in clone.graph.outputs}
    clone.graph.outputs.extend(values[name] for name in names if name not in returned)
    return clone


def _dimension(sizes: Sequence[int]) -> int | str | None:
    """What the sizes of one dimension in all runs are."""
    if len(set(sizes)) == 1:
        return sizes[0]
    basis = {
        BATCH: [batch for batch, _ in SIZES],
        TIME: [time for _, time in SIZES],
        f"{BATCH}*{TIME}": [batch * time for batch, time in SIZES],
    }
    for name, lengths in basis.items():
        factor, rest = divmod(sizes[0], lengths[0])
        if rest == 0 and all(s == factor * n for s, n in zip(sizes, lengths, strict=True)):
            return name if factor == 1 else f"{factor}*{name}"
    extra = sizes[0] - SIZES[0][1]
    if all(s - n == extra for s, n in zip(sizes, basis[TIME], strict=True)):
        return f"{TIME} {'+' if extra > 0 else '-'} {abs(extra)}"
    return None


def shape_bodies(model: ir.Model) -> None:
    """Say of every loop's body what it is given, in the names that the graph around it has."""
    for node in model.graph:
        for body in subgraphs(node) if node.op_type == "Scan" else ():
            count = attribute(node, "num_scan_inputs")
            axes = list(attribute(node, "scan_input_axes") or [0] * count)
            states = len(node.inputs) - count
            for index, (inner, outer) in enumerate(zip(body.inputs, node.inputs, strict=True)):
                shape = list(dims(outer) or ())
                if index >= states and shape:
                    del shape[axes[index - states]]
                if outer is not None and outer.shape is not None:
                    set_dims(inner, shape)
