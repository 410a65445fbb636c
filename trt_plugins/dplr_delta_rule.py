"""DPLRDeltaRule on a GPU: a program walks through the tokens with columns of a head's state.

Columns do not mix: a reads each of them for itself, and b and k add to each for itself.  So the
state stays in registers, a step moves it twice and nothing else, and heads, rows and columns lie
side by side.  Many tokens take the same walk one after the other; chunks would shorten it.
"""

import triton
import triton.language as tl

from intaglio.errors import UnsupportedError
from intaglio.ops import DPLR_DELTA_RULE
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

MOST = 256  # entries of a head
TILE = 4096  # elements of the state in a program: 32 in each thread
COLUMNS = (16, 32)  # of a program, at least and at most


@triton.jit
def walk(
    query,
    key,
    value,
    a,
    b,
    decay,
    past_state,
    T,
    output,
    present_state,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """All tokens of BV columns of one head and row."""
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    in_k = tl.arange(0, BK)
    in_v = tl.program_id(0) * BV + tl.arange(0, BV)
    k_mask, v_mask = in_k < K, in_v < V
    mask = k_mask[:, None] & v_mask[None, :]
    cells = ((row * H + head) * K + in_k[:, None]) * V + in_v[None, :]
    if past_state is None:
        state = tl.zeros([BK, BV], tl.float32)
    else:
        state = tl.load(past_state + cells, mask=mask, other=0.0).to(tl.float32)
    for t in range(T):
        at = (row * T + t) * H + head
        keys, values = at * K + in_k, at * V + in_v
        q = tl.load(query + keys, mask=k_mask, other=0.0).to(tl.float32)
        k = tl.load(key + keys, mask=k_mask, other=0.0).to(tl.float32)
        v = tl.load(value + values, mask=v_mask, other=0.0).to(tl.float32)
        reads = tl.load(a + keys, mask=k_mask, other=0.0).to(tl.float32)
        writes = tl.load(b + keys, mask=k_mask, other=0.0).to(tl.float32)
        u = tl.sum(state * reads[:, None], 0)
        if decay is not None:
            g = tl.load(decay + keys, mask=k_mask, other=0.0).to(tl.float32)
            state *= tl.exp(g)[:, None]
        state += writes[:, None] * u[None, :] + k[:, None] * v[None, :]
        o = tl.sum(state * q[:, None], 0)
        tl.store(output + values, o.to(output.dtype.element_ty), mask=v_mask)
    tl.store(present_state + cells, state.to(present_state.dtype.element_ty), mask=mask)


def kernels(request: Request) -> Kernels:
    """Choose columns of a program by the keys of a head.

    Raises:
        UnsupportedError: for heads wider than 256, sizes unknown at build time, or other dtypes.
    """
    given = request.inputs
    heads = int(request.attributes["num_heads"])
    K, V = (given[name].size(-1, name) // heads for name in ("query", "value"))
    if max(K, V) > MOST:
        raise UnsupportedError(f"heads of {K} keys and {V} values; at most {MOST} fit a program.")
    dtype = float_of(request, "query")
    state = float_of(request, "past_state") if "past_state" in given else "float32"
    batch, time = dim(0, 0), dim(0, 1)
    width = power_of_two(K)
    least, most = COLUMNS
    columns = max(least, min(TILE // width, most, power_of_two(V)))
    kernel = Kernel(
        function=walk,
        arguments={
            **tensors_of(request, DPLR_DELTA_RULE.inputs),
            "T": time,
            "output": Buffer("output", 0),
            "present_state": Buffer("output", 1),
        },
        constants={"H": heads, "K": K, "V": V, "BK": width, "BV": columns},
        grid=(ceil_div(V, columns), heads, batch),
        elements=width * columns,
    )
    return Kernels(
        outputs=(
            Output(dtype=dtype, shape=(batch, time, heads * V)),
            Output(dtype=state, shape=(batch, heads, K, V)),
        ),
        ways=(Way(kernels=[kernel]),),
    )


def requests(sm: int) -> dict[str, Request]:
    """RWKV-7 of 0.19 and 2.9 billion parameters, and the widest heads, in fp16."""

    def request(heads: int, K: int, V: int) -> Request:
        keys = Input("float16", (None, None, heads * K))
        inputs = dict.fromkeys(("query", "key", "a", "b", "decay"), keys)
        inputs["value"] = Input("float16", (None, None, heads * V))
        inputs["past_state"] = Input("float32", (None, heads, K, V))
        return Request(attributes={"num_heads": heads}, inputs=inputs, sm=sm)

    return {
        "rwkv7 12 heads of 64": request(12, 64, 64),
        "rwkv7 40 heads of 64": request(40, 64, 64),
        "8 heads of 256": request(8, MOST, MOST),
    }


PLUGIN = Plugin(
    op=DPLR_DELTA_RULE,
    kernels=kernels,
    requests=requests,
    tolerance={"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2},
)
