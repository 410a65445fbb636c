"""AffineLowBitMatMul on a GPU, for weights of 2 bits; TensorRT's MatMulNBits takes 4 and 8.

Few rows of input are multiplied by the codes as they are, many by the weight written out once: the
codes are then read once, and tensor cores get operands that need no work.  Narrow outputs are split
over K, and a small second kernel adds the parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from intaglio.errors import UnsupportedError
from intaglio.ops import AFFINE_LOW_BIT_MAT_MUL
from intaglio.ops.low_bit_planes import BITS, BLOCK, PLANE, size_in_planes, to_planes
from intaglio.runtime.launch import Buffer, Output, Size, ceil_div, dim, less, product

from . import INPUTS
from ._low_bit_kernels import add_splits, dequantize, gemm, gemv, matmul
from .plugin import (
    Array,
    Input,
    Kernel,
    Kernels,
    Plugin,
    Request,
    Scratch,
    Way,
    float_of,
    tensors_of,
)

FIRST_WITH_TENSOR_CORES = 80  # with those that take bf16 and add in fp32 at full rate
GEMV_ROWS = 0  # rows of input up to which `gemv` is taken although there are tensor cores
GEMV_MOST = 8
GEMM_MOST = 64
WARPS = 8 * 132  # below which K is split: so many for each multiprocessor of an H200
LEAST_BLOCKS = 4  # of a part
STAGES = 4


def prepare(arguments: Mapping[str, Array], attributes: Mapping[str, Any]) -> dict[str, Array]:
    """Arrange codes for the kernels, see `_low_bit_kernels`.

    Args:
        arguments: codes, scale and, where there are any, offset, bias and input.
        attributes: K, N, bits and group of the operator.

    Returns:
        words int32 [N, ceil(K/128), 8]; scale and offset [G, N], of groups that divide a block or
        that blocks divide, filled up with zeros; bias and input as they are.

    Raises:
        UnsupportedError: if there are no kernels for so many bits or such groups.
    """
    K, _, group, _ = _sizes(attributes)
    planes = to_planes(
        arguments["codes"], arguments["scale"], arguments.get("offset"), K=K, group=group
    )
    return {
        "words": planes.words,
        "scale": planes.scale,
        "offset": planes.offset,
        **{name: arguments[name] for name in ("input", "bias") if name in arguments},
    }


def _sizes(attributes: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """K, N, the columns of a group, and those of the groups that kernels read.

    Raises:
        UnsupportedError: if there are no kernels for so many bits or such groups.
    """
    K, N, bits, group = (int(attributes[name]) for name in ("K", "N", "bits", "group"))
    if bits != BITS:
        why = "TensorRT's own MatMulNBits takes 4 and 8" if bits in (4, 8) else "none are written"
        raise UnsupportedError(f"weights of {bits} bits; kernels take 2: {why}.")
    size = size_in_planes(K, bits, group)
    if size is None:
        raise UnsupportedError(
            f"groups of {group} columns; kernels take multiples of {PLANE}, which tensor cores "
            "take at once, or one group per row."
        )
    return K, N, group, size


def kernels(request: Request) -> Kernels:
    """Choose kernels by rows of input, and how often to split K by the sizes of the weight.

    Raises:
        UnsupportedError: if there are no kernels for so many bits, such groups or the dtype.
    """
    K, N, _, size = _sizes(request.attributes)
    dtype = float_of(request, "input")
    if dtype == "bfloat16" and request.sm < FIRST_WITH_TENSOR_CORES:
        raise UnsupportedError(f"input is bfloat16; compute capability {request.sm} has none.")
    leading = len(request.inputs["input"].shape) - 1
    rows = product([dim(0, axis) for axis in range(leading)])
    blocks = -(-K // BLOCK)
    tensor_cores = request.sm >= FIRST_WITH_TENSOR_CORES and dtype != "float32"
    node = _Node(
        alone=request.alone,
        dtype=dtype,
        tensor_cores=tensor_cores,
        rows=rows,
        blocks=blocks,
        tensors=tensors_of(request, PLUGIN.inputs),
        layout={
            "N": N,
            "K": K,
            "BLOCKS": blocks,
            "GROUP": size,
            "PLANES": min(size, BLOCK) // PLANE,
        },
    )
    if request.alone:
        way = _gemm(node, 8, None) if tensor_cores else _gemv(node, None)
        return Kernels(outputs=_outputs(node, leading), ways=[way])
    ways = []
    if not tensor_cores or GEMV_ROWS:
        most = GEMV_ROWS if tensor_cores else GEMV_MOST
        ways += [_gemv(node, less(rows, most + 1))]
    if tensor_cores:
        ways += [_gemm(node, 8, less(rows, 9)), _gemm(node, 32, less(rows, GEMM_MOST + 1))]
    return Kernels(
        outputs=_outputs(node, leading),
        ways=[*ways, _written_out(node)],
    )


@dataclass(frozen=True, kw_only=True)
class _Node:
    """What the kernels of a node share: constants in `layout`, inputs in `tensors`."""

    alone: bool
    dtype: str
    tensor_cores: bool
    rows: Size
    blocks: int
    tensors: Mapping[str, Buffer | None]
    layout: Mapping[str, int]

    def dot(self) -> Any:
        """The dtype of operands of tl.dot.

        Triton's interpreter multiplies no bf16, and its compiler fp16 of compute capability 7.5
        with more registers than there are.
        """
        return getattr(tl, self.dtype if self.tensor_cores and _compiled() else "float32")


def _outputs(node: _Node, leading: int) -> list[Output]:
    shape: tuple[Size, ...] = (*(dim(0, axis) for axis in range(leading)), node.layout["N"])
    return [Output(dtype=node.dtype, shape=shape)]


def _compiled() -> bool:
    return isinstance(gemm, triton.JITFunction)


def _gemv(node: _Node, when: Size | None) -> Way:
    """Row by row of input; two inputs of 16 bits are one load where rows are aligned to them."""
    paired = node.dtype != "float32" and node.layout["K"] % 2 == 0
    constants = {"PAIRED": paired, "BN": 64, "BB": 4}
    return _split(node, gemv, constants, warps=4, when=when)


def _gemm(node: _Node, most: int, when: Size | None) -> Way:
    """Tiles of `most` rows of input; from 32 on, dividing sums costs more than signed codes do.

    Two warps multiply on their own on every architecture: four would have Triton take the
    asynchronous products of compute capability 9.0, each of 16 columns with fences around it.
    """
    constants = {
        "SUBNORMAL": node.dtype == "float16" and most < 32,
        "ASM": _compiled(),
        "DOT": node.dot(),
        "BM": most,
        "BN": 128 if most < 32 and node.layout["PLANES"] >= 4 else 64,
    }
    return _split(node, gemm, constants, warps=2, when=when)


def _split(
    node: _Node, function: Any, constants: Mapping[str, Any], *, warps: int, when: Size | None
) -> Way:
    """Launch one kernel, or one for parts of K and one that adds them."""
    N = node.layout["N"]
    tiles = -(-N // constants["BN"])
    wanted = (
        1 if node.alone else min(-(-WARPS // (warps * tiles)), max(1, node.blocks // LEAST_BLOCKS))
    )
    step = constants.get("BB", 1)
    span = -(-node.blocks // (wanted * step)) * step
    splits = -(-node.blocks // span)
    whole = splits == 1
    first = Kernel(
        function=function,
        arguments={
            **node.tensors,
            "bias": node.tensors["bias"] if whole else None,
            "M": node.rows,
            "output": Buffer("output" if whole else "scratch", 0),
        },
        constants={**node.layout, "SPAN": span, **constants},
        grid=(tiles, ceil_div(node.rows, constants.get("BM", 1)), splits),
        warps=warps,
        stages=STAGES,
    )
    if whole:
        return Way(kernels=[first], when=when)
    second = Kernel(
        function=add_splits,
        arguments={
            "parts": Buffer("scratch", 0),
            "bias": node.tensors["bias"],
            "M": node.rows,
            "output": Buffer("output", 0),
        },
        constants={"N": N, "SPLITS": splits, "BN": 256},
        grid=(ceil_div(N, 256), node.rows, 1),
        warps=2,
    )
    parts = Scratch(dtype="float32", shape=(splits, node.rows, N))
    return Way(kernels=[first, second], when=when, scratch=[parts])


def _written_out(node: _Node) -> Way:
    """The weight is written out, and multiplied by."""
    N, K, weight = node.layout["N"], node.layout["K"], Buffer("scratch", 0)
    write = Kernel(
        function=dequantize,
        arguments={
            **{name: node.tensors[name] for name in ("words", "scale", "offset")},
            "weight": weight,
        },
        constants={**node.layout, "BN": 64},
        grid=(node.blocks, ceil_div(N, 64), 1),
    )
    multiply = Kernel(
        function=matmul,
        arguments={
            "input": node.tensors["input"],
            "weight": weight,
            "bias": node.tensors["bias"],
            "M": node.rows,
            "output": Buffer("output", 0),
        },
        constants={"N": N, "K": K, "DOT": node.dot(), "BM": 64, "BN": 128, "BK": 32},
        grid=(ceil_div(node.rows, 64), ceil_div(N, 128), 1),
        stages=3,
    )
    return Way(kernels=[write, multiply], scratch=[Scratch(dtype=node.dtype, shape=(N, K))])


def requests(sm: int) -> dict[str, Request]:
    """Projections of models of 1 to 8 billion parameters, by dtype of the activations."""

    def request(dtype: str, N: int, K: int, group: int, *, bias: bool = False) -> Request:
        size = group if group < K else -(-K // BLOCK) * BLOCK
        blocks = -(-K // BLOCK)
        groups = (blocks * BLOCK // size, N)
        inputs = {
            "input": Input(dtype, (None, None, K)),
            "words": Input("int32", (N, blocks, 8)),
            "scale": Input(dtype, groups),
            "offset": Input(dtype, groups),
        }
        if bias:
            inputs["bias"] = Input(dtype, (N,))
        attributes = {"K": K, "N": N, "bits": BITS, "group": group}
        return Request(attributes=attributes, inputs=inputs, sm=sm)

    return {
        "fp16 14336x4096 by 128": request("float16", 14336, 4096, 128),
        "bf16 2048x2048 by 32": request("bfloat16", 2048, 2048, 32, bias=True),
        "fp16 4096x4096 by 64": request("float16", 4096, 4096, 64),
        "fp32 1024x1024 by row": request("float32", 1024, 1024, 1024),
    }


PLUGIN = Plugin(
    op=AFFINE_LOW_BIT_MAT_MUL,
    kernels=kernels,
    requests=requests,
    tolerance={"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2},
    inputs=INPUTS["affine_low_bit_mat_mul"],
    prepare=prepare,
)
