"""DiagonalSSM on a GPU: a program walks through the tokens with all states of its channels.

A step moves the state twice and nothing else.  Many tokens take the same walk one after the other,
with rows and channels side by side alone; a scan in blocks of tokens would shorten it.

The decay is e^{dt A} = 2^{dt (A log2 e)}, the factor taken into A once before the walk.
"""

import triton
import triton.language as tl

from intaglio.errors import UnsupportedError
from intaglio.ops import DIAGONAL_SSM
from intaglio.runtime.launch import Buffer, Output, ceil_div, dim

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

MOST = 256  # states of a channel
TILE = 512  # states of a program of one warp: 16 in each thread
WIDEST = 64  # channels of a program
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def walk(
    input,  # noqa: A002  the operator's name
    A,
    B,
    C,
    delta,
    past_state,
    T,
    output,
    present_state,
    D: tl.constexpr,
    N: tl.constexpr,
    MAMBA: tl.constexpr,
    LTI: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
):
    """All tokens of BD channels of one row."""
    in_d = tl.program_id(0) * BD + tl.arange(0, BD)
    in_n = tl.arange(0, BN)
    row = tl.program_id(1).to(tl.int64)
    d_mask, n_mask = in_d < D, in_n < N
    mask = d_mask[:, None] & n_mask[None, :]
    fixed = in_d[:, None] * N + in_n[None, :]
    cells = row * D * N + fixed
    rate = tl.load(A + fixed, mask=mask, other=0.0).to(tl.float32) * LOG2_E
    if LTI:
        write = tl.load(B + fixed, mask=mask, other=0.0).to(tl.float32)
        read = tl.load(C + fixed, mask=mask, other=0.0).to(tl.float32)
    if delta is None:
        keep = tl.exp2(rate)
    if past_state is None:
        state = tl.zeros([BD, BN], tl.float32)
    else:
        state = tl.load(past_state + cells, mask=mask, other=0.0).to(tl.float32)
    for t in range(T):
        token = row * T + t
        at = token * D + in_d
        u = tl.load(input + at, mask=d_mask, other=0.0).to(tl.float32)
        if delta is not None:
            dt = tl.load(delta + at, mask=d_mask, other=0.0).to(tl.float32)
            keep = tl.exp2(dt[:, None] * rate)
            if MAMBA:
                u *= dt
        if LTI:
            state = keep * state + write * u[:, None]
            y = tl.sum(read * state, 1)
        else:
            b = tl.load(B + token * N + in_n, mask=n_mask, other=0.0).to(tl.float32)
            c = tl.load(C + token * N + in_n, mask=n_mask, other=0.0).to(tl.float32)
            state = keep * state + b[None, :] * u[:, None]
            y = tl.sum(c[None, :] * state, 1)
        tl.store(output + at, y.to(output.dtype.element_ty), mask=d_mask)
    tl.store(present_state + cells, state.to(present_state.dtype.element_ty), mask=mask)


def kernels(request: Request) -> Kernels:
    """Choose channels of a program by the states of each.

    Raises:
        UnsupportedError: for more than 256 states, sizes unknown at build time, or other dtypes.
    """
    given = request.inputs
    dtype = float_of(request, "input")
    state = float_of(request, "past_state" if "past_state" in given else "A")
    channels, states = (given["A"].size(axis, "A") for axis in (0, 1))
    if states > MOST:
        raise UnsupportedError(f"{states} states of a channel; at most {MOST} fit a program.")
    tensors = tensors_of(request, DIAGONAL_SSM.inputs)
    batch, time = dim(0, 0), dim(0, 1)
    width = power_of_two(states)
    block = min(TILE // width, WIDEST)
    kernel = Kernel(
        function=walk,
        arguments={
            **tensors,
            "T": time,
            "output": Buffer("output", 0),
            "present_state": Buffer("output", 1),
        },
        constants={
            "D": channels,
            "N": states,
            "MAMBA": request.attributes.get("discretization", "mamba") == "mamba",
            "LTI": bool(request.attributes.get("lti", 0)),
            "BD": block,
            "BN": width,
        },
        grid=(ceil_div(channels, block), batch, 1),
        warps=1,
    )
    return Kernels(
        outputs=(
            Output(dtype=dtype, shape=(batch, time, channels)),
            Output(dtype=state, shape=(batch, channels, states)),
        ),
        ways=(Way(kernels=[kernel]),),
    )


def requests(sm: int) -> dict[str, Request]:
    """Mamba, gated recurrences, and systems that are the same for every token, in fp16."""

    def request(
        kind: str, channels: int, states: int, *, lti: bool = False, delta: bool = True
    ) -> Request:
        tokens = Input("float16", (None, None, channels))
        fixed = (channels, states)
        mixing = Input("float16", fixed if lti else (None, None, states))
        inputs = {"input": tokens, "A": Input("float32", fixed), "B": mixing, "C": mixing}
        if delta:
            inputs["delta"] = tokens
        inputs["past_state"] = Input("float32", (None, channels, states))
        return Request(attributes={"discretization": kind, "lti": int(lti)}, inputs=inputs, sm=sm)

    return {
        "mamba 5120x16": request("mamba", 5120, 16),
        "hgrn 2048x1": request("none", 2048, 1, lti=True),
        "lti 512x64": request("none", 512, 64, lti=True, delta=False),
        "mamba 1024x256": request("mamba", 1024, MOST),
    }


PLUGIN = Plugin(
    op=DIAGONAL_SSM,
    kernels=kernels,
    requests=requests,
    tolerance={"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3},
)
