"""CausalConvWithState on a GPU: tiles of channels and tokens, each of which reads its own past.

A step is the same kernel with tiles of one token.  Only tiles that start at the first token look
before it, into the state that was; they also write the state that will be, after they have read.
The state before and after may therefore share one buffer, with tiles of one token for a step alone.
"""

import triton
import triton.language as tl

from intaglio.errors import UnsupportedError
from intaglio.ops import CAUSAL_CONV_WITH_STATE
from intaglio.runtime.launch import Buffer, Expression, Output, Size, ceil_div, dim, less

from .plugin import (
    Input,
    Kernel,
    Kernels,
    Plugin,
    Request,
    Way,
    float_of,
    power_of_two,
    tensors_of,
)

MOST = 32  # taps
TOKENS = 128  # of a tile, at least as many as the state has
CHANNELS = 4  # of such a tile
STEP_ENTRIES = 512  # of the state, of the channels of a tile of one token


@triton.jit
def causal_conv(
    input,  # noqa: A002  the operator's name
    weight,
    bias,
    past_state,
    T,
    output,
    present_state,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    SILU: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
):
    """BT tokens of BC channels of one row; where they are the first tokens, the new state too."""
    first = tl.program_id(1) * BC
    in_t = tl.program_id(0) * BT + tl.arange(0, BT)
    in_c = tl.arange(0, BC)
    channel = tl.program_id(2).to(tl.int64) * C + first
    inputs = input + channel * T
    output += channel * T
    present_state += channel * (TAPS - 1)
    if past_state is not None:
        past_state += channel * (TAPS - 1)
    c_mask = first + in_c < C
    if bias is None:
        y = tl.zeros([BC, BT], tl.float32)
    else:
        start = tl.load(bias + first + in_c, mask=c_mask, other=0.0).to(tl.float32)
        y = tl.zeros([BC, BT], tl.float32) + start[:, None]
    for tap in tl.range(TAPS, loop_unroll_factor=4):
        w = tl.load(weight + (first + in_c) * TAPS + tap, mask=c_mask, other=0.0).to(tl.float32)
        x = _tokens(inputs, past_state, in_c, in_t + (tap + 1 - TAPS), c_mask, T, TAPS)
        y += w[:, None] * x
    if SILU:
        y *= tl.sigmoid(y)
    mask = c_mask[:, None] & (in_t < T)[None, :]
    cells = output + in_c[:, None] * T + in_t[None, :]
    tl.store(cells, y.to(output.dtype.element_ty), mask=mask)
    if tl.program_id(0) == 0:
        in_p = tl.arange(0, BP)
        kept = _tokens(inputs, past_state, in_c, in_p + (T + 1 - TAPS), c_mask, T, TAPS)
        tl.debug_barrier()  # other threads read what is written here
        places = present_state + in_c[:, None] * (TAPS - 1) + in_p[None, :]
        p_mask = c_mask[:, None] & (in_p < TAPS - 1)[None, :]
        tl.store(places, kept.to(present_state.dtype.element_ty), mask=p_mask)


@triton.jit
def _tokens(inputs, past_state, in_c, at, c_mask, T, TAPS: tl.constexpr):
    """Inputs [BC, ...] at tokens `at`, those below 0 from the state, 0 where there are none."""
    mask = c_mask[:, None] & ((at >= 0) & (at < T))[None, :]
    x = tl.load(inputs + in_c[:, None] * T + at[None, :], mask=mask, other=0.0).to(tl.float32)
    if past_state is not None:
        mask = c_mask[:, None] & ((at < 0) & (at > -TAPS))[None, :]
        cells = past_state + in_c[:, None] * (TAPS - 1) + (at + (TAPS - 1))[None, :]
        x += tl.load(cells, mask=mask, other=0.0).to(tl.float32)
    return x


def kernels(request: Request) -> Kernels:
    """Tiles of one token for a step, of many for more.

    Raises:
        UnsupportedError: for more than 32 taps, sizes unknown at build time, or other dtypes.
    """
    given = request.inputs
    dtype = float_of(request, "input")
    state = float_of(request, "past_state") if "past_state" in given else dtype
    channels, taps = (given["weight"].size(axis, "weight") for axis in (0, 2))
    if taps > MOST:
        raise UnsupportedError(f"a convolution of {taps} taps; its kernels are for up to {MOST}.")
    tensors = tensors_of(request, CAUSAL_CONV_WITH_STATE.inputs)
    batch, time = dim(0, 0), dim(0, 2)
    kept = power_of_two(taps - 1)

    def kernel(block_c: int, block_t: int, tiles: Size) -> Kernel:
        return Kernel(
            function=causal_conv,
            arguments={
                **tensors,
                "T": time,
                "output": Buffer("output", 0),
                "present_state": Buffer("output", 1),
            },
            constants={
                "C": channels,
                "TAPS": taps,
                "SILU": request.attributes.get("activation", "none") != "none",
                "BC": block_c,
                "BT": block_t,
                "BP": kept,
            },
            grid=(tiles, ceil_div(channels, block_c), batch),
        )

    def tiles(tokens: int) -> Size:
        # Without a token there is a tile nevertheless: the state moves on to its new buffer.
        return Expression("max", (1, ceil_div(time, tokens)))

    return Kernels(
        outputs=(
            Output(dtype=dtype, shape=(batch, channels, time)),
            Output(dtype=state, shape=(batch, channels, taps - 1)),
        ),
        ways=(
            Way(kernels=[kernel(min(STEP_ENTRIES // kept, 128), 1, tiles(1))], when=less(time, 2)),
            Way(kernels=[kernel(CHANNELS, TOKENS, tiles(TOKENS))]),
        ),
    )


def requests(sm: int) -> dict[str, Request]:
    """Short convolutions of published models, and the longest that there are kernels for."""

    def request(channels: int, taps: int, activation: str, **others: Input) -> Request:
        inputs = {
            "input": Input("float16", (None, channels, None)),
            "weight": Input("float16", (channels, 1, taps)),
            **others,
            "past_state": Input("float16", (None, channels, taps - 1)),
        }
        return Request(attributes={"activation": activation}, inputs=inputs, sm=sm)

    return {
        "gated_deltanet 8192x4": request(8192, 4, "silu"),
        "mamba 5120x4": request(5120, 4, "silu", bias=Input("float16", (5120,))),
        "1000x32": request(1000, MOST, "none"),
    }


PLUGIN = Plugin(
    op=CAUSAL_CONV_WITH_STATE,
    kernels=kernels,
    requests=requests,
    tolerance={"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3},
)
