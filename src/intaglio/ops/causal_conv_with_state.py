"""A causal depthwise convolution with carried state: ONNX `CausalConvWithState`, opset 27.

    y[c, t] = activation(bias[c] + sum_j weight[c, 0, j] x[c, t - (k - 1) + j])

where x before the first token is `past_state`; the state is the last k - 1 inputs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio import operators
from intaglio.errors import InputError

from .op import Op, Sample

ACTIVATIONS = ("none", "silu", "swish")  # silu and swish are two names of one function


def causal_conv_with_state(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own kernel over past and present inputs.

    Args:
        input: [B, C, T].
        weight: [C, 1, k], the newest input last, as `torch.nn.Conv1d` holds it.
        bias: [C], or None.
        past_state: [B, C, k - 1], the inputs before these; None means zeros.
        activation: none, silu or swish.

    Returns:
        The output [B, C, T], and the last k - 1 inputs [B, C, k - 1], those of `past_state`
        included where T is shorter.  T = 0 returns the state unchanged.

    Raises:
        InputError: if an argument does not fit the others; it is named.
    """
    _check(input, weight, past_state, activation)
    size = weight.shape[-1] - 1
    if past_state is None:
        past_state = input.new_zeros(*input.shape[:2], size)
    inputs = torch.cat((past_state, input), -1)
    present = inputs[..., inputs.shape[-1] - size :].clone()
    if input.shape[-1] == 0:
        return input.clone(), present
    output = F.conv1d(inputs, weight, bias, groups=weight.shape[0])
    return output if activation == "none" else F.silu(output), present


def reference(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """Compute `causal_conv_with_state` token by token."""
    _check(input, weight, past_state, activation)
    batch, channels, time = input.shape
    state = past_state
    if state is None:
        state = input.new_zeros(batch, channels, weight.shape[-1] - 1)
    outputs = [input.new_empty(batch, channels, 0)]
    for t in range(time):
        seen = torch.cat((state, input[..., t : t + 1]), -1)
        y = (seen * weight[:, 0]).sum(-1, keepdim=True)
        if bias is not None:
            y = y + bias[:, None]
        outputs.append(y if activation == "none" else y * y.sigmoid())
        state = seen[..., 1:]
    return torch.cat(outputs, -1), state.clone()


def _check(x: Tensor, weight: Tensor, past_state: Tensor | None, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise InputError(
            f"activation is {activation!r}; it should be one of {', '.join(ACTIVATIONS)}."
        )
    if x.dim() != 3:
        raise InputError(f"input has the shape {list(x.shape)}; it should be [B, C, T].")
    if weight.dim() != 3 or weight.shape[:2] != (x.shape[1], 1):
        raise InputError(
            f"weight has the shape {list(weight.shape)}; for {x.shape[1]} channels of input it "
            f"should be [{x.shape[1]}, 1, k]."
        )
    expected = (*x.shape[:2], weight.shape[-1] - 1)
    if past_state is not None and past_state.shape != expected:
        raise InputError(
            f"past_state has the shape {list(past_state.shape)}; it should be {list(expected)}."
        )


def samples(dtype: torch.dtype) -> list[Sample]:
    """Kernels longer and shorter than the input, with and without bias, state, activation."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def sample(time: int, kernel: int, **others: Tensor | str) -> Sample:
        return {"input": normal(2, 3, time), "weight": normal(3, 1, kernel), **others}

    return [
        sample(5, 4),
        sample(2, 4, bias=normal(3), past_state=normal(2, 3, 3), activation="silu"),
        sample(9, 2, past_state=normal(2, 3, 1), activation="swish"),
        sample(1, 3, bias=normal(3), past_state=normal(2, 3, 2)),
    ]


CAUSAL_CONV_WITH_STATE = Op(
    signature=operators.CAUSAL_CONV_WITH_STATE,
    since=27,
    attributes=lambda sample: {"activation": sample.get("activation", "none")},
    reference=reference,
    forward=causal_conv_with_state,
    samples=samples,
    tolerance={
        torch.float64: 1e-12,
        torch.float32: 2e-6,
        torch.float16: 4e-3,
        torch.bfloat16: 3e-2,
    },
    source="ONNX CausalConvWithState-27",
)
