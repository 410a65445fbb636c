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

from intaglio.errors import UnsupportedError
from intaglio.ops import LINEAR_ATTENTION
from intaglio.runtime.launch import Buffer, Output, ceil_div, dim, less

from ._linear_attention_kernels import across, recurrent, within
from .plugin import (
    Input,
    Kernel,
    Kernels,
    Plugin,
    Request,
    Scratch,
    Way,
    float_of,
    power_of_two,
    tensors_of,
)

MOST = 256  # entries of a head
CHUNKED = 128  # keys of a head up to which chunks fit registers; wider heads always walk
STEPS = 16  # tokens up to which the walk is taken
CHUNK, COLUMNS = 32, 16  # tokens and columns of a chunk's program: no tile that is larger fits
FIRST_WITH_TF32 = 80


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
    tensors = tensors_of(request, LINEAR_ATTENTION.inputs)
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
