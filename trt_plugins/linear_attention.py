"""LinearAttention on a GPU: token by token for short calls, in chunks for long ones.

`recurrent` holds a tile of the state [dk, BV] in registers and walks through the tokens: it moves
the state twice and nothing else, which is all that a step can hope for.

The chunked form (Yang et al. 2024, arXiv:2312.06635 and arXiv:2412.06464) takes two kernels.
`within` does what needs no state, for all chunks at once: with G the cumulative log decay,

    P[t, s] = scale q_t·k_s e^{G_t - G_s},  s <= t,
    X = (I + M)^-1 diag(b),  M[t, s] = b_t k_t·k_s e^{G_t - G_s},  s < t    (delta rules)

`across` walks through the chunks with the state in registers:

    U = X (V - e^G K S)  (delta rules; otherwise U = V)
    O = P U + scale e^G Q S,    S <- e^{G_C} S + (e^{G_C - G} K)^T U

No exponent is ever above 0.  The inverse is found by substitution, not as a product of powers of M,
whose terms outgrow fp32 where keys of a chunk are alike.
"""

import triton
import triton.language as tl

from intaglio.ops import LINEAR_ATTENTION
from intaglio.runtime.launch import Buffer, Output, ceil_div, dim, less

from .plugin import (
    Input,
    Kernel,
    Kernels,
    Plugin,
    Request,
    Scratch,
    UnsupportedError,
    Way,
    float_of,
    power_of_two,
)

MOST = 256  # entries of a head
CHUNKED = 128  # keys of a head up to which chunks fit registers; wider heads always walk
STEPS = 16  # tokens up to which the walk is taken
CHUNK, COLUMNS = 32, 16  # tokens and columns of a chunk's program: no tile that is larger fits
FIRST_WITH_TF32 = 80


@triton.jit
def recurrent(
    query,
    key,
    value,
    past_state,
    decay,
    beta,
    T,
    output,
    present_state,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    SCALE: tl.constexpr,
    PER_KEY: tl.constexpr,
    RATES: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """All tokens of one head and row, for BV columns of the state."""
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
        token = row * T + t
        at = token * H + head
        k = tl.load(key + at * K + in_k, mask=k_mask, other=0.0).to(tl.float32)
        u = tl.load(value + at * V + in_v, mask=v_mask, other=0.0).to(tl.float32)
        if decay is not None:
            if PER_KEY:
                g = tl.load(decay + at * K + in_k, mask=k_mask, other=0.0).to(tl.float32)
                state *= tl.exp(g)[:, None]
            else:
                state *= tl.exp(tl.load(decay + at).to(tl.float32))
        if beta is not None:
            rate = tl.load(beta + token * RATES + head % RATES).to(tl.float32)
            u = rate * (u - tl.sum(state * k[:, None], 0))
        state += k[:, None] * u[None, :]
        for i in tl.static_range(GROUP):
            read = at * GROUP + i
            q = tl.load(query + read * K + in_k, mask=k_mask, other=0.0).to(tl.float32)
            o = tl.sum(state * q[:, None], 0) * SCALE
            tl.store(output + read * V + in_v, o.to(output.dtype.element_ty), mask=v_mask)
    tl.store(present_state + cells, state.to(present_state.dtype.element_ty), mask=mask)


@triton.jit
def within(
    query,
    key,
    decay,
    beta,
    T,
    scores,
    inverse,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    SCALE: tl.constexpr,
    PER_KEY: tl.constexpr,
    RATES: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """P of each query head, and X of the delta rules, of one chunk of one head and row."""
    start = tl.program_id(0) * C
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    in_c, in_k = tl.arange(0, C), tl.arange(0, BK)
    t_mask = start + in_c < T
    mask = t_mask[:, None] & (in_k < K)[None, :]
    token = row * T + start + in_c
    at = token * H + head
    k = tl.load(key + at[:, None] * K + in_k[None, :], mask=mask, other=0.0).to(tl.float32)
    later = in_c[:, None] - in_c[None, :]
    if PER_KEY:
        reach = _summed(decay, at, t_mask, mask, in_k, K, PER_KEY)
        for i in tl.static_range(GROUP):
            q = tl.load(query + (at * GROUP + i)[:, None] * K + in_k[None, :], mask=mask, other=0.0)
            p = _decayed(q, key, decay, reach, row * T + start, head, T, start, H, K, C, BK)
            p = tl.where(later >= 0, p * SCALE, 0.0)
            tl.store(
                scores + (at * GROUP + i)[:, None] * C + in_c[None, :], p, mask=t_mask[:, None]
            )
        if beta is not None:
            kk = _decayed(k, key, decay, reach, row * T + start, head, T, start, H, K, C, BK)
    else:
        if decay is not None:
            g = tl.load(decay + at, mask=t_mask, other=0.0).to(tl.float32)
            reach = tl.cumsum(g, 0)
            kept = tl.exp(tl.minimum(reach[:, None] - reach[None, :], 0.0))
        else:
            kept = tl.full([C, C], 1.0, tl.float32)
        for i in tl.static_range(GROUP):
            q = tl.load(query + (at * GROUP + i)[:, None] * K + in_k[None, :], mask=mask, other=0.0)
            p = tl.dot(q.to(tl.float32), tl.trans(k), input_precision=PRECISION)
            p = tl.where(later >= 0, p * kept * SCALE, 0.0)
            tl.store(
                scores + (at * GROUP + i)[:, None] * C + in_c[None, :], p, mask=t_mask[:, None]
            )
        if beta is not None:
            kk = tl.dot(k, tl.trans(k), input_precision=PRECISION) * kept
    if beta is not None:
        rate = tl.load(beta + token * RATES + head % RATES, mask=t_mask, other=0.0).to(tl.float32)
        x = -tl.where(later > 0, rate[:, None] * kk, 0.0)
        for i in range(1, C):
            chosen = in_c[:, None] == i
            line = tl.sum(tl.where(chosen, x, 0.0), 0)
            line += tl.sum(line[:, None] * x, 0)
            x = tl.where(chosen, line[None, :], x)
        x = tl.where(later == 0, 1.0, x) * _across_columns(rate, in_c)
        tl.store(inverse + at[:, None] * C + in_c[None, :], x, mask=t_mask[:, None])


@triton.jit
def _across_columns(values, in_c):
    """The values of rows [C] as factors of columns [1, C]."""
    return tl.sum(tl.where(in_c[:, None] == in_c[None, :], values[:, None], 0.0), 0)[None, :]


@triton.jit
def _summed(decay, at, t_mask, mask, in_k, K: tl.constexpr, PER_KEY: tl.constexpr):
    """The log decay summed from the start of the chunk: [C, BK], or [C, 1] per head."""
    if PER_KEY:
        g = tl.load(decay + at[:, None] * K + in_k[None, :], mask=mask, other=0.0).to(tl.float32)
        return tl.cumsum(g, 0)
    else:  # noqa: RET505  triton takes one return per branch
        return tl.cumsum(tl.load(decay + at, mask=t_mask, other=0.0).to(tl.float32), 0)[:, None]


@triton.jit
def _decayed(
    rows,
    key,
    decay,
    reach,
    first,
    head,
    T,
    start,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
):
    """sum_d rows[t, d] k[s, d] e^{G[t, d] - G[s, d]} for s <= t, column by column from the last.

    G[t] - G[s] grows by the decay of one token from column to column; with both exponentials apart,
    e^{-G} would overflow.
    """
    in_c, in_k = tl.arange(0, C), tl.arange(0, BK)
    products = tl.zeros([C, C], tl.float32)
    ahead = reach - tl.sum(tl.where(in_c[:, None] == C - 1, reach, 0.0), 0)[None, :]
    for i in range(C):
        s = C - 1 - i
        inside = in_k < tl.where(start + s < T, K, 0)
        at = (first + s) * H + head
        k = tl.load(key + at * K + in_k, mask=inside, other=0.0).to(tl.float32)
        column = tl.sum(rows * tl.exp(tl.minimum(ahead, 0.0)) * k[None, :], 1)
        products = tl.where(in_c[None, :] == s, column[:, None], products)
        ahead += tl.load(decay + at * K + in_k, mask=inside, other=0.0).to(tl.float32)[None, :]
    return products


@triton.jit
def across(
    query,
    key,
    value,
    past_state,
    decay,
    scores,
    inverse,
    T,
    output,
    present_state,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    SCALE: tl.constexpr,
    PER_KEY: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All chunks of one head and row, for BV columns of the state."""
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    in_c, in_k = tl.arange(0, C), tl.arange(0, BK)
    in_v = tl.program_id(0) * BV + tl.arange(0, BV)
    k_mask, v_mask = in_k < K, in_v < V
    state_mask = k_mask[:, None] & v_mask[None, :]
    cells = ((row * H + head) * K + in_k[:, None]) * V + in_v[None, :]
    if past_state is None:
        state = tl.zeros([BK, BV], tl.float32)
    else:
        state = tl.load(past_state + cells, mask=state_mask, other=0.0).to(tl.float32)
    for start in range(0, T, C):
        t_mask = start + in_c < T
        at = (row * T + start + in_c) * H + head
        mask = t_mask[:, None] & k_mask[None, :]
        o_mask = t_mask[:, None] & v_mask[None, :]
        k = tl.load(key + at[:, None] * K + in_k[None, :], mask=mask, other=0.0).to(tl.float32)
        u = tl.load(value + at[:, None] * V + in_v[None, :], mask=o_mask, other=0.0)
        u = u.to(tl.float32)
        if decay is not None:
            reach = _summed(decay, at, t_mask, mask, in_k, K, PER_KEY)  # [C, BK] or [C, 1]
            kept = tl.exp(reach)
            whole = tl.sum(tl.where(in_c[:, None] == C - 1, reach, 0.0), 0)  # [BK] or [1]
        if inverse is not None:
            x = tl.load(inverse + at[:, None] * C + in_c[None, :], mask=t_mask[:, None], other=0.0)
            seen = k * kept if decay is not None else k
            u -= tl.dot(seen, state, input_precision=PRECISION)
            u = tl.dot(x, u, input_precision=PRECISION)
        for i in tl.static_range(GROUP):
            read = (at * GROUP + i)[:, None]
            q = tl.load(query + read * K + in_k[None, :], mask=mask, other=0.0).to(tl.float32)
            p = tl.load(scores + read * C + in_c[None, :], mask=t_mask[:, None], other=0.0)
            if decay is not None:
                q *= kept
            o = tl.dot(q, state, input_precision=PRECISION) * SCALE
            o = tl.dot(p, u, acc=o, input_precision=PRECISION)
            tl.store(output + read * V + in_v[None, :], o.to(output.dtype.element_ty), mask=o_mask)
        if decay is not None:
            k *= tl.exp(whole[None, :] - reach)
            state *= tl.exp(whole)[:, None]
        state = tl.dot(tl.trans(k), u, acc=state, input_precision=PRECISION)
    tl.store(present_state + cells, state.to(present_state.dtype.element_ty), mask=state_mask)


def kernels(request: Request) -> Kernels:
    """Choose tiles for the heads of a request.

    Raises:
        UnsupportedError: for heads wider than 256, sizes unknown at build time, or other dtypes.
    """
    given, attributes = request.inputs, request.attributes
    heads, q_heads = int(attributes["kv_num_heads"]), int(attributes["q_num_heads"])
    K = given["query"].size(-1, "query") // q_heads
    V = given["value"].size(-1, "value") // heads
    if max(K, V) > MOST:
        raise UnsupportedError(f"heads of {K} keys and {V} values; at most {MOST} fit a program.")
    dtype = float_of(request, "query")
    state = float_of(request, "past_state") if "past_state" in given else "float32"
    per_key = "decay" in given and given["decay"].size(-1, "decay") != heads
    rates = given["beta"].size(-1, "beta") if "beta" in given else 1
    sizes = {
        "H": heads,
        "GROUP": q_heads // heads,
        "K": K,
        "SCALE": float(attributes.get("scale", 0.0)) or K**-0.5,
        "PER_KEY": per_key,
    }
    names = LINEAR_ATTENTION.inputs
    tensors = {
        name: Buffer("input", names.index(name)) if name in given else None for name in names
    }
    batch, time = dim(0, 0), dim(0, 1)
    columns = 32 if V >= 32 else 16
    tiles = ceil_div(V, columns)
    outputs = {"output": Buffer("output", 0), "present_state": Buffer("output", 1)}
    walk = Kernel(
        function=recurrent,
        arguments={**tensors, "T": time, **outputs},
        constants={
            **sizes, "V": V, "RATES": rates, "BK": power_of_two(K), "BV": columns
        },
        grid=(tiles, heads, batch),
        elements=power_of_two(K) * columns,
    )  # fmt: skip
    made = (
        Output(dtype=dtype, shape=(batch, time, q_heads * V)),
        Output(dtype=state, shape=(batch, heads, K, V)),
    )
    if K > CHUNKED or request.alone:
        return Kernels(outputs=made, ways=(Way(kernels=[walk]),))
    blocks = {
        "C": CHUNK,
        "BK": power_of_two(K, 16),
        "PRECISION": _precision(dtype, request.sm),
    }
    delta = "beta" in given
    scores, inverse = Buffer("scratch", 0), Buffer("scratch", 1) if delta else None
    prepare = Kernel(
        function=within,
        arguments={
            **{name: tensors[name] for name in ("query", "key", "decay", "beta")},
            "T": time,
            "scores": scores,
            "inverse": inverse,
        },
        constants={**sizes, "RATES": rates, **blocks},
        grid=(ceil_div(time, CHUNK), heads, batch),
    )
    scan = Kernel(
        function=across,
        arguments={
            **{name: tensors[name] for name in tensors if name != "beta"},
            "scores": scores,
            "inverse": inverse,
            "T": time,
            **outputs,
        },
        constants={**sizes, "V": V, "BV": COLUMNS, **blocks},
        grid=(ceil_div(V, COLUMNS), heads, batch),
        warps=8 if per_key else 4,
        stages=1,
        elements=power_of_two(K, 16) * COLUMNS * CHUNK,
    )

    def scratch(rows: int) -> Scratch:
        return Scratch(dtype="float32", shape=(batch, time, rows, CHUNK))

    return Kernels(
        outputs=made,
        ways=(
            Way(kernels=[walk], when=less(time, STEPS + 1)),
            Way(
                kernels=[prepare, scan],
                scratch=[scratch(q_heads), *([scratch(heads)] if delta else [])],
            ),
        ),
    )


def _precision(dtype: str, sm: int) -> str:
    """How products are taken: in tf32, which holds every fp16 and bf16; for fp32 in fp32."""
    if dtype == "float32" or sm < FIRST_WITH_TF32:
        return "ieee"
    return "tf32"


def requests(sm: int) -> dict[str, Request]:
    """Every rule at the head sizes of published models, in fp16."""

    def request(rule: str, heads: tuple[int, int], K: int, V: int, *, per_key: bool) -> Request:
        q_heads, kv_heads = heads
        rows: dict[str, Input] = {
            "query": Input("float16", (None, None, q_heads * K)),
            "key": Input("float16", (None, None, kv_heads * K)),
            "value": Input("float16", (None, None, kv_heads * V)),
            "past_state": Input("float32", (None, kv_heads, K, V)),
        }
        if "gated" in rule:
            width = kv_heads * (K if per_key else 1)
            rows["decay"] = Input("float16", (None, None, width))
        if "delta" in rule:
            rows["beta"] = Input("float16", (None, None, kv_heads))
        attributes = {"update_rule": rule, "q_num_heads": q_heads, "kv_num_heads": kv_heads}
        return Request(attributes=attributes, inputs=rows, sm=sm)

    return {
        "gated_delta 128x128": request("gated_delta", (32, 32), 128, 128, per_key=False),
        "gated per key 128x256": request("gated", (4, 4), 128, 256, per_key=True),
        "delta 256x256": request("delta", (8, 4), 256, 256, per_key=False),
        "gated 128x64": request("gated", (24, 24), 128, 64, per_key=False),
        "gated_delta per key 128x128": request("gated_delta", (32, 32), 128, 128, per_key=True),
    }


PLUGIN = Plugin(
    op=LINEAR_ATTENTION,
    kernels=kernels,
    requests=requests,
    tolerance={"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2},
)
