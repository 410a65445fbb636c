"""One layer of torch.nn.LSTM, GRU or RNN, carried from call to call: `intaglio::RNN`.

With gates of W x + b_ih + U h + b_hh, in the order in which PyTorch stacks them:

    LSTM      i, f, o = sigmoid, g = tanh;  c <- f c + i g;  h <- o tanh(c)
    GRU       r, z = sigmoid, n = tanh(W x + b_ih + r (U h + b_hh));  h <- (1 - z) n + z h
    RNN_TANH  h <- tanh(W x + b_ih + U h + b_hh)
    RNN_RELU  the same with relu

The standard has LSTM, GRU and RNN, with time before batch, other orders of gates, and states of
which batch is not the first axis; they are what the body of this operator is made of.
"""

from typing import Any

import torch
from torch import Tensor

from intaglio import operators
from intaglio.errors import InputError

from ._rnn_onnx import GATES, SCHEMA, body, translation
from .op import Op, Sample

MODES = tuple(GATES)
_FAST = {"GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}


def rnn(
    input: Tensor,  # noqa: A002
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """Run one layer over T tokens, from a state to a state.

    Args:
        input: [B, T, I].
        weight_ih: W, [G H, I]; G gates: 4 of an LSTM, 3 of a GRU, 1 otherwise.
        weight_hh: U, [G H, H].
        bias_ih: [G H], or None, and then `bias_hh` as well.
        bias_hh: [G H].
        past_state: [B, S, H]: h, and of an LSTM c after it; None means zeros.
        mode: LSTM, GRU, RNN_TANH or RNN_RELU.

    Returns:
        h after every token [B, T, H], and the state after the last one [B, S, H].  T = 0 returns
        the state unchanged.

    Raises:
        InputError: if an argument does not fit the others; it is named.
    """
    given = (input, weight_ih, weight_hh, bias_ih, bias_hh, past_state)
    recorded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    if recorded and not torch.compiler.is_exporting():
        return forward(*given, mode=mode)
    outputs: tuple[Tensor, Tensor] = TORCH_OP(*given, mode=mode)
    return outputs


def forward(
    input: Tensor,  # noqa: A002
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """Compute `rnn` by PyTorch's own kernels."""
    _check(input, weight_ih, weight_hh, bias_ih, bias_hh, past_state, mode)
    start = _start(input, weight_hh, past_state, mode)
    if input.shape[1] == 0:
        return input.new_empty(input.shape[0], 0, weight_hh.shape[1]), start.clone()
    states = [state[None].contiguous() for state in start.unbind(1)]
    weights = [x for x in (weight_ih, weight_hh, bias_ih, bias_hh) if x is not None]
    # biases, layers, dropout, training, bidirectional, batch first
    rest = (bias_ih is not None, 1, 0.0, False, False, True)
    if mode == "LSTM":
        output, *ends = torch.lstm(input, states, weights, *rest)
    else:
        output, *ends = _FAST[mode](input, states[0], weights, *rest)
    return output.contiguous(), torch.cat(ends).transpose(0, 1).contiguous()


def reference(
    input: Tensor,  # noqa: A002
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """Compute `rnn` as its equations stand."""
    _check(input, weight_ih, weight_hh, bias_ih, bias_hh, past_state, mode)
    gates = len(GATES[mode])
    h, *cell = _start(input, weight_hh, past_state, mode).unbind(1)
    zeros = weight_ih.new_zeros(len(weight_ih))
    outputs = [input.new_empty(input.shape[0], 0, weight_hh.shape[1])]
    for x in input.unbind(1):
        given = x @ weight_ih.T + (zeros if bias_ih is None else bias_ih)
        held = h @ weight_hh.T + (zeros if bias_hh is None else bias_hh)
        if mode == "LSTM":
            i, f, g, o = (given + held).chunk(gates, 1)
            cell = [f.sigmoid() * cell[0] + i.sigmoid() * g.tanh()]
            h = o.sigmoid() * cell[0].tanh()
        elif mode == "GRU":
            (r, z, n), (of_r, of_z, of_n) = given.chunk(gates, 1), held.chunk(gates, 1)
            update = (z + of_z).sigmoid()
            h = (1 - update) * (n + (r + of_r).sigmoid() * of_n).tanh() + update * h
        else:
            h = (given + held).tanh() if mode == "RNN_TANH" else (given + held).relu()
        outputs.append(h[:, None])
    return torch.cat(outputs, 1), torch.stack([h, *cell], 1)


def _start(x: Tensor, weight_hh: Tensor, past_state: Tensor | None, mode: str) -> Tensor:
    size = weight_hh.shape[1]
    return x.new_zeros(x.shape[0], states_of(mode), size) if past_state is None else past_state


def states_of(mode: str) -> int:
    """Vectors of a state: S."""
    return operators.RNN.kinds["mode"][mode]["vectors"]


def _check(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    past_state: Tensor | None,
    mode: str,
) -> None:
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}; it should be {', '.join(MODES)}.")
    if x.dim() != 3:
        raise InputError(f"input has the shape {list(x.shape)}; it should be [B, T, I].")
    if (bias_ih is None) != (bias_hh is None):
        raise InputError("bias_ih and bias_hh come together, or neither.")
    size = weight_hh.shape[-1]
    rows = len(GATES[mode]) * size
    for name, given, shape in (
        ("weight_hh", weight_hh, [rows, size]),
        ("weight_ih", weight_ih, [rows, x.shape[2]]),
        ("bias_ih", bias_ih, [rows]),
        ("bias_hh", bias_hh, [rows]),
        ("past_state", past_state, [x.shape[0], states_of(mode), size]),
    ):
        if given is not None and list(given.shape) != shape:
            raise InputError(f"{name} has the shape {list(given.shape)}; it should be {shape}.")
        if given is not None and given.dtype != x.dtype:
            raise InputError(f"{name} is {given.dtype}; it should be {x.dtype}, as input is.")


@torch.library.custom_op("intaglio::rnn", mutates_args=())
def _op(
    input: Tensor,  # noqa: A002
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    mode: str,
) -> tuple[Tensor, Tensor]:
    return forward(input, weight_ih, weight_hh, bias_ih, bias_hh, past_state, mode=mode)


@_op.register_fake
def _shapes(
    input: Tensor,  # noqa: A002
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    mode: str,
) -> tuple[Tensor, Tensor]:
    _check(input, weight_ih, weight_hh, bias_ih, bias_hh, past_state, mode)
    batch, time, _ = input.shape
    size = weight_hh.shape[1]
    return input.new_empty(batch, time, size), input.new_empty(batch, states_of(mode), size)


TORCH_OP: Any = torch.ops.intaglio.rnn.default


def samples(dtype: torch.dtype) -> list[Sample]:
    """Each mode with and without biases and state, and for one token."""
    generator = torch.Generator().manual_seed(0)
    inputs, hidden = 3, 4

    def sample(mode: str, time: int, *, biases: bool = True, state: bool = True) -> Sample:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        rows = len(GATES[mode]) * hidden
        made: Sample = {
            "input": normal(2, time, inputs),
            "weight_ih": 0.5 * normal(rows, inputs),
            "weight_hh": 0.3 * normal(rows, hidden),
            "mode": mode,
        }
        if biases:
            made |= {name: normal(rows) for name in ("bias_ih", "bias_hh")}
        if state:
            made["past_state"] = normal(2, states_of(mode), hidden)
        return made

    return [
        *(sample(mode, 7) for mode in MODES),
        *(sample(mode, 5, biases=False, state=False) for mode in MODES),
        *(sample(mode, 1) for mode in ("LSTM", "GRU")),
    ]


RNN = Op(
    signature=operators.RNN,
    since=1,
    own=SCHEMA,
    body=body,
    attributes=lambda sample: {
        "hidden_size": sample["weight_hh"].shape[1],
        "mode": sample["mode"],
    },
    reference=reference,
    forward=forward,
    torch_op=TORCH_OP,
    translation=translation,
    samples=samples,
    tolerance={torch.float64: 1e-13, torch.float32: 2e-6},
    source="Hochreiter and Schmidhuber 1997; Cho et al. 2014, arXiv:1406.1078; torch.nn.RNNBase",
)
