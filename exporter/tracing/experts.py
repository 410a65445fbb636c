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


def experts_of_languages(self: Any, lang_ids: Tensor, hidden_states: Tensor) -> Tensor:
    """X-MOD: y = x + W2_l act(W1_l x), l being the language of a row.

    `lang_ids` is [B], `hidden_states` [B, T, D].

    Source: Pfeiffer et al. 2022, arXiv:2205.06266, section 3.
    """
    residual = x = hidden_states
    if self.adapter_layer_norm is not None:
        x = self.adapter_layer_norm(x)
    elif self.adapter_reuse_layer_norm:
        x = self.LayerNorm(x)
    if self.ln_before_adapter:
        residual = x
    adapters, of_row = list(self.adapter_modules.values()), lang_ids.long()

    def linear(name: str, x: Tensor) -> Tensor:
        layers = [getattr(each, name) for each in adapters]
        weight = torch.stack([layer.weight for layer in layers])[of_row]
        bias = torch.stack([layer.bias for layer in layers])[of_row]
        y: Tensor = x @ weight.transpose(1, 2) + bias[:, None]
        return y

    adapted = linear("dense2", adapters[0].adapter_act_fn(linear("dense1", x)))
    y: Tensor = self.dropout(adapted) + residual
    return y


class _ChosenRows(tuple[Any, ...]):  # noqa: SLOT001  its attributes are what it is for
    """How experts of JetMoE were chosen, in the library's form; and as [B T, k]."""

    experts: Tensor
    gates: Tensor


def _routed(router: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen experts of rows of `x`, [B T, k], their weights, and the logits of all."""
    logits = router.layer(x).float()
    top, experts = logits.topk(router.top_k, dim=1)
    return experts, top.softmax(1).type_as(x), logits


def _of_each(experts: Any, chosen: Tensor, x: Tensor) -> Tensor:
    """What the chosen experts make of `x`, [B T, 1 or k, D]: [B T, k, D']."""
    y: Tensor = (experts.weight[chosen] @ x[..., None]).squeeze(-1)
    return y


def gated_experts(self: Any, layer_input: Tensor) -> Tensor:
    """JetMoE: y = b + sum over the chosen experts e of p_e W2_e (act(g_e) * u_e), (g, u) = W1_e x.

    `layer_input` is [B, T, D].

    Source: Shen et al. 2024, arXiv:2404.07413, section 2.1.
    """
    x = layer_input.reshape(-1, self.input_size)
    chosen, gates, _ = _routed(self.router, x)
    gate, up = _of_each(self.input_linear, chosen, x[:, None]).chunk(2, dim=-1)
    each = _of_each(self.output_linear, chosen, self.activation(gate) * up)
    y: Tensor = (each * gates[..., None]).sum(1).view(layer_input.shape) + self.bias
    return y


def queries_of_experts(self: Any, layer_input: Tensor) -> tuple[Tensor, Tensor, _ChosenRows]:
    """JetMoE: q_e = W_e x for each chosen expert e, [B, T, k, D] of x [B, T, C].

    Source: Shen et al. 2024, arXiv:2404.07413, section 2.2.
    """
    x = layer_input.reshape(-1, self.input_size)
    experts, gates, logits = _routed(self.router, x)
    queries = _of_each(self.input_linear, experts, x[:, None])
    order = experts.flatten().sort(0)[1]
    rows = order.div(self.top_k, rounding_mode="trunc")
    chosen = _ChosenRows((order, rows, gates.flatten()[order]))
    chosen.experts, chosen.gates = experts, gates
    return queries.view(*layer_input.shape[:2], self.top_k, -1), logits, chosen


def outputs_of_experts(self: Any, layer_input: Tensor, chosen: Any) -> Tensor:
    """JetMoE: y = b + sum over the chosen experts e of p_e W_e o_e; see `queries_of_experts`."""
    batch, time, k, width = layer_input.shape
    if isinstance(chosen, _ChosenRows):
        experts, gates = chosen.experts, chosen.gates
    else:  # sorted by the experts, each of which has so many
        order, _, sorted_gates, sizes = chosen
        of_each = torch.arange(self.num_experts).repeat_interleave(torch.tensor(sizes))
        place = order.argsort()
        experts, gates = of_each[place].view(-1, k), sorted_gates[place].view(-1, k)
    each = _of_each(self.output_linear, experts, layer_input.reshape(-1, k, width))
    summed = (each * gates[..., None]).sum(1)
    y: Tensor = summed.view(batch, time, self.input_size) + self.bias
    return y


EXPERTS: Mapping[str, Callable[..., Any]] = {
    "DbrxExperts.forward": experts_of_one_matrix,
    "JetMoeMoE.forward": gated_experts,
    "JetMoeMoA.map": queries_of_experts,
    "JetMoeMoA.reduce": outputs_of_experts,
    "Llama4TextMoe.forward": experts_of_scaled_inputs,
    "LongcatFlashExperts.forward": experts_with_idle_ones,
    "XmodOutput.lang_adapter": experts_of_languages,
}
