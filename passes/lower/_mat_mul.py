"""A MatMul with a weight of few bits, as it is about to be lowered."""

from typing import Any

import onnx_ir as ir

from intaglio.passes.graph import input_of
from intaglio.passes.low_bit import LowBitWeight

from ._block_format import PackedBlocks, to_blocks


class LowBitMatMul:
    """A node, its weight as blocks, and the names of the initializers that it reads.

    `two_parts` says whether its input is to be multiplied in two parts.
    """

    def __init__(self, node: ir.Node, weight: LowBitWeight) -> None:
        self.node = node
        self.weight = weight
        self.blocks: PackedBlocks = to_blocks(weight)
        self.rows = weight.rows
        self.group = min(weight.group, weight.K)
        self.names = [None if v is None else str(v.name) for v in node.inputs[1:4]]
        self.bias = input_of(node, 4)
        self.two_parts = False

    @property
    def input(self) -> ir.Value:
        """What is multiplied."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def source(self) -> tuple[Any, ...]:
        """What products have to share in order to read the same values."""
        blocks = self.blocks
        return self.node.graph, self.input, self.group, blocks.block, blocks.width, self.two_parts

    @property
    def form(self) -> tuple[Any, ...]:
        """What products have to share in order to be computed as one."""
        blocks = self.blocks
        kinds = (blocks.zeros is None, blocks.offset is None)
        bias = self.bias is None or self.bias.const_value is not None
        return self.source, blocks.bits, *kinds, bias
