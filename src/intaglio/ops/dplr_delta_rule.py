"""A state with a diagonal plus low-rank transition, carried from call to call: RWKV-7's recurrence.

For each head, with a state S [K, V] and the log decay g:

    S <- diag(e^{g_t}) S + b_t (S^T a_t)^T + k_t v_t^T,    o_t = S^T q_t

a reads the state as the token finds it, before the decay.  RWKV-7 has a = -k', b = k' * rate with
k' of length one, rate between 0 and 1 for each channel of the keys; the delta rules are a = -e^g k,
b = beta k.  Without a decay it is the identity plus low rank.

`LinearAttention` does not say this.  Its delta rules take away of the state along the key that they
write, and by one rate for a head; here a, b and k are three directions.  With
S = diag(sqrt(rate e^g)) S' the part that is taken away becomes a delta rule of S', but what is
written still has another key, and the change of frame divides by rates that may be 0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio import operators
from intaglio.errors import InputError

from ._chunks import cut, power_of_two, scores, sums_to_end
from ._dplr_delta_rule_onnx import SCHEMA, body, translation
from .op import Op, Sample

CHUNK = 32  # tokens


def dplr_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    """Run a diagonal plus low-rank recurrence over T tokens, from a state to a state.

    Args:
        query: [B, T, num_heads * K]; a scale is its own matter.
        key: [B, T, num_heads * K].
        value: [B, T, num_heads * V].
        a: what reads the state, [B, T, num_heads * K].
        b: along what that is added, [B, T, num_heads * K].
        decay: natural logarithm of the decay of each key, at most 0, [B, T, num_heads * K];
            None for none.
        past_state: [B, num_heads, K, V], fp32 (fp64 for fp64 inputs); None means zeros.
        num_heads: heads of all of them.

    Returns:
        The output [B, T, num_heads * V] in the dtype of `query`, and the state after the last token
        [B, num_heads, K, V] in fp32 (fp64).  T = 0 returns the state unchanged.

    Raises:
        InputError: if an argument does not fit the others; it is named.
    """
    given = (query, key, value, a, b, decay, past_state)
    recorded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    function = forward if recorded and not torch.compiler.is_exporting() else TORCH_OP
    outputs: tuple[Tensor, Tensor] = function(*given, num_heads=num_heads)
    return outputs


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    """Compute `dplr_delta_rule` by chunks, in differentiable operations of PyTorch.

    With G the sum of log decays and S_0 the state before a chunk, what tokens read of the state,
    u_t = S_{t-1}^T a_t, solves a triangular system (Yang et al. 2024, arXiv:2406.06484, for a of
    each token):

        u_t = S_0^T e^{G_{t-1}} a_t + sum_{s<t} (a_t . e^{G_{t-1}-G_s} b_s) u_s
                                    + sum_{s<t} (a_t . e^{G_{t-1}-G_s} k_s) v_s
    """
    _check(query, key, value, a, b, decay, past_state, num_heads)
    time, kind = query.shape[1], _state_dtype(query)
    length = min(CHUNK, power_of_two(time))
    q, k, v, read, write = (cut(x.to(kind), num_heads, length) for x in (query, key, value, a, b))
    g = None if decay is None else cut(decay.to(kind), num_heads, length)
    state = _start(query, value, past_state, num_heads)
    if time == 0:
        return value.new_empty(value.shape, dtype=query.dtype), state.clone()
    # a_t meets the state of the token before: one place earlier, its decays end where they should
    both = torch.stack((q, F.pad(read[..., 1:, :], (0, 0, 0, 1))), -3)
    (to_write, seen), (to_key, known) = (
        products.unbind(-3) for products in (scores(both, write, g), scores(both, k, g))
    )
    seen, known = (F.pad(x[..., :-1, :], (0, 0, 1, 0)) for x in (seen, known))
    q_start, a_start, k_end, b_end, kept = q, read, k, write, None
    if g is not None:
        q_start = q * g.cumsum(-2).exp()
        a_start = read * F.pad(g[..., :-1, :], (0, 0, 1, 0)).cumsum(-2).exp()
        k_end, b_end = (x * sums_to_end(g).exp() for x in (k, write))
        kept = g.sum(-2).exp()[..., None].unbind(2)
    solved = torch.linalg.solve_triangular(
        -seen, torch.cat((known @ v, a_start), -1), upper=False, unitriangular=True
    )
    new, old = solved.split((v.shape[-1], k.shape[-1]), -1)
    before, reads = [], []
    for n in range(v.shape[2]):
        before.append(state)
        reads.append(new[:, :, n] + old[:, :, n] @ state)
        added = b_end[:, :, n].mT @ reads[-1] + k_end[:, :, n].mT @ v[:, :, n]
        state = (state if kept is None else state * kept[n]) + added
    u, start = (torch.stack(x, 2) for x in (reads, before))
    output = to_write @ u + to_key @ v + q_start @ start
    packed = output.permute(0, 2, 3, 1, 4).flatten(1, 2).flatten(2)
    return packed[:, :time].to(query.dtype).contiguous(), state


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    """Compute `dplr_delta_rule` token by token."""
    _check(query, key, value, a, b, decay, past_state, num_heads)
    kind = _state_dtype(query)
    q, k, v, read, write = (
        torch.unflatten(x.to(kind), -1, (num_heads, -1)) for x in (query, key, value, a, b)
    )
    state = _start(query, value, past_state, num_heads)
    outputs = [value.new_empty(value.shape[0], 0, value.shape[2], dtype=kind)]
    for t in range(query.shape[1]):
        u = torch.einsum("bhk,bhkv->bhv", read[:, t], state)
        if decay is not None:
            kept = decay[:, t].to(kind).exp()
            state = state * torch.unflatten(kept, -1, (num_heads, -1))[..., None]
        state = state + write[:, t, :, :, None] * u[:, :, None]
        state = state + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state).flatten(1)[:, None])
    return torch.cat(outputs, 1).to(query.dtype), state.clone()


def _state_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def _start(query: Tensor, value: Tensor, past_state: Tensor | None, heads: int) -> Tensor:
    if past_state is not None:
        return past_state
    sizes = (query.shape[2] // heads, value.shape[2] // heads)
    return query.new_zeros(query.shape[0], heads, *sizes, dtype=_state_dtype(query))


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor | None,
    past_state: Tensor | None,
    num_heads: int,
) -> None:
    if num_heads < 1:
        raise InputError(f"num_heads is {num_heads}; it should be at least 1.")
    for name, x in (("query", query), ("value", value)):
        if x.dim() != 3 or x.shape[2] % num_heads:
            raise InputError(
                f"{name} has the shape {list(x.shape)}; it should be [B, T, D] with D a multiple "
                f"of its {num_heads} heads."
            )
    batch, time, width = query.shape
    sizes = [width // num_heads, value.shape[2] // num_heads]
    keys = [batch, time, width]
    for name, given, shape, dtype in (
        ("key", key, keys, query.dtype),
        ("value", value, [batch, time, value.shape[2]], query.dtype),
        ("a", a, keys, query.dtype),
        ("b", b, keys, query.dtype),
        ("decay", decay, keys, query.dtype),
        ("past_state", past_state, [batch, num_heads, *sizes], _state_dtype(query)),
    ):
        if given is not None and list(given.shape) != shape:
            raise InputError(f"{name} has the shape {list(given.shape)}; it should be {shape}.")
        if given is not None and given.dtype != dtype:
            raise InputError(
                f"{name} is {given.dtype}; for a query of {query.dtype} it is {dtype}."
            )


@torch.library.custom_op("intaglio::dplr_delta_rule", mutates_args=())
def _op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    return forward(query, key, value, a, b, decay, past_state, num_heads=num_heads)


@_op.register_fake
def _shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    _check(query, key, value, a, b, decay, past_state, num_heads)
    state = torch.empty_like(_start(query, value, past_state, num_heads))
    return value.new_empty(value.shape, dtype=query.dtype), state


TORCH_OP: Any = torch.ops.intaglio.dplr_delta_rule.default


def samples(dtype: torch.dtype) -> list[Sample]:
    """With and without decays and states: RWKV-7's, and a, b and k that have nothing in common."""
    generator = torch.Generator().manual_seed(0)
    heads, K, V = 2, 4, 6

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def sample(time: int, *, unit: bool = True, decay: bool = True, state: bool = True) -> Sample:
        keys = (2, time, heads, K)
        direction = F.normalize(normal(*keys), dim=-1)
        write = direction * normal(*keys).sigmoid() if unit else normal(*keys) / K
        made: Sample = {
            "query": normal(*keys).flatten(2).to(dtype),
            "key": normal(*keys).flatten(2).to(dtype),
            "value": normal(2, time, heads * V).to(dtype),
            "a": -direction.flatten(2).to(dtype),
            "b": write.flatten(2).to(dtype),
            "num_heads": heads,
        }
        if decay:
            made["decay"] = -0.6 * normal(*keys).sigmoid().flatten(2).to(dtype)
        if state:
            made["past_state"] = normal(2, heads, K, V).to(_state_dtype(made["query"]))
        return made

    return [
        sample(9),
        sample(1, state=False),
        sample(37, unit=False),
        sample(6, decay=False),
    ]


DPLR_DELTA_RULE = Op(
    signature=operators.DPLR_DELTA_RULE,
    since=1,
    own=SCHEMA,
    body=body,
    attributes=lambda sample: {"num_heads": sample["num_heads"]},
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
    source="Peng et al. 2025, arXiv:2503.14456, equations 16 and 17",
)
