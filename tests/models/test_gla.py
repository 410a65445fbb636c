"""GLA: the layer is the equation of its paper."""

import torch
from torch.nn import functional as F

from intaglio.models.gla import Config, mixer


def test_the_layer_equals_the_recurrence_of_the_paper() -> None:
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T, o_t = q_t^T S_t / sqrt(d_k), token by token."""
    torch.manual_seed(0)
    config = Config(hidden_size=16, key_size=8, num_heads=2, gate_rank=4)
    layer = mixer(config).double()
    x = torch.randn(1, 7, 16, dtype=torch.float64)
    q, k, v = (p(x)[0].view(7, 2, -1) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    a = (F.logsigmoid(layer.gk_proj(x)) / 16).exp()[0].view(7, 2, -1)
    state = torch.zeros(2, 4, 8, dtype=torch.float64)
    rows = []
    for t in range(7):
        state = a[t][:, :, None] * state + k[t][:, :, None] * v[t][:, None, :]
        rows.append(torch.einsum("hk,hkv->hv", q[t], state) / 4**0.5)
    y = layer.g_norm(torch.stack(rows)).reshape(1, 7, 16)
    torch.testing.assert_close(layer(x), layer.o_proj(y * F.silu(layer.g_proj(x))))
