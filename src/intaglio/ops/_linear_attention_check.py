"""What the arguments of linear attention have to be to each other."""

import torch
from torch import Tensor

from intaglio.errors import InputError

RULES = ("linear", "gated", "delta", "gated_delta")


def check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    update_rule: str,
    q_num_heads: int,
    kv_num_heads: int,
) -> None:
    """Raise InputError where the arguments of `linear_attention` do not fit each other."""
    if update_rule not in RULES:
        raise InputError(f"update_rule is {update_rule!r}; it should be one of {', '.join(RULES)}.")
    if kv_num_heads < 1 or q_num_heads < 1 or q_num_heads % kv_num_heads:
        raise InputError(
            f"q_num_heads is {q_num_heads} and kv_num_heads {kv_num_heads}; "
            "q_num_heads should be a multiple of kv_num_heads."
        )
    for name, given, needed in (
        ("decay", decay, update_rule in ("gated", "gated_delta")),
        ("beta", beta, update_rule in ("delta", "gated_delta")),
    ):
        if needed != (given is not None):
            verb = "needs" if needed else "takes no"
            raise InputError(f"update_rule {update_rule!r} {verb} {name}.")
    batch, time = _packed("query", query, q_num_heads)
    size = query.shape[-1] // q_num_heads
    for name, given, heads, widths in (
        ("key", key, kv_num_heads, [kv_num_heads * size]),
        ("value", value, kv_num_heads, [value.shape[-1]]),
        ("decay", decay, kv_num_heads, [kv_num_heads, kv_num_heads * size]),
        ("beta", beta, 1, [kv_num_heads, 1]),
    ):
        if given is None:
            continue
        if _packed(name, given, heads) != (batch, time) or given.shape[-1] not in widths:
            wide = " or ".join(str([batch, time, width]) for width in widths)
            raise InputError(f"{name} has the shape {list(given.shape)}; it should be {wide}.")
        if given.dtype != query.dtype:
            raise InputError(f"{name} is {given.dtype} and query {query.dtype}; cast one of them.")
    shape = [batch, kv_num_heads, size, value.shape[-1] // kv_num_heads]
    if past_state is None:
        return
    if list(past_state.shape) != shape:
        raise InputError(
            f"past_state has the shape {list(past_state.shape)}; it should be {shape}."
        )
    if past_state.dtype != state_dtype(query):
        raise InputError(
            f"past_state is {past_state.dtype}; for a query of {query.dtype} the state is kept in "
            f"{state_dtype(query)}."
        )


def _packed(name: str, x: Tensor, heads: int) -> tuple[int, int]:
    """Return batch and time of a packed [B, T, heads * D] tensor."""
    if x.dim() != 3 or x.shape[-1] % heads:
        raise InputError(
            f"{name} has the shape {list(x.shape)}; it should be [B, T, D] with D a multiple of "
            f"its {heads} heads."
        )
    return x.shape[0], x.shape[1]


def state_dtype(query: Tensor) -> torch.dtype:
    """Return the dtype of state and sums: fp32, or fp64 where `query` is fp64."""
    return torch.float64 if query.dtype == torch.float64 else torch.float32
