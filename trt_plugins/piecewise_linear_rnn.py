"""PiecewiseLinearRNN on a GPU: a program walks through the tokens of a row, state in registers.

W stays in registers as well up to 128 units, so that a token costs its product and no traffic but
the drive and the state that is put out.  Wider networks read W again at every token, from the
caches, in blocks of rows; so do those of more than 64 units whose rows no vector load divides, for
the addresses of all entries at once would fill the registers.

All products are in fp32: in free runs errors grow from token to token, and a product in tf32 would
leave the trajectory soon.
"""

import triton
import triton.language as tl

from intaglio.errors import UnsupportedError
from intaglio.ops import PIECEWISE_LINEAR_RNN
from intaglio.runtime.launch import Buffer, Output, dim

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

MOST = 256  # units
KEPT = 128  # units up to which W stays in registers
UNALIGNED = 64  # such units where they are no multiple of VECTOR
VECTOR = 4  # entries of a load
ROWS = 32  # of a block of W beyond


@triton.jit
def walk(
    drive,
    A,
    W,
    h,
    force,
    force_mask,
    past_state,
    T,
    output,
    present_state,
    M: tl.constexpr,
    FORCED: tl.constexpr,
    NUM_RELU: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
):
    """All tokens of one row; W in blocks of BR rows, once and for all where that is all of them."""
    row = tl.program_id(0).to(tl.int64)
    in_m = tl.arange(0, BM)
    m_mask = in_m < M
    kept = tl.load(A + in_m, mask=m_mask, other=0.0).to(tl.float32)
    bias = tl.load(h + in_m, mask=m_mask, other=0.0).to(tl.float32)
    if BR == BM:
        w = _rows(W, in_m, in_m, M)
    if past_state is None:
        z = tl.zeros([BM], tl.float32)
    else:
        z = tl.load(past_state + row * M + in_m, mask=m_mask, other=0.0).to(tl.float32)
    for t in range(T):
        token = row * T + t
        add = tl.load(drive + token * M + in_m, mask=m_mask, other=0.0).to(tl.float32)
        if force is not None:
            told = in_m < FORCED
            f = tl.load(force + token * FORCED + in_m, mask=told, other=0.0).to(tl.float32)
            if force_mask is not None:
                told = told & (tl.load(force_mask + token) != 0)
            z = tl.where(told, f, z)
        bent = tl.where((in_m >= M - NUM_RELU) & (z < 0.0), 0.0, z)
        mixed = tl.sum(w * bent[None, :], 1) if BR == BM else _product(W, bent, M, BM, BR)
        z = kept * z + mixed + (bias + add)
        tl.store(output + token * M + in_m, z.to(output.dtype.element_ty), mask=m_mask)
    tl.debug_barrier()  # other threads read what is written here
    tl.store(present_state + row * M + in_m, z.to(present_state.dtype.element_ty), mask=m_mask)


@triton.jit
def _rows(W, rows, columns, M: tl.constexpr):
    """Rows of W, 0 beyond it."""
    mask = (rows < M)[:, None] & (columns < M)[None, :]
    return tl.load(W + rows[:, None] * M + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _product(W, z, M: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr):
    """W z, by blocks of BR rows."""
    blocks = tl.arange(0, BM // BR)
    mixed = tl.zeros([BM // BR, BR], tl.float32)
    for block in range(BM // BR):
        w = _rows(W, block * BR + tl.arange(0, BR), tl.arange(0, BM), M)
        part = tl.sum(w * z[None, :], 1)
        mixed = tl.where(blocks[:, None] == block, part[None, :], mixed)
    return tl.reshape(mixed, [BM])


def kernels(request: Request) -> Kernels:
    """Choose warps by the units, so that W fits their registers.

    Raises:
        UnsupportedError: for more than 256 units, sizes unknown at build time, or other dtypes.
    """
    given = request.inputs
    dtype = float_of(request, "drive")
    state = float_of(request, "past_state" if "past_state" in given else "A")
    units = given["A"].size(0, "A")
    if units > MOST:
        raise UnsupportedError(f"a network of {units} units; at most {MOST} fit a program.")
    tensors = tensors_of(request, PIECEWISE_LINEAR_RNN.inputs)
    batch, time = dim(0, 0), dim(0, 1)
    width = power_of_two(units, 16)
    kernel = Kernel(
        function=walk,
        arguments={
            **tensors,
            "T": time,
            "output": Buffer("output", 0),
            "present_state": Buffer("output", 1),
        },
        constants={
            "M": units,
            "FORCED": given["force"].size(2, "force") if "force" in given else 0,
            "NUM_RELU": int(request.attributes["num_relu"]),
            "BM": width,
            "BR": width if units <= (UNALIGNED if units % VECTOR else KEPT) else ROWS,
        },
        grid=(batch, 1, 1),
        warps=1 if width <= 32 else 4 if width <= 64 else 8,
    )
    return Kernels(
        outputs=(
            Output(dtype=dtype, shape=(batch, time, units)),
            Output(dtype=state, shape=(batch, units)),
        ),
        ways=(Way(kernels=[kernel]),),
    )


def requests(sm: int) -> dict[str, Request]:
    """AL-RNNs of published sizes that are forced now and then; dense recurrences of LegS sizes."""

    def request(units: int, num_relu: int, dtype: str, forced: int) -> Request:
        inputs = {
            "drive": Input(dtype, (None, None, units)),
            "A": Input("float32", (units,)),
            "W": Input("float32", (units, units)),
            "h": Input("float32", (units,)),
        }
        if forced:
            inputs["force"] = Input(dtype, (None, None, forced))
            inputs["force_mask"] = Input("bool", (None, None))
        inputs["past_state"] = Input("float32", (None, units))
        return Request(attributes={"num_relu": num_relu}, inputs=inputs, sm=sm)

    return {
        "al_rnn 20": request(20, 2, "float32", 3),
        "legs 64": request(64, 0, "float16", 0),
        "al_rnn 127": request(127, 20, "float32", 5),
        "al_rnn 128": request(KEPT, 20, "float32", 5),
        "al_rnn 256": request(MOST, 50, "float16", 20),
    }


PLUGIN = Plugin(
    op=PIECEWISE_LINEAR_RNN,
    kernels=kernels,
    requests=requests,
    tolerance={"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3},
)
