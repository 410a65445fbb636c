"""Every operator that carries state or that ONNX lacks: inputs, outputs, states and cost, once.

`intaglio.ops` adds what each one means; passes, the reference, the runtime and the kernels read
what it takes, carries and costs from here.  Names of sizes are those of the operators' papers;
where an attribute is a size, the name is the attribute's.
"""

from .signature import DOMAIN, CarriedPort, Formal, Signature
from .state import Layout

FLOAT32 = "float32"
RECURRENT = CarriedPort(
    past="past_state", present="present_state", port="recurrent", layout=Layout.RECURRENT
)

ATTENTION = Signature(
    name="attention",
    onnx_type="Attention",
    inputs=(
        Formal("query", "batch q_heads time K"),
        Formal("key", "batch kv_heads time K"),
        Formal("value", "batch kv_heads time V"),
        Formal("attn_mask", optional=True),
        Formal("past_key", "batch kv_heads past K", optional=True),
        Formal("past_value", "batch kv_heads past V", optional=True),
    ),
    outputs=(
        Formal("output", "batch q_heads time V"),
        Formal("present_key", "batch kv_heads past+time K"),
        Formal("present_value", "batch kv_heads past+time V"),
    ),
    states=tuple(
        CarriedPort(past=f"past_{port}", present=f"present_{port}", port=port, layout=None, axis=2)
        for port in ("key", "value")
    ),
)  # what it costs depends on where its cache is: `runtime/work.py`

LINEAR_ATTENTION = Signature(
    name="linear_attention",
    onnx_type="LinearAttention",
    ort_domain="com.microsoft",
    inputs=(
        Formal("query", "batch time q_num_heads*K"),
        Formal("key", "batch time kv_num_heads*K"),
        Formal("value", "batch time kv_num_heads*V"),
        Formal("past_state", "batch kv_num_heads K V", FLOAT32, optional=True),
        Formal("decay", "batch time kv_num_heads | batch time kv_num_heads*K", optional=True),
        Formal("beta", "batch time kv_num_heads | batch time 1", optional=True),
    ),
    outputs=(
        Formal("output", "batch time q_num_heads*V"),
        Formal("present_state", "batch kv_num_heads K V", FLOAT32),
    ),
    states=(RECURRENT,),
    operations={  # for each element of the state: an outer product and a query; a decay; a delta
        "": "4*batch*time*kv_num_heads*K*V",
        "decay": "batch*time*kv_num_heads*K*V",
        "beta": "2*batch*time*kv_num_heads*K*V",
    },
)

CAUSAL_CONV_WITH_STATE = Signature(
    name="causal_conv_with_state",
    onnx_type="CausalConvWithState",
    ort_domain="com.microsoft",
    inputs=(
        Formal("input", "batch channels time"),
        Formal("weight", "channels 1 kernel"),
        Formal("bias", "channels", optional=True, absent=0.0),
        Formal("past_state", "batch channels kernel-1", optional=True),
    ),
    outputs=(
        Formal("output", "batch channels time"),
        Formal("present_state", "batch channels kernel-1"),
    ),
    states=(
        CarriedPort(past="past_state", present="present_state", port="conv", layout=Layout.CONV),
    ),
    operations={"": "2*batch*channels*time*kernel"},
)

DIAGONAL_SSM = Signature(
    name="diagonal_ssm",
    onnx_type="DiagonalSSM",
    domain=DOMAIN,
    inputs=(
        Formal("input", "batch time D"),
        Formal("A", "D N", FLOAT32),
        Formal("B", "batch time N", when={"lti": "D N"}),
        Formal("C", "batch time N", when={"lti": "D N"}),
        Formal("delta", "batch time D", optional=True),
        Formal("past_state", "batch D N", FLOAT32, optional=True),
    ),
    outputs=(Formal("output", "batch time D"), Formal("present_state", "batch D N", FLOAT32)),
    states=(RECURRENT,),
    attributes={"lti": int, "discretization": str},
    operations={"": "7*batch*time*D*N"},  # h = exp(dt A) h + dt B x; y = C h
)

DPLR_DELTA_RULE = Signature(
    name="dplr_delta_rule",
    onnx_type="DPLRDeltaRule",
    domain=DOMAIN,
    inputs=(
        Formal("query", "batch time num_heads*K"),
        Formal("key", "batch time num_heads*K"),
        Formal("value", "batch time num_heads*V"),
        Formal("a", "batch time num_heads*K"),
        Formal("b", "batch time num_heads*K"),
        Formal("decay", "batch time num_heads*K", optional=True),
        Formal("past_state", "batch num_heads K V", FLOAT32, optional=True),
    ),
    outputs=(
        Formal("output", "batch time num_heads*V"),
        Formal("present_state", "batch num_heads K V", FLOAT32),
    ),
    states=(RECURRENT,),
    attributes={"num_heads": int},
    operations={  # for each element of the state: read by a, two outer products, a query; a decay
        "": "8*batch*time*num_heads*K*V",
        "decay": "batch*time*num_heads*K*V",
    },
)

PIECEWISE_LINEAR_RNN = Signature(
    name="piecewise_linear_rnn",
    onnx_type="PiecewiseLinearRNN",
    domain=DOMAIN,
    inputs=(
        Formal("drive", "batch time M"),
        Formal("A", "M", FLOAT32),
        Formal("W", "M M", FLOAT32),
        Formal("h", "M", FLOAT32),
        Formal("force", "batch time n", optional=True),
        Formal("force_mask", "batch time", "bool", optional=True),
        Formal("past_state", "batch M", FLOAT32, optional=True),
    ),
    outputs=(Formal("output", "batch time M"), Formal("present_state", "batch M", FLOAT32)),
    states=(RECURRENT,),
    attributes={"num_relu": int},
    operations={"": "2*batch*time*M*M"},
    amplifies=True,
)

RNN = Signature(
    name="rnn",
    onnx_type="RNN",
    domain=DOMAIN,
    inputs=(
        Formal("input", "batch time I"),
        Formal("weight_ih", "gates*hidden_size I"),
        Formal("weight_hh", "gates*hidden_size hidden_size"),
        Formal("bias_ih", "gates*hidden_size", optional=True),
        Formal("bias_hh", "gates*hidden_size", optional=True),
        Formal("past_state", "batch vectors hidden_size", optional=True),
    ),
    outputs=(
        Formal("output", "batch time hidden_size"),
        Formal("present_state", "batch vectors hidden_size"),
    ),
    states=(RECURRENT,),
    attributes={"hidden_size": int, "mode": str},
    kinds={
        "mode": {
            "LSTM": {"gates": 4, "vectors": 2},  # h, and c after it
            "GRU": {"gates": 3, "vectors": 1},
            "RNN_TANH": {"gates": 1, "vectors": 1},
            "RNN_RELU": {"gates": 1, "vectors": 1},
        }
    },
    operations={
        "": "2*batch*time*gates*hidden_size*I + 2*batch*time*gates*hidden_size*hidden_size"
    },
)

AFFINE_LOW_BIT_GATHER = Signature(
    name="affine_low_bit_gather",
    onnx_type="AffineLowBitGather",
    domain=DOMAIN,
    inputs=(
        Formal("indices", "*rows", "int64"),
        Formal("codes", dtype="uint8"),
        Formal("scale", "N groups"),
        Formal("offset", "N groups", optional=True),
    ),
    outputs=(Formal("output", "*rows K"),),
    attributes=dict.fromkeys(("K", "N", "bits", "group"), int),
    operations={"": "rows*K", "offset": "rows*K"},
    tabled=("codes", "scale", "offset"),
)

AFFINE_LOW_BIT_MAT_MUL = Signature(
    name="affine_low_bit_mat_mul",
    onnx_type="AffineLowBitMatMul",
    domain=DOMAIN,
    inputs=(
        Formal("input", "*rows K"),
        Formal("codes", dtype="uint8"),
        Formal("scale", "N groups"),
        Formal("offset", "N groups", optional=True),
        Formal("bias", "N", optional=True),
    ),
    outputs=(Formal("output", "*rows N"),),
    attributes=dict.fromkeys(("K", "N", "bits", "group"), int),
    operations={"": "2*rows*K*N"},
)

SIGNATURES = (
    AFFINE_LOW_BIT_GATHER,
    AFFINE_LOW_BIT_MAT_MUL,
    ATTENTION,
    CAUSAL_CONV_WITH_STATE,
    DIAGONAL_SSM,
    DPLR_DELTA_RULE,
    LINEAR_ATTENTION,
    PIECEWISE_LINEAR_RNN,
    RNN,
)

BY_NAME = {each.name: each for each in SIGNATURES}
BY_TYPE = {
    f"{domain}::{each.onnx_type}" if domain else each.onnx_type: each
    for each in SIGNATURES
    for domain in (each.domain, each.ort_domain)
    if domain is not None
}
"""Signatures by the type of a node, its domain before it unless that is ONNX's own."""
