"""Linear attention as one op of PyTorch, so that torch.export makes a single node of it."""

from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from ._linear_attention_check import check, state_dtype
from ._linear_attention_chunks import forward
from .op import bare_node

_op = torch.library.custom_op("intaglio::linear_attention", mutates_args=())(forward)
TORCH_OP: Any = torch.ops.intaglio.linear_attention.default


class Options(TypedDict):
    """Arguments that are attributes in ONNX."""

    update_rule: str
    q_num_heads: int
    kv_num_heads: int
    scale: float
    chunk_size: int


@_op.register_fake
def _shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]:
    q_heads, kv_heads = options["q_num_heads"], options["kv_num_heads"]
    check(query, key, value, past_state, decay, beta, options["update_rule"], q_heads, kv_heads)
    batch, time, packed = query.shape
    dk, dv = packed // q_heads, value.shape[-1] // kv_heads
    state = query.new_empty(batch, kv_heads, dk, dv, dtype=state_dtype(query))
    return query.new_empty(batch, time, q_heads * dv), state


def _setup_context(
    ctx: Any,
    inputs: tuple[Tensor | None, ...],
    keyword_only_inputs: Options,
    output: tuple[Tensor, Tensor],  # noqa: ARG001
) -> None:
    ctx.save_for_backward(*inputs)
    ctx.options = keyword_only_inputs


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the chunks again, recorded this time, and differentiate them."""
    again = torch.is_grad_enabled()  # the gradients are to be differentiated themselves
    with torch.enable_grad():
        # One tensor may be several arguments: views tell them apart.
        inputs: list[Any] = [None if x is None else x.view_as(x) for x in ctx.saved_tensors]
        outputs = forward(*inputs, **ctx.options)
    needs = ctx.needs_input_grad  # shorter than inputs where trailing ones were left out
    wanted = [x for x, needed in zip(inputs, needs, strict=False) if needed]
    found = iter(
        torch.autograd.grad(outputs, wanted, grads, create_graph=again, materialize_grads=True)
    )
    return tuple(next(found) if needed else None for needed in needs)


_op.register_autograd(_backward, setup_context=_setup_context)

_node = bare_node("LinearAttention", 27)


def translation(
    query: Any,
    key: Any,
    value: Any,
    past_state: Any = None,
    decay: Any = None,
    beta: Any = None,
    *,
    update_rule: str,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    chunk_size: int = 64,
) -> Any:
    """Emit the bare node for the torch op."""
    return _node(
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
