"""Linear attention with carried state: ONNX `LinearAttention`, opset 27, all four update rules.

Per head, with state S [dk, dv], log decay g and update rate b:

    S <- e^{g_t} S                         rules gated and gated_delta
    u  = b_t (v_t - S^T k_t)               rules delta and gated_delta; otherwise u = v_t
    S <- S + k_t u^T,   o_t = scale S^T q_t

`linear_attention` goes through the torch op ``intaglio::linear_attention``, so that a traced
graph holds one node for it; where gradients are recorded, it is differentiable PyTorch instead.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio import operators

from ._linear_attention_check import check, state_dtype
from ._linear_attention_chunks import forward
from ._linear_attention_torch import TORCH_OP, translation
from .op import Op, Sample


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    update_rule: str,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run linear attention over T tokens, from a state to a state.

    Args:
        query: [B, T, q_num_heads * dk].
        key: [B, T, kv_num_heads * dk]; of unit norm in each head for the delta rules.
        value: [B, T, kv_num_heads * dv].
        past_state: [B, kv_num_heads, dk, dv], fp32 (fp64 for fp64 inputs); None means zeros.
        decay: natural logarithm of the decay, at most 0: [B, T, kv_num_heads] per head, or
            [B, T, kv_num_heads * dk] per key.  For the rules gated and gated_delta only.
        beta: update rate, [B, T, kv_num_heads] or [B, T, 1].  For delta and gated_delta only.
        update_rule: linear, gated, delta or gated_delta.
        q_num_heads: heads of the query, a multiple of `kv_num_heads`.
        kv_num_heads: heads of key, value and state.
        scale: factor of the output; 0 means 1/sqrt(dk).
        chunk_size: tokens per chunk, rounded up to a power of two; it decides speed alone.

    Returns:
        The output [B, T, q_num_heads * dv] in the dtype of `query`, and the state after the last
        token [B, kv_num_heads, dk, dv] in fp32 (fp64).  T = 0 returns the state unchanged.

    Raises:
        InputError: if an argument does not fit the rule or the others; it is named.
    """
    arguments = (query, key, value, past_state, decay, beta)
    recorded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arguments)
    function = forward if recorded and not torch.compiler.is_exporting() else TORCH_OP
    outputs: tuple[Tensor, Tensor] = function(
        query,
        key,
        value,
        past_state,
        decay,
        beta,
        update_rule=update_rule,
        q_num_heads=q_num_heads,
        kv_num_heads=kv_num_heads,
        scale=scale,
        chunk_size=chunk_size,
    )
    return outputs


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    update_rule: str,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    chunk_size: int = 64,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Compute `linear_attention` token by token, in the words of the standard."""
    check(query, key, value, past_state, decay, beta, update_rule, q_num_heads, kv_num_heads)
    batch, time, _ = query.shape
    kind = state_dtype(query)
    q = torch.unflatten(query.to(kind), -1, (kv_num_heads, q_num_heads // kv_num_heads, -1))
    k, v = (torch.unflatten(x.to(kind), -1, (kv_num_heads, -1)) for x in (key, value))
    state = past_state
    if state is None:
        state = k.new_zeros(batch, kv_num_heads, k.shape[-1], v.shape[-1])
    outputs = [query.new_empty(batch, 0, q_num_heads * v.shape[-1], dtype=kind)]
    for t in range(time):
        if decay is not None:
            kept = decay[:, t].to(kind).exp()
            state = state * torch.unflatten(kept, -1, (kv_num_heads, -1))[..., None]
        u = v[:, t]
        if beta is not None:
            u = beta[:, t, :, None].to(kind) * (u - torch.einsum("bhk,bhkv->bhv", k[:, t], state))
        state = state + k[:, t, :, :, None] * u[:, :, None, :]
        outputs.append(torch.einsum("bhrk,bhkv->bhrv", q[:, t], state).reshape(batch, 1, -1))
    output = torch.cat(outputs, 1) * (scale or q.shape[-1] ** -0.5)
    return output.to(query.dtype), state.clone()


def samples(dtype: torch.dtype) -> list[Sample]:
    """Every rule, both kinds of decay, grouped heads, with and without a state."""
    generator = torch.Generator().manual_seed(0)

    def sample(
        rule: str,
        batch: int,
        time: int,
        heads: tuple[int, int],
        *,
        per_key: bool = False,
        state: bool = True,
    ) -> Sample:
        q_heads, kv_heads, dk, dv = *heads, 4, 6

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        key = F.normalize(normal(batch, time, kv_heads, dk), dim=-1).flatten(2)
        arguments: Sample = {
            "query": normal(batch, time, q_heads * dk).to(dtype),
            "key": key.to(dtype),
            "value": normal(batch, time, kv_heads * dv).to(dtype),
            "update_rule": rule,
            "q_num_heads": q_heads,
            "kv_num_heads": kv_heads,
        }
        if state:
            kind = state_dtype(arguments["query"])
            arguments["past_state"] = normal(batch, kv_heads, dk, dv).to(kind)
        if "gated" in rule:
            width = kv_heads * dk if per_key else kv_heads
            arguments["decay"] = F.logsigmoid(3 * normal(batch, time, width)).to(dtype)
        if "delta" in rule:
            arguments["beta"] = normal(batch, time, kv_heads).sigmoid().to(dtype)
        return arguments

    return [
        sample("linear", 2, 5, (2, 2)),
        sample("gated", 1, 70, (4, 2)),
        sample("gated", 2, 9, (2, 2), per_key=True),
        sample("delta", 2, 7, (3, 1), state=False),
        sample("gated_delta", 1, 67, (2, 2)),
        sample("gated_delta", 2, 1, (4, 2), per_key=True),
    ]


LINEAR_ATTENTION = Op(
    signature=operators.LINEAR_ATTENTION,
    since=27,
    attributes=lambda sample: {
        name: sample[name] for name in sample if not isinstance(sample[name], Tensor)
    },
    reference=reference,
    forward=forward,
    torch_op=TORCH_OP,
    translation=translation,
    samples=samples,
    tolerance={
        torch.float64: 1e-12,
        torch.float32: 2e-6,
        torch.float16: 2e-3,
        torch.bfloat16: 2e-2,
    },
    source="ONNX LinearAttention-27; Yang et al. 2024, arXiv:2406.06484 and arXiv:2412.06464",
)
