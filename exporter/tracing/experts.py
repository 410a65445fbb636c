"""Experts of the library whose Python goes by which of them were chosen, and what says the same.

A table as `mixers` has one: the class and its method, and the function that replaces it while a
module is captured.  Both are run and compared first (`replace`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def experts_of_one_matrix(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """DBRX: y = sum over the chosen experts e of p_e W2_e^T (act(W1_e x) * V1_e x).

    `hidden_states` is [B, T, D], what was chosen and its weights are [B T, k].

    Source: https://github.com/databricks/dbrx, the experts of its ffn.
    """
    size, width = self.hidden_size, self.ffn_hidden_size
    x = hidden_states.reshape(-1, 1, size, 1)
    w1, v1, w2 = (
        weight.view(-1, width, size)[top_k_index]
        for weight in (self.mlp.w1, self.mlp.v1, self.mlp.w2)
    )
    inner = self.mlp.activation_fn(w1 @ x) * (v1 @ x)
    each = (inner.transpose(2, 3) @ w2).squeeze(2)
    y: Tensor = (each * top_k_weights[..., None]).sum(1).view(hidden_states.shape)
    return y


def experts_of_scaled_inputs(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Llama-4: y = shared(x) + sum over experts e of e(s_e x), s_e being 0 where e is not chosen.

    `hidden_states` is [B, T, D].

    Source: https://github.com/meta-llama/llama-models, moe.py of Llama-4.
    """
    x = hidden_states.reshape(-1, self.hidden_dim)
    scores, logits = self.router(x)
    experts = self.experts
    gate, up = (scores.transpose(0, 1)[..., None] * x @ experts.gate_up_proj).chunk(2, dim=-1)
    routed = (up * experts.act_fn(gate)) @ experts.down_proj
    return self.shared_expert(x) + routed.sum(0), logits


def experts_with_idle_ones(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """LongCat: as usual, but experts from a number on give back what they are given.

    Shapes are [B T, D] and [B T, k].

    Source: Meituan 2025, arXiv:2509.01322, section 2.1.
    """
    x, real = hidden_states, self.num_routed_experts
    chosen = top_k_index.clamp(max=real - 1)
    gate, up = (self.gate_up_proj[chosen] @ x[:, None, :, None]).chunk(2, dim=2)
    each = (self.down_proj[chosen] @ (self.act_fn(gate) * up)).squeeze(-1)
    each = torch.where((top_k_index < real)[..., None], each, x[:, None])
    return (each * top_k_weights[..., None]).sum(1).to(x.dtype)


EXPERTS: Mapping[str, Callable[..., Any]] = {
    "DbrxExperts.forward": experts_of_one_matrix,
    "Llama4TextMoe.forward": experts_of_scaled_inputs,
    "LongcatFlashExperts.forward": experts_with_idle_ones,
}
