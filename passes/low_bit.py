"""Weights of few bits in a graph: how a pass puts one in place of a float weight.

The initializers that take the place of a parameter NAME [N, K] are called NAME.codes, NAME.scale
and NAME.offset (NAME.T.codes and so on where the parameter stands as [K, N]), so that reports, and
verification against the dequantized weights, find them again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from intaglio.graph_keys import LOW_BIT
from intaglio.ops import Codes, Floats, Packed, dequantize_codes, pack_codes
from intaglio.signature import DOMAIN

from .graph import Emitter, add_initializer, attributes_of, constant, dims, input_of

MATMUL, GATHER = "AffineLowBitMatMul", "AffineLowBitGather"
CODES, SCALE, OFFSET = ".codes", ".scale", ".offset"
TURNED = ".T"  # behind the name of a parameter that stands as [K, N]


@dataclass(frozen=True, kw_only=True)
class LowBitWeight:
    """A weight [N, K]: packed codes [N, G, bytes], scale and offset [N, G], G = ceil(K/group)."""

    packed: Packed
    scale: Floats
    offset: Floats | None
    K: int
    bits: int
    group: int

    @classmethod
    def of(
        cls, codes: Codes, scale: Floats, offset: Floats | None, *, bits: int, group: int
    ) -> "LowBitWeight":
        """Pack signed codes int8 [N, K], in -2^(bits-1) .. 2^(bits-1) - 1."""
        packed = pack_codes(codes, bits, group)
        K = codes.shape[1]
        return cls(packed=packed, scale=scale, offset=offset, K=K, bits=bits, group=group)

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return int(self.packed.shape[0])

    def dequantize(self) -> Floats:
        """The float weight [N, K] that it stands for."""
        sizes = {"K": self.K, "bits": self.bits, "group": self.group}
        return dequantize_codes(self.packed, self.scale, self.offset, **sizes)


def add_weight(
    graph: ir.Graph,
    name: str,
    weight: LowBitWeight,
    *,
    turned: bool = False,
    stands_for: tuple[str, bool] | None = None,
) -> list[ir.Value | None]:
    """Register the initializers of `weight` for the parameter `name`; return them in order.

    `turned` says that the parameter stands as [K, N], the transpose of `weight`.  A parameter that
    others read as well keeps its name: it and whether it is turned are then `stands_for`.
    """
    own = f"{name}{TURNED}" if turned else name
    parameter, transposed = (name, turned) if stands_for is None else stands_for
    arrays = {CODES: weight.packed, SCALE: weight.scale, OFFSET: weight.offset}
    values = [
        None if array is None else add_initializer(graph, f"{own}{suffix}", array, of=[parameter])
        for suffix, array in arrays.items()
    ]
    assert values[0] is not None
    values[0].metadata_props[LOW_BIT] = json.dumps({"of": [parameter], "turned": [transposed]})
    return values


def note_blocks(value: ir.Value, nodes: Sequence[ir.Node], offset: str | None) -> None:
    """Note in metadata of `value` which parameters of few bits it holds in other blocks.

    They are those of `nodes`, which are alike but for rows and bits; `offset` is the initializer of
    their offsets, where these are added apart from it.
    """
    sources = [_stands_for(node) for node in nodes]
    sizes = [attributes_of(node) for node in nodes]
    told = {
        "of": [name for name, _ in sources],
        "turned": [turned for _, turned in sources],
        "bits": [each["bits"] for each in sizes],
        "K": sizes[0]["K"],
        "group": sizes[0]["group"],
        "offset": offset,
    }
    value.metadata_props[LOW_BIT] = json.dumps(told)


def _stands_for(node: ir.Node) -> tuple[str, bool]:
    codes = node.inputs[1]
    told = None if codes is None else codes.metadata_props.get(LOW_BIT)
    if told is None:  # codes of a source
        return parameter_of(node)
    noted = json.loads(told)
    return noted["of"][0], noted["turned"][0]


def product(
    emit: Emitter,
    input_: ir.Value,
    values: list[ir.Value | None],
    weight: LowBitWeight,
    bias: ir.Value | None = None,
) -> ir.Value:
    """Emit `input_` times the transpose of `weight`, whose `values` came from `add_weight`.

    Whoever emits such nodes calls `intaglio.passes.own_ops.define` on the model at the end.
    """
    shape = dims(input_)
    return emit.node(
        MATMUL,
        [input_, *values, *(() if bias is None else (bias,))],
        [(input_.dtype, None if shape is None else [*shape[:-1], weight.rows])],
        {"K": weight.K, "N": weight.rows, "bits": weight.bits, "group": weight.group},
        domain=DOMAIN,
    )[0]


def look_up(
    emit: Emitter, node: ir.Node, values: list[ir.Value | None], weight: LowBitWeight
) -> ir.Value:
    """Emit the rows of `weight` that the Gather `node` takes of a float table."""
    return emit.node(
        GATHER,
        [node.inputs[1], *values],
        [(node.outputs[0].dtype, dims(node.outputs[0]))],
        {"K": weight.K, "N": weight.rows, "bits": weight.bits, "group": weight.group},
        domain=DOMAIN,
    )[0]


def weight_of(node: ir.Node) -> LowBitWeight:
    """The weight of an AffineLowBitMatMul or AffineLowBitGather whose weight is constant."""
    packed, scale, offset = (constant(input_of(node, index)) for index in (1, 2, 3))
    assert packed is not None
    assert scale is not None
    sizes = attributes_of(node)
    return LowBitWeight(
        packed=packed,
        scale=scale,
        offset=offset,
        K=sizes["K"],
        bits=sizes["bits"],
        group=sizes["group"],
    )


def parameter_of(node: ir.Node) -> tuple[str, bool]:
    """Name of the parameter whose place the weight of `node` took, and whether it is [K, N]."""
    codes = node.inputs[1]
    name = "" if codes is None else str(codes.name).removesuffix(CODES)
    return name.removesuffix(TURNED), name.endswith(TURNED)


def low_bit_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every MatMul and Gather with a weight of few bits."""
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN and node.op_type in (MATMUL, GATHER):
            yield node
