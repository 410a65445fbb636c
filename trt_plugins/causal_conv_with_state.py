"""CausalConvWithState on a GPU: the taps of each channel over past and new inputs.

A program owns some channels of one row over a tile of time.  Inputs before the first token are read
from the past state, by programs of the first tile alone: it is no shorter than the state, so that
they alone also write the state that is left, after they have read the one that was.
"""

import triton
import triton.language as tl

from intaglio.ops import CAUSAL_CONV_WITH_STATE
from intaglio.runtime.launch import Buffer, Expression, Output, Size, ceil_div, dim, less

from .plugin import (
    Input,
    Kernel,
    Kernels,
    Plugin,
    Request,
    UnsupportedError,
    Way,
    float_of,
    power_of_two,
)

WIDEST = 32  # taps
TILE, CHANNELS = 64, 8  # of a program of a prefill; twice as many outputs spill
STEP, STEP_CHANNELS = 1, 128  # of a program of a step


@triton.jit
def convolve(
    input,  # noqa: A002
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
    """BT outputs of BC channels; BP is the power of two that the TAPS - 1 states fit in."""
    tile = tl.program_id(0)
    row = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    t = tile * BT + tl.arange(0, BT)
    c_mask = c < C
    mask = c_mask[:, None] & (t < T)[None, :]
    x_row = input + (row * C + c)[:, None] * T
    kept = (row * C + c)[:, None] * (TAPS - 1)
    total = tl.zeros([BC, BT], tl.float32)
    for j in tl.static_range(TAPS):
        at = (t - (TAPS - 1) + j)[None, :]
        x = tl.load(x_row + at, mask=mask & (at >= 0), other=0.0).to(tl.float32)
        if past_state is not None:
            early = mask & (at < 0)
            x += tl.load(past_state + kept + at + (TAPS - 1), mask=early, other=0.0).to(tl.float32)
        w = tl.load(weight + c * TAPS + j, mask=c_mask, other=0.0).to(tl.float32)
        total += w[:, None] * x
    if bias is not None:
        total += tl.load(bias + c, mask=c_mask, other=0.0).to(tl.float32)[:, None]
    if SILU:
        total = total / (1.0 + tl.exp(-total))
    tl.store(
        output + (row * C + c)[:, None] * T + t[None, :],
        total.to(output.dtype.element_ty),
        mask=mask,
    )
    if tile == 0:
        p = tl.arange(0, BP)[None, :]
        left = c_mask[:, None] & (p < TAPS - 1)
        source = p + T - (TAPS - 1)
        handed = tl.load(x_row + source, mask=left & (source >= 0), other=0.0)
        if past_state is not None:
            handed += tl.load(past_state + kept + p + T, mask=left & (source < 0), other=0.0)
        # All of the past is read before any of it is written: one buffer may be both.
        tl.debug_barrier()
        tl.store(present_state + kept + p, handed, mask=left)


def kernels(request: Request) -> Kernels:
    """Choose tiles for a step and for longer calls.

    Raises:
        UnsupportedError: for kernels of more than 32 taps, sizes unknown at build time, or other
            dtypes.
    """
    given = request.inputs
    channels = given["input"].size(1, "input")
    taps = given["weight"].size(2, "weight")
    if taps > WIDEST:
        raise UnsupportedError(f"a convolution of {taps} taps; at most {WIDEST} are unrolled.")
    dtype = float_of(request, "input")
    names = CAUSAL_CONV_WITH_STATE.inputs
    tensors = {
        name: Buffer("input", names.index(name)) if name in given else None for name in names
    }
    batch, time = dim(0, 0), dim(0, 2)

    def way(length: int, width: int, when: Size | None) -> Way:
        tile = power_of_two(taps - 1, length)
        # One tile at least, which hands the state on where there are no tokens.
        tiles = Expression("max", (ceil_div(time, tile), 1))
        kernel = Kernel(
            function=convolve,
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
                "BC": width,
                "BT": tile,
                "BP": power_of_two(taps - 1),
            },
            grid=(tiles, ceil_div(channels, width), batch),
        )
        return Way(kernels=[kernel], when=when)

    return Kernels(
        outputs=(
            Output(dtype=dtype, shape=(batch, channels, time)),
            Output(dtype=dtype, shape=(batch, channels, taps - 1)),
        ),
        ways=(way(STEP, STEP_CHANNELS, less(time, 2)), way(TILE, CHANNELS, None)),
    )


def requests(sm: int) -> dict[str, Request]:
    """The short convolutions of Mamba and of Gated DeltaNet, in fp16."""

    def request(channels: int, taps: int, *, biased: bool) -> Request:
        inputs = {
            "input": Input("float16", (None, channels, None)),
            "weight": Input("float16", (channels, 1, taps)),
            "past_state": Input("float16", (None, channels, taps - 1)),
        }
        if biased:
            inputs["bias"] = Input("float16", (channels,))
        return Request(attributes={"activation": "silu"}, inputs=inputs, sm=sm)

    return {
        "2048 channels, 4 taps": request(2048, 4, biased=False),
        "5120 channels, 4 taps, bias": request(5120, 4, biased=True),
    }


PLUGIN = Plugin(
    op=CAUSAL_CONV_WITH_STATE,
    kernels=kernels,
    requests=requests,
    tolerance={"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2},
)
