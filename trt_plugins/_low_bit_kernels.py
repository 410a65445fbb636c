"""Triton kernels that multiply by weights of 2 bits, or write them out.

They read codes as words of 16 bits, 16 for a block of 128 columns: the bits 2i and 2i + 1 of word j
hold the unsigned code u = code + 2 of column 16i + j, i = 0..7, and `words` points to pairs of them
as int32 [N, BLOCKS, 8].  Plane i of a block is thus 16 columns that a tensor core takes at once.
PLANES of a block share a scale and an offset; both are [groups, N], of GROUP columns each, so that
threads which hold rows load what lies together.  Columns beyond K have input 0, rows beyond the
last are read again from the last and not stored.

What unpacks a code is what costs time, not its 2 bits: it should become a number by masks alone.

*   u of 2 bits below the exponent of 1.0 in fp32 is 1 + u/4; sum u x = 4 (sum (1 + u/4) x - sum x).
*   u at the bits 2p of an fp16 is the subnormal u 4^p 2^-24, which tensor cores multiply exactly.
*   u at the bits 2p of an fp16 below the exponent of 2^10 / 4^p is 2^10 / 4^p + u; the signed code
    is left when 2^10 / 4^p + 2 is taken off, exactly.  For bf16, 2^7 stands in place of 2^10.

Sums of the input over a group, which offsets need, are products with ones in the place of codes.
"""

import triton
import triton.language as tl


@triton.jit
def gemv(
    input,  # noqa: A002
    words,
    scale,
    offset,
    bias,
    M,
    output,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCKS: tl.constexpr,
    GROUP: tl.constexpr,
    PLANES: tl.constexpr,
    SPAN: tl.constexpr,
    PAIRED: tl.constexpr,
    BN: tl.constexpr,
    BB: tl.constexpr,
):
    """One row of the input by BN of the weight, over SPAN blocks, without tensor cores.

    Elements of [BN, BB, 8] stand for words of int32.  PAIRED: two inputs of 16 bits are loaded as
    one int32.
    """
    m, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    start = tl.program_id(0).to(tl.int64) * BN
    in_tile = tl.minimum(tl.arange(0, BN), (N - 1 - start).to(tl.int32))
    in_block = tl.arange(0, BB)
    in_w = tl.arange(0, 8)[None, None, :]
    rows, x = words + start * (BLOCKS * 8), input + m * K
    scales, offsets = scale + start, offset + start
    pairs = x.to(tl.pointer_type(tl.int32), bitcast=True) if PAIRED else x
    total = tl.zeros([BN, BB], tl.float32)
    for first in range(split * SPAN, split * SPAN + SPAN, BB):
        block = (first + in_block)[None, :, None]
        kept = tl.minimum(first + in_block, BLOCKS - 1)[None, :]
        w = tl.load(rows + (in_tile[:, None] * BLOCKS + kept)[:, :, None] * 8 + in_w)
        for q in tl.static_range(8 // PLANES):
            group = kept * 128 // GROUP if PLANES == 8 else kept * (8 // PLANES) + q
            s = tl.load(scales + group * N + in_tile[:, None]).to(tl.float32)
            z = tl.load(offsets + group * N + in_tile[:, None]).to(tl.float32)
            taken = tl.zeros([BN, BB, 8], tl.float32)
            sums = tl.zeros([1, BB, 8], tl.float32)
            for i in tl.static_range(PLANES):
                k = block * 64 + (q * PLANES + i) * 8 + in_w  # of pairs
                if PAIRED:
                    pair = tl.load(pairs + k, mask=k < K // 2, other=0)
                    even = pair.to(tl.int16).to(input.dtype.element_ty, bitcast=True)
                    odd = (pair >> 16).to(tl.int16).to(input.dtype.element_ty, bitcast=True)
                else:
                    even = tl.load(x + 2 * k, mask=2 * k < K, other=0.0)
                    odd = tl.load(x + 2 * k + 1, mask=2 * k + 1 < K, other=0.0)
                even, odd = even.to(tl.float32), odd.to(tl.float32)
                sums += even + odd
                taken += even * _above_one(w, 2 * (q * PLANES + i))
                taken += odd * _above_one(w, 2 * (q * PLANES + i) + 16)
            total += tl.sum(taken, 2) * (4 * s)
            total += tl.sum(sums, 2) * (z - 6 * s)
    y = tl.sum(total, 1)
    n = start + tl.arange(0, BN)
    if bias is not None:
        y += tl.load(bias + tl.minimum(n, N - 1)).to(tl.float32)
    at = (split * M + m) * N + n
    tl.store(output + at, y.to(output.dtype.element_ty), mask=n < N)


@triton.jit
def _above_one(w, PLACE: tl.constexpr):
    """1 + u/4 for u at the bits PLACE and PLACE + 1 of an int32."""
    moved = w << (21 - PLACE) if PLACE < 21 else w >> (PLACE - 21)
    return ((moved & 0x00600000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def gemm(
    input,  # noqa: A002
    words,
    scale,
    offset,
    bias,
    M,
    output,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCKS: tl.constexpr,
    GROUP: tl.constexpr,
    PLANES: tl.constexpr,
    SPAN: tl.constexpr,
    SUBNORMAL: tl.constexpr,
    ASM: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """BM rows of the input by BN of the weight, over SPAN blocks, on tensor cores, transposed.

    With SUBNORMAL, planes of a group go from the highest place to the lowest, and the sum is
    divided by 4 from each to the next.
    """
    split = tl.program_id(2)
    start = tl.program_id(0).to(tl.int64) * BN
    n = start + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    in_tile = tl.minimum(tl.arange(0, BN), (N - 1 - start).to(tl.int32))
    in_m = tl.minimum(m, M - 1).to(tl.int64)[None, :]
    halves = words.to(tl.pointer_type(tl.int16), bitcast=True) + start * (BLOCKS * 16)
    scales, offsets = scale + start, offset + start
    in_words = in_tile[:, None] * (BLOCKS * 16) + tl.arange(0, 16)[None, :]
    total = tl.zeros([BN, BM], tl.float32)
    for block in range(split * SPAN, tl.minimum(split * SPAN + SPAN, BLOCKS)):
        w = tl.load(halves + block * 16 + in_words)
        for q in tl.static_range(8 // PLANES):
            group = block * 128 // GROUP if PLANES == 8 else block * (8 // PLANES) + q
            s = tl.load(scales + group * N + in_tile).to(tl.float32)
            z = tl.load(offsets + group * N + in_tile).to(tl.float32)
            acc = tl.zeros([BN, BM], tl.float32)
            sums = tl.zeros([BN, BM], tl.float32)
            for i in tl.static_range(PLANES):
                if SUBNORMAL and i > 0 and (PLANES < 8 or i % 2 == 0):
                    acc *= 0.25
                acc, sums = _add_plane(
                    acc,
                    sums,
                    w,
                    input + in_m * K,
                    block,
                    K,
                    3 - i // 2 + i % 2 * 4 if PLANES == 8 else q * PLANES + PLANES - 1 - i,
                    SUBNORMAL,
                    ASM,
                    DOT,
                )
            if SUBNORMAL:
                if PLANES < 4 and q % (4 // PLANES) > 0:
                    acc *= 0.25 ** (q * PLANES % 4)
                total += acc * (16777216.0 * s)[:, None]
                total += sums * (z - 2 * s)[:, None]
            else:
                total += acc * s[:, None]
                total += sums * z[:, None]
    if bias is not None:
        total += tl.load(bias + tl.minimum(n, N - 1)).to(tl.float32)[:, None]
    at = (split.to(tl.int64) * M + m[None, :]) * N + n[:, None]
    mask = (m < M)[None, :] & (n < N)[:, None]
    tl.store(output + at, total.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _add_plane(
    acc,
    sums,
    w,
    rows,
    block,
    K: tl.constexpr,
    P: tl.constexpr,
    SUBNORMAL: tl.constexpr,
    ASM: tl.constexpr,
    DOT: tl.constexpr,
):
    """Add the products of codes, and of ones, with the columns of plane P of a block."""
    k = block * 128 + P * 16 + tl.arange(0, 16)[:, None]
    x = tl.load(rows + k) if K % 128 == 0 else tl.load(rows + k, mask=k < K, other=0.0)
    codes = _subnormal(w, P, ASM) if SUBNORMAL else _signed(w, P, ASM, x.dtype)
    acc = tl.dot(codes.to(DOT), x.to(DOT), acc, input_precision="ieee")
    ones = tl.full(w.shape, 1.0, DOT)
    return acc, tl.dot(ones, x.to(DOT), sums, input_precision="ieee")


@triton.jit
def _subnormal(w, P: tl.constexpr, ASM: tl.constexpr):
    """Plane P of words as u 4^(P % 4) 2^-24 in fp16."""
    if P >= 4:
        w = _moved(w, 8, ASM)
    mask: tl.constexpr = 3 << (P % 4 * 2)
    if ASM:
        made = tl.inline_asm_elementwise(
            "and.b32 $0, $1, $2;",
            "=r,r,r",
            [w, tl.full(w.shape, mask, tl.int16)],
            dtype=tl.float16,
            is_pure=True,
            pack=2,
        )
    else:
        made = (w & mask).to(tl.int16).to(tl.float16, bitcast=True)
    return made


@triton.jit
def _signed(w, P: tl.constexpr, ASM: tl.constexpr, DTYPE: tl.constexpr):
    """The signed codes of plane P of words, in fp16 or bf16; in fp32 without ASM."""
    BF16: tl.constexpr = tl.bfloat16 == DTYPE
    PLACE: tl.constexpr = 4 if BF16 and P % 4 == 3 else P % 4 * 2  # below 7 bits of a mantissa
    ONE: tl.constexpr = 0x4300 - 0x80 * PLACE if BF16 else 0x6400 - 0x400 * PLACE
    LESS: tl.constexpr = (128 if BF16 else 1024) / (1 << PLACE) + 2
    if P * 2 != PLACE:
        w = _moved(w, P * 2 - PLACE, ASM)
    if ASM:
        mask = tl.full(w.shape, 3 << PLACE, tl.int16)
        one = tl.full(w.shape, ONE, tl.int16)
        if BF16:
            made = tl.inline_asm_elementwise(
                "{.reg .b32 u; lop3.b32 u, $1, $2, $3, 0xea; fma.rn.bf16x2 $0, u, $4, $5;}",
                "=r,r,r,r,r,r",
                [w, mask, one, tl.full(w.shape, 1.0, DTYPE), tl.full(w.shape, -LESS, DTYPE)],
                dtype=tl.bfloat16,
                is_pure=True,
                pack=2,
            )
        else:
            made = tl.inline_asm_elementwise(
                "{.reg .b32 u; lop3.b32 u, $1, $2, $3, 0xea; sub.f16x2 $0, u, $4;}",
                "=r,r,r,r,r",
                [w, mask, one, tl.full(w.shape, LESS, DTYPE)],
                dtype=tl.float16,
                is_pure=True,
                pack=2,
            )
    else:
        made = ((w & (3 << PLACE)) | ONE).to(tl.int16).to(DTYPE, bitcast=True)
        made = made.to(tl.float32) - LESS
    return made


@triton.jit
def _moved(w, BITS: tl.constexpr, ASM: tl.constexpr):
    """Words moved down by 2, 8 or 10 bits; what comes in from above is not meant to be read."""
    if ASM:
        if BITS == 2:
            moved = tl.inline_asm_elementwise(
                "shr.u32 $0, $1, 2;", "=r,r", [w], dtype=tl.int16, is_pure=True, pack=2
            )
        elif BITS == 8:
            moved = tl.inline_asm_elementwise(
                "shr.u32 $0, $1, 8;", "=r,r", [w], dtype=tl.int16, is_pure=True, pack=2
            )
        else:
            moved = tl.inline_asm_elementwise(
                "shr.u32 $0, $1, 10;", "=r,r", [w], dtype=tl.int16, is_pure=True, pack=2
            )
    else:
        moved = (w >> BITS).to(tl.int16)
    return moved


@triton.jit
def add_splits(parts, bias, M, output, N: tl.constexpr, SPLITS: tl.constexpr, BN: tl.constexpr):
    """The sum [M, N] of parts [SPLITS, M, N] and of the bias."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1).to(tl.int64)
    mask = n < N
    y = tl.zeros([BN], tl.float32)
    for split in tl.static_range(SPLITS):
        y += tl.load(parts + (split * M + m) * N + n, mask=mask, other=0.0)
    if bias is not None:
        y += tl.load(bias + n, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + m * N + n, y.to(output.dtype.element_ty), mask=mask)


@triton.jit
def dequantize(
    words,
    scale,
    offset,
    weight,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCKS: tl.constexpr,
    GROUP: tl.constexpr,
    PLANES: tl.constexpr,
    BN: tl.constexpr,
):
    """The weight [N, K], BN rows of one block."""
    block = tl.program_id(0)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    in_n = tl.minimum(n, N - 1).to(tl.int64)[:, None]
    in_k = tl.arange(0, 16)[None, :]
    halves = words.to(tl.pointer_type(tl.int16), bitcast=True)
    w = tl.load(halves + (in_n * BLOCKS + block) * 16 + in_k).to(tl.int32)
    for p in tl.static_range(8):
        at = (block * 128 // GROUP if PLANES == 8 else (block * 8 + p) // PLANES) * N + in_n
        s = tl.load(scale + at).to(tl.float32)
        z = tl.load(offset + at).to(tl.float32)
        x = s * (((w >> (2 * p)) & 3) - 2).to(tl.float32) + z
        k = block * 128 + p * 16 + in_k
        mask = (n < N)[:, None] & (k < K)
        tl.store(weight + in_n * K + k, x.to(weight.dtype.element_ty), mask=mask)


@triton.jit
def matmul(
    input,  # noqa: A002
    weight,
    bias,
    M,
    output,
    N: tl.constexpr,
    K: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The product of input [M, K] and the transpose of weight [N, K], and the bias."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    in_m = tl.minimum(m, M - 1).to(tl.int64)[:, None] * K
    in_n = tl.minimum(n, N - 1).to(tl.int64)[None, :] * K
    in_k = tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        if K % BK == 0:
            x = tl.load(input + in_m + (k + in_k)[None, :])
            w = tl.load(weight + in_n + (k + in_k)[:, None])
        else:
            x = tl.load(input + in_m + (k + in_k)[None, :], mask=(k + in_k < K)[None, :], other=0.0)
            w = tl.load(
                weight + in_n + (k + in_k)[:, None], mask=(k + in_k < K)[:, None], other=0.0
            )
        acc = tl.dot(x.to(DOT), w.to(DOT), acc, input_precision="ieee")
    if bias is not None:
        acc += tl.load(bias + tl.minimum(n, N - 1)).to(tl.float32)[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    tl.store(output + at, acc.to(output.dtype.element_ty), mask=mask)
