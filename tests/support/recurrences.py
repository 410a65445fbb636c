"""Recurrences of the literature in NumPy and float64, token by token, and what surrounds them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]


def weights_of(module: nn.Module) -> dict[str, Array]:
    """The parameters of a module by name."""
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def silu(x: Array) -> Array:
    return np.asarray(x * sigmoid(x))


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def linear(w: Weights, name: str, x: Array) -> Array:
    bias: Any = w.get(f"{name}.bias", 0.0)
    return np.asarray(x @ w[f"{name}.weight"].T + bias)


def convolved(w: Weights, name: str, rows: Array) -> Array:
    """Rows [T, C] through the causal depthwise convolution `name`, where there is one."""
    if f"{name}.weight" not in w:
        return rows
    taps = w[f"{name}.weight"][:, 0]  # the last one is that of the token itself
    size = taps.shape[1]
    padded = np.concatenate([np.zeros((size - 1, rows.shape[1])), rows])
    return np.stack([(padded[t : t + size] * taps.T).sum(0) for t in range(len(rows))])


def rms(x: Array, weight: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight)


def unit(x: Array) -> Array:
    return np.asarray(x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6))


def rotated(x: Array) -> Array:
    """Each position t of x [T, H, K] turned by t / 10000^(2j/K), halves against each other."""
    time, _, size = x.shape
    angles = np.arange(time)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    turned = (x[..., : size // 2] + 1j * x[..., size // 2 :]) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


def carried(q: Array, k: Array, v: Array, decay: Array, beta: Array | None = None) -> Array:
    """o_t = q_t^T S_t / sqrt(K) of S_t = D_t S_{t-1} + k_t u_t^T.

    q, k [T, H, K] and v [T, H, V]; decay [T, H, K] or [T, H, 1]; u = v, or with beta [T, H] the
    delta rule beta (v - S^T k).
    """
    state = np.zeros((q.shape[1], q.shape[2], v.shape[2]))
    rows = []
    for t in range(len(q)):
        state = decay[t][:, :, None] * state
        u = v[t] if beta is None else beta[t][:, None] * (
            v[t] - np.einsum("hkv,hk->hv", state, k[t])
        )  # fmt: skip
        state = state + k[t][:, :, None] * u[:, None, :]
        rows.append(np.einsum("hk,hkv->hv", q[t], state) / np.sqrt(q.shape[2]))
    return np.stack(rows)
