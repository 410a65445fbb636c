"""AffineLowBitMatMul -> com.microsoft::MatMulNBits, AffineLowBitGather -> GatherBlockQuantized.

The same function, in the form for which ONNX Runtime has fast kernels: they round the activations
of each block to 8 bits (`accuracy_level` 4).  Where that is too coarse, they are given the input in
two parts, see `_two_parts.py`.  `accuracy="exact"` asks the same nodes for full precision, which
writes each matrix out on every call: for verification only.

Products of one input become one, of their weights one above the other, cut apart afterwards.  What
the offsets add is the product of the group sums of the input with all of them.  The sums are those
of the rounded input, taken by the same kernel: with the input's own, the error would be that of
rounding times the codes alone, which are larger than codes and offsets together.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import Emitter, add_initializer, dims, module_of, replace_uses
from intaglio.passes.low_bit import (
    MATMUL,
    LowBitWeight,
    low_bit_nodes,
    note_blocks,
    weight_of,
)
from intaglio.passes.own_ops import define

from ._block_format import to_blocks
from ._gather import DOMAIN, to_gather
from ._mat_mul import LowBitMatMul
from ._rounding import rounding_errors
from ._two_parts import join, split

INT8_ACTIVATIONS, FULL_PRECISION = 4, 0  # accuracy levels of MatMulNBits
FLOAT = ir.DataType.FLOAT
LIMIT = 1e-2  # of what rounding its input may make of a layer's output
COST = {2: 1.6, 4: 1.5, 8: 1.2}
"""Time of a product of 4096 x 4096 at one row in two parts, by bits, as a part of that in one."""

Accuracy = Literal["auto", "fast", "fine", "exact"]


class OrtLowBit(Lower):
    """Use ONNX Runtime's kernels for weights of few bits."""

    accuracy: Accuracy = "auto"
    """fast rounds activations to 8 bits, fine takes them in two parts of 8 bits; auto is fine for
    the products where rounding shows on calibration data; exact is slow, for verification only."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Lower every MatMul and Gather; a Gather whose groups do not fit stays as it is."""
        nodes = [(node, weight_of(node)) for node in low_bit_nodes(model)]
        products = [LowBitMatMul(node, weight) for node, weight in nodes if node.op_type == MATMUL]
        errors = rounding_errors(model, context, products) if self.accuracy == "auto" else {}
        coarse = {product: error for product, error in errors.items() if error > LIMIT}
        for product in products:
            product.two_parts = self.accuracy == "fine" or product in coarse
        _multiply_all(products, FULL_PRECISION if self.accuracy == "exact" else INT8_ACTIVATIONS)
        left = [
            node for node, weight in nodes if node.op_type != MATMUL and not to_gather(node, weight)
        ]
        if nodes:
            model.graph.opset_imports[DOMAIN] = 1
            define(model)
        return PassResult(
            changed=len(nodes) > len(left),
            notes=[*_measured(coarse), *_written_out(left)],
            details=self._details([weight for _, weight in nodes], products),
            advice=[*_in_two_parts(coarse, len(products)), *_better([w for _, w in nodes])],
        )

    def _details(
        self, weights: Sequence[LowBitWeight], products: Sequence[LowBitMatMul]
    ) -> dict[str, Any]:
        """What the graph has now: auto is fast, mixed or fine; a Gather alone is none of these."""
        if not weights:
            return {}
        kinds = sorted({f"{w.bits} bits, groups of {w.group}" for w in weights})
        if not products:
            return {"weights": kinds}
        accuracy: str = self.accuracy
        count = sum(product.two_parts for product in products)
        if accuracy == "auto":
            accuracy = "fast" if not count else "fine" if count == len(products) else "mixed"
        return {"accuracy": accuracy, "weights": kinds, "in_two_parts": [count, len(products)]}


def cost(bits: Sequence[int]) -> str:
    """What two parts cost products with weights of so many bits, in words."""
    most = max(COST[4 if b == 3 else b] for b in bits)
    return f"about {most} times as long as one in decode, and twice as long in prefill"


def _measured(coarse: Mapping[LowBitMatMul, float]) -> Iterator[str]:
    for product, error in coarse.items():
        yield (
            f"{module_of(product.node)}: rounding its input to 8 bits makes {error:.1e} of its "
            f"largest output; two parts of 8 bits take {cost([product.blocks.bits])}."
        )


def _in_two_parts(coarse: Mapping[LowBitMatMul, float], count: int) -> Iterator[str]:
    if not coarse:
        return
    worst = max(coarse, key=lambda product: coarse[product])
    yield (
        f"{len(coarse)} of {count} products are computed in two parts of 8 bits: on the "
        f"calibration data rounding to 8 bits makes up to {coarse[worst]:.1e} of their largest "
        f"output ({module_of(worst.node)}), the limit being {LIMIT:.0e}. Two parts "
        f"take {cost([product.blocks.bits for product in coarse])}; --ort-accuracy fast keeps one."
    )


def _written_out(nodes: Sequence[ir.Node]) -> Iterator[str]:
    for node in nodes:
        yield (
            f"{module_of(node)}: its groups do not fit GatherBlockQuantized; its rows are written "
            "out by standard operators."
        )


def _better(weights: Sequence[LowBitWeight]) -> list[str]:
    return sorted({line for weight in weights for line in _advice(weight)})


def _advice(weight: LowBitWeight) -> Iterator[str]:
    """Choices that another choice beats on this engine."""
    group = min(weight.group, weight.K)
    if weight.bits == 2 and group % 64 and group < weight.K:
        yield (
            f"2 bits with groups of {group} take longer on ONNX Runtime than with groups of 64 or "
            "128."
        )
    if weight.bits == 3:
        yield "3 bits are computed as 4 on ONNX Runtime; the portable graph keeps 3."
    if group % 32 and group < weight.K:
        yield (
            f"groups of {group} columns are padded on ONNX Runtime, which costs time and memory; "
            "groups of 32, 64 and 128 are not."
        )


def _by_input(products: Sequence[LowBitMatMul]) -> Iterator[list[LowBitMatMul]]:
    """Products of one input and one form, in the order of the graph."""
    found: dict[tuple[Any, ...], list[LowBitMatMul]] = {}
    for product in products:
        found.setdefault(product.form, []).append(product)
    yield from found.values()


def _multiply_all(products: Sequence[LowBitMatMul], level: int) -> None:
    sources: dict[Any, ir.Value] = {}
    sums: dict[Any, ir.Value] = {}
    for together in _by_input(products):
        _multiply(together, level, sources, sums)


def _multiply(
    products: Sequence[LowBitMatMul],
    level: int,
    sources: dict[Any, ir.Value],
    sums: dict[Any, ir.Value],
) -> None:
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
        return add_initializer(graph, f"{'|'.join(parts)}.ort.{name}", array, parts=parts)

    if first.source not in sources:
        source = _padded(first, emit)
        sources[first.source] = split(source, blocks.block, emit) if first.two_parts else source
    source, bias = sources[first.source], _bias(products, graph)
    weight = [stacked(0, "data"), stacked(1, "scales"), stacked(2, "zeros")]
    offsets = stacked(2, "offset")
    assert weight[0] is not None
    nodes = [product.node for product in products]
    note_blocks(weight[0], nodes, None if offsets is None else offsets.name)
    y = _product(emit, first, source, weight, rows, level, bias)
    shape = list(dims(y) or ())
    if blocks.offset is not None:
        if first.source not in sums:
            sums[first.source] = _group_sums(first, source, level, emit)
        turned = emit("Transpose", [offsets], FLOAT, None, perm=[1, 0])
        y = emit(
            "Add", [y, emit("MatMul", [sums[first.source], turned], FLOAT, shape)], FLOAT, shape
        )
    if len(products) == 1:
        replace_uses(first.node.outputs[0], y)
    else:
        sizes = emit.constant([product.rows for product in products])
        parts = [(y.dtype, [*shape[:-1], product.rows]) for product in products]
        cut = emit.node("Split", [y, sizes], parts, {"axis": len(shape) - 1})
        for product, value in zip(products, cut, strict=True):
            replace_uses(product.node.outputs[0], value)
    graph.remove(nodes, safe=True)


def _product(
    emit: Emitter,
    product: LowBitMatMul,
    source: ir.Value,
    weight: Sequence[ir.Value | None],
    rows: int,
    level: int,
    bias: ir.Value | None = None,
) -> ir.Value:
    """`source` times the transpose of a `weight`, and `bias`, which both parts would add."""
    if not product.two_parts:
        inputs = [*weight, None, bias]
        return _kernel(emit, product, source, inputs, rows, level)
    both = _kernel(emit, product, source, weight, rows, level)
    y = join(both, [*(dims(product.input) or ())[:-1], rows], emit)
    return y if bias is None else emit("Add", [y, bias], y.dtype, dims(y))


def _kernel(
    emit: Emitter,
    product: LowBitMatMul,
    source: ir.Value,
    weight: Sequence[ir.Value | None],
    rows: int,
    level: int,
) -> ir.Value:
    """`source` times the transpose of a `weight` of `rows`, in blocks like those of `product`."""
    blocks, (*outer, K) = product.blocks, dims(source) or ()
    return emit.node(
        "MatMulNBits",
        [source, *weight],
        [(source.dtype, [*outer, rows])],
        {
            "K": int(K),
            "N": rows,
            "bits": blocks.bits,
            "block_size": blocks.block,
            "accuracy_level": level,
        },
        domain=DOMAIN,
    )[0]


def _bias(products: Sequence[LowBitMatMul], graph: ir.Graph) -> ir.Value | None:
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
    of = [str(product.bias.name) for product in products if product.bias is not None]
    return add_initializer(graph, f"{name}.ort.bias", np.concatenate(arrays), of=of)


def _padded(product: LowBitMatMul, emit: Emitter) -> ir.Value:
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
    groups = emit.constant([*[0] * len(outer), count, product.group])
    apart = emit("Reshape", [value, groups], value.dtype, [*outer, count, product.group])
    zeros = [0] * (len(outer) + 2)
    pads = emit.constant([*zeros, *zeros[:-1], width - group])
    filled = emit("Pad", [apart, pads], value.dtype, [*outer, count, width])
    shape = emit.constant([*[0] * len(outer), product.blocks.K])
    return emit("Reshape", [filled, shape], value.dtype, [*outer, product.blocks.K])


def _group_sums(product: LowBitMatMul, source: ir.Value, level: int, emit: Emitter) -> ir.Value:
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
    return _product(emit, product, source, weight, count, level)
