"""RNN: its equations, PyTorch's own modules and the body in ONNX Runtime say the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import InputError
from intaglio.ops import RNN, rnn
from intaglio.ops.op import Sample
from intaglio.ops.rnn import MODES, states_of

OP = RNN
INPUTS, HIDDEN = 3, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def draw(mode: str = "LSTM", time: int = 9, dtype: torch.dtype = torch.float64) -> Sample:
    generator = torch.Generator().manual_seed(0)
    rows = GATES[mode] * HIDDEN

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "input": normal(2, time, INPUTS),
        "weight_ih": 0.5 * normal(rows, INPUTS),
        "weight_hh": 0.3 * normal(rows, HIDDEN),
        "bias_ih": normal(rows),
        "bias_hh": normal(rows),
        "past_state": normal(2, states_of(mode), HIDDEN),
        "mode": mode,
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("time", [0, 1, 7])
def test_the_fast_form_equals_the_equations(
    mode: str, time: int, close: Callable[..., None]
) -> None:
    """With and without biases and a state to start from."""
    sample = draw(mode, time)
    bare = {n: x for n, x in sample.items() if n not in ("bias_ih", "bias_hh", "past_state")}
    for given in (sample, bare):
        for got, wanted in zip(rnn(**given), OP.reference(**given), strict=True):
            assert got.shape == wanted.shape
            close(got, wanted, OP.tolerance[torch.float64])


@pytest.mark.parametrize(
    ("mode", "module"),
    [
        ("LSTM", nn.LSTM(INPUTS, HIDDEN, batch_first=True)),
        ("GRU", nn.GRU(INPUTS, HIDDEN, batch_first=True)),
        ("RNN_TANH", nn.RNN(INPUTS, HIDDEN, batch_first=True)),
        ("RNN_RELU", nn.RNN(INPUTS, HIDDEN, nonlinearity="relu", batch_first=True)),
    ],
)
def test_weights_are_those_of_the_modules_of_pytorch(
    mode: str, module: nn.RNNBase, close: Callable[..., None]
) -> None:
    """By the equations, from zeros: outputs, and the last states."""
    x = torch.randn(2, 6, INPUTS)
    with torch.no_grad():
        output, ends = module(x)
        weights = {n.removesuffix("_l0"): w for n, w in module.named_parameters()}
        got, state = OP.reference(x, **weights, mode=mode)
    ends = ends if isinstance(ends, tuple) else (ends,)

    close(got, output, 1e-6)
    for found, wanted in zip(state.unbind(1), ends, strict=True):
        close(found, wanted[0], 1e-6)


def widened(sample: Sample) -> Sample:
    """The sample in float64."""
    return {n: x.double() if isinstance(x, Tensor) else x for n, x in sample.items()}


def test_the_body_computes_the_samples_in_onnx_runtime(
    own_engine_of: Callable[..., Any], close: Callable[..., None]
) -> None:
    """At the opset of the portable graph and at that of the lowered one."""
    for sample in OP.samples(torch.float32):
        for opset in (24, 27):
            found = own_engine_of(OP, sample, opset)(sample)
            for got, wanted in zip(found, OP.reference(**widened(sample)), strict=True):
                assert got.shape == tuple(wanted.shape)
                close(got, wanted, OP.tolerance[torch.float32])


@pytest.mark.parametrize("mode", MODES)
def test_any_cut_of_time_gives_the_same_in_onnx_runtime(
    mode: str,
    own_engine_of: Callable[..., Any],
    cut_into: Callable[..., list[list[int]]],
    close: Callable[..., None],
) -> None:
    """From a state that is not zero; products of another number of tokens round differently."""
    sample = draw(mode, 11, torch.float32)
    run = own_engine_of(OP, sample, 24)
    wanted, last = run(sample)
    for parts in cut_into(11, (1, 2, 5)):
        state, done, outputs = sample["past_state"], 0, []
        for part in parts:
            given = {"input": sample["input"][:, done : done + part], "past_state": state}
            output, present = run({**sample, **given})
            outputs.append(output)
            state, done = torch.from_numpy(present), done + part
        close(np.concatenate(outputs, 1), torch.from_numpy(wanted), 2e-6)
        close(state.numpy(), torch.from_numpy(last), 2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_the_function(mode: str) -> None:
    """Against finite differences, for every tensor."""
    sample = draw(mode, 4)
    numbers = [name for name, x in sample.items() if isinstance(x, Tensor)]
    leaves = [sample[name].clone().requires_grad_() for name in numbers]
    assert torch.autograd.gradcheck(
        lambda *x: rnn(**dict(zip(numbers, x, strict=True)), mode=mode), leaves
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "QRNN"}, "mode is 'QRNN'; it should be LSTM, GRU"),
        ({"mode": "GRU"}, r"weight_hh has the shape \[20, 5\]; it should be \[15, 5\]"),
        ({"input": torch.zeros(2, 5)}, "input has"),
        ({"input": torch.zeros(2, 5, 4, dtype=torch.float64)}, "weight_ih has"),
        ({"bias_hh": None}, "come together"),
        ({"bias_ih": torch.zeros(4)}, "bias_ih has"),
        ({"past_state": torch.zeros(2, 5)}, "past_state has"),
        ({"past_state": torch.zeros(2, 2, 5)}, r"past_state is torch\.float32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Sample, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rnn(**{**draw(), **change})
