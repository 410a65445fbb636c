"""AffineLowBitMatMul -> com.microsoft::MatMulNBits, AffineLowBitGather -> GatherBlockQuantized.

The same function, in the form for which ONNX Runtime has fast kernels: they round the activations
of each block to 8 bits (`accuracy_level` 4).  `accuracy="exact"` asks the same nodes for full
precision, which writes each matrix out on every call: for verification only.

Products of one input become one, of their weights one above the other, cut apart afterwards.  What
the offsets add is the product of the group sums of the input with all of them.  The sums are those
of the rounded input, taken by the same kernel: with the input's own, the error would be that of
rounding times the codes alone, which are larger than codes and offsets together.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import Emitter, dims, input_of, module_of, replace_uses
from intaglio.passes.low_bit import (
    MATMUL,
    LowBitWeight,
    add_initializer,
    low_bit_nodes,
    weight_of,
)
from intaglio.passes.own_ops import define

from ._blocks import Blocks, to_blocks

DOMAIN = "com.microsoft"
INT8_ACTIVATIONS, FULL_PRECISION = 4, 0  # accuracy levels of MatMulNBits
FLOAT = ir.DataType.FLOAT


class OrtLowBit(Lower):
    """Use ONNX Runtime's kernels for weights of few bits."""

    accuracy: Literal["fast", "exact"] = "fast"
    """fast rounds activations to 8 bits; exact is slow, for verification only."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Lower every product and look-up; look-ups of unfit groups stay as they are."""
        nodes = [(node, weight_of(node)) for node in low_bit_nodes(model)]
        products = [_Product(node, weight) for node, weight in nodes if node.op_type == MATMUL]
        level = FULL_PRECISION if self.accuracy == "exact" else INT8_ACTIVATIONS
        sums: dict[Any, ir.Value] = {}
        for together in _by_input(products):
            _multiply(together, level, sums)
        left = [
            node for node, weight in nodes if node.op_type != MATMUL and not _look_up(node, weight)
        ]
        notes = [
            f"{module_of(node)}: its groups do not fit GatherBlockQuantized; its rows are written "
            "out by standard operators."
            for node in left
        ]
        if nodes:
            model.graph.opset_imports[DOMAIN] = 1
            define(model)
        kinds = sorted({f"{w.bits} bits, groups of {w.group}" for _, w in nodes})
        return PassResult(
            changed=len(nodes) > len(left),
            notes=notes,
            details={"accuracy": self.accuracy, "weights": kinds} if nodes else {},
            advice=sorted({line for _, weight in nodes for line in _advice(weight)}),
        )


def _advice(weight: LowBitWeight) -> Iterator[str]:
    """Choices that another choice beats on this engine."""
    group = min(weight.group, weight.K)
    if weight.bits == 2 and group % 64 and group < weight.K:
        yield (
            f"2 bits with groups of {group} run slower on ONNX Runtime than 4 bits do; groups of "
            "64 or 128 gain."
        )
    if weight.bits == 3:
        yield "3 bits are computed as 4 on ONNX Runtime; the portable graph keeps 3."
    if group % 32 and group < weight.K:
        yield (
            f"groups of {group} columns are padded on ONNX Runtime, which costs time and memory; "
            "groups of 32, 64 and 128 are not."
        )


class _Product:
    """A node, its weight as blocks, and the names of the initializers that it reads."""

    def __init__(self, node: ir.Node, weight: LowBitWeight) -> None:
        self.node = node
        self.blocks: Blocks = to_blocks(weight)
        self.rows = weight.rows
        self.group = min(weight.group, weight.K)
        self.names = [None if v is None else str(v.name) for v in node.inputs[1:4]]
        self.bias = input_of(node, 4)

    @property
    def input(self) -> ir.Value:
        """What is multiplied."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def form(self) -> tuple[Any, ...]:
        """What products have to share in order to be computed as one."""
        blocks = self.blocks
        kinds = (blocks.zeros is None, blocks.offset is None)
        bias = self.bias is None or self.bias.const_value is not None
        return self.input, self.group, blocks.bits, blocks.block, blocks.width, *kinds, bias


def _by_input(products: Sequence[_Product]) -> Iterator[list[_Product]]:
    """Products of one input and one form, in the order of the graph."""
    found: dict[tuple[Any, ...], list[_Product]] = {}
    for product in products:
        found.setdefault(product.form, []).append(product)
    yield from found.values()


def _multiply(products: Sequence[_Product], level: int, sums: dict[Any, ir.Value]) -> None:
    first = products[0]
    emit, graph, blocks = Emitter(first.node), first.node.graph, first.blocks
    assert isinstance(graph, ir.Graph)
    rows = sum(product.rows for product in products)

    def stacked(index: int, name: str) -> ir.Value | None:
        """One initializer of what each product has under `name`, one above the other."""
        arrays = [getattr(product.blocks, name) for product in products]
        if arrays[0] is None:
            return None
        parts = [str(product.names[index]) for product in products]
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return add_initializer(graph, f"{'|'.join(parts)}.ort.{name}", array, parts)

    source = _padded(first, emit)
    data, scales, zeros = stacked(0, "data"), stacked(1, "scales"), stacked(2, "zeros")
    y = _kernel(
        emit, first, source, [data, scales, zeros, None, _bias(products, graph)], rows, level
    )
    shape = list(dims(y) or ())
    if blocks.offset is not None:
        key = (first.input, first.group, blocks.block)
        if key not in sums:
            sums[key] = _group_sums(first, source, level, emit)
        offsets = stacked(2, "offset")
        turned = emit("Transpose", [offsets], FLOAT, None, perm=[1, 0])
        y = emit("Add", [y, emit("MatMul", [sums[key], turned], FLOAT, shape)], FLOAT, shape)
    if len(products) == 1:
        replace_uses(first.node.outputs[0], y)
    else:
        sizes = emit.constant([product.rows for product in products])
        parts = [(y.dtype, [*shape[:-1], product.rows]) for product in products]
        cut = emit.node("Split", [y, sizes], parts, {"axis": len(shape) - 1})
        for product, value in zip(products, cut, strict=True):
            replace_uses(product.node.outputs[0], value)
    graph.remove([product.node for product in products], safe=True)


def _kernel(
    emit: Emitter,
    product: _Product,
    source: ir.Value,
    weight: Sequence[ir.Value | None],
    rows: int,
    level: int,
) -> ir.Value:
    """`source` times the transpose of a `weight` of `rows`, in blocks like those of `product`."""
    blocks = product.blocks
    return emit.node(
        "MatMulNBits",
        [source, *weight],
        [(source.dtype, [*(dims(source) or ())[:-1], rows])],
        {
            "K": blocks.K,
            "N": rows,
            "bits": blocks.bits,
            "block_size": blocks.block,
            "accuracy_level": level,
        },
        domain=DOMAIN,
    )[0]


def _bias(products: Sequence[_Product], graph: ir.Graph) -> ir.Value | None:
    biases = [product.bias for product in products]
    if len(products) == 1 or all(bias is None for bias in biases):
        return biases[0]
    arrays = [
        np.zeros(product.rows, np.float32)
        if product.bias is None or product.bias.const_value is None
        else product.bias.const_value.numpy()
        for product in products
    ]
    name = "|".join(str(product.names[0]) for product in products)
    return add_initializer(graph, f"{name}.ort.bias", np.concatenate(arrays))


def _padded(product: _Product, emit: Emitter) -> ir.Value:
    """The input, each of its groups filled up with zeros to the width of its blocks."""
    width, group, value = product.blocks.width, product.group, product.input
    if width is None:
        return value
    *outer, K = dims(value) or ()
    count = product.blocks.K // width
    missing = count * product.group - int(K)
    if missing:  # of a short last group
        zeros = [0] * (len(outer) + 1)
        pads = emit.constant([*zeros, *zeros[:-1], missing])
        value = emit("Pad", [value, pads], value.dtype, [*outer, count * product.group])
    split = emit.constant([*[0] * len(outer), count, product.group])
    apart = emit("Reshape", [value, split], value.dtype, [*outer, count, product.group])
    zeros = [0] * (len(outer) + 2)
    pads = emit.constant([*zeros, *zeros[:-1], width - group])
    filled = emit("Pad", [apart, pads], value.dtype, [*outer, count, width])
    shape = emit.constant([*[0] * len(outer), product.blocks.K])
    return emit("Reshape", [filled, shape], value.dtype, [*outer, product.blocks.K])


def _group_sums(product: _Product, source: ir.Value, level: int, emit: Emitter) -> ir.Value:
    """Sums [..., G] over each group of the input, as the kernel rounds it."""
    graph, blocks = product.node.graph, product.blocks
    assert isinstance(graph, ir.Graph)
    assert blocks.offset is not None
    K, count = int((dims(product.input) or ())[-1]), blocks.offset.shape[1]
    codes, scale = np.ones((count, K), np.int8), np.eye(count, dtype=np.float32)
    ones = to_blocks(LowBitWeight.of(codes, scale, None, bits=blocks.bits, group=product.group))
    name = f"group_sums.{K}.{product.group}.{blocks.bits}"
    weight = [
        add_initializer(graph, f"{name}.data", ones.data),
        add_initializer(graph, f"{name}.scales", ones.scales),
    ]
    return _kernel(emit, product, source, weight, count, level)


def _look_up(node: ir.Node, weight: LowBitWeight) -> bool:
    """Lower a look-up; False, and nothing done, where its groups are not whole blocks."""
    blocks, graph = to_blocks(weight), node.graph
    if blocks.width is not None or blocks.K % blocks.block:
        return False
    assert isinstance(graph, ir.Graph)
    emit, indices, old = Emitter(node), node.inputs[0], node.outputs[0]
    names = [None if value is None else str(value.name) for value in node.inputs]

    def initializer(index: int, kind: str, array: Any) -> ir.Value | None:
        name = f"{names[index]}.ort.rows.{kind}"
        return None if array is None else add_initializer(graph, name, array)

    outer = list((dims(old) or ())[:-1])
    y = emit.node(
        "GatherBlockQuantized",
        [
            initializer(1, "data", blocks.data.reshape(weight.rows, -1)),
            indices,
            initializer(2, "scales", blocks.scales),
            initializer(2, "zeros", blocks.zeros),
        ],
        [(old.dtype, dims(old))],
        {
            "bits": blocks.bits,
            "block_size": blocks.block,
            "gather_axis": 0,
            "quantize_axis": 1,
        },
        domain=DOMAIN,
    )[0]
    if blocks.offset is not None:
        count, group = blocks.offset.shape[1], min(weight.group, weight.K)
        shape = emit.constant([*[0] * len(outer), count, group])
        apart = emit("Reshape", [y, shape], y.dtype, [*outer, count, group])
        offsets = initializer(3, "offset", blocks.offset[..., None])
        rows = emit("Gather", [offsets, indices], y.dtype, [*outer, count, 1], axis=0)
        moved = emit("Add", [apart, rows], y.dtype, [*outer, count, group])
        flat = emit.constant([*[0] * len(outer), weight.K])
        y = emit("Reshape", [moved, flat], y.dtype, dims(old))
    replace_uses(old, y)
    graph.remove(node, safe=True)
    return True
