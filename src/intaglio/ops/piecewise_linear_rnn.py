"""A recurrent network that is linear but for a few rectified units: `intaglio::PiecewiseLinearRNN`.

For a state z of M units, of which the last `num_relu` are rectified by phi:

    z <- force      in its first n entries, where `force_mask` says so (teacher forcing)
    z <- A * z + W phi(z) + h + drive

AL-RNNs, whose first n units are what is observed, run freely with a drive of zeros, and are warmed
up by observations now and then: what is forced is the observation at the time of the state before
the step, so that the output of a token predicts the observation of the next.  Without rectified
units this is a dense linear recurrence, as LegS and LegT are once discretized (A = 0, W = A-bar,
drive = B-bar u); every row shares W, so channels of different step sizes are calls of their own.

Nothing here runs tokens side by side: which units are rectified is known only step after step.
"""

from typing import Any

import torch
from torch import Tensor

from intaglio import operators
from intaglio.errors import InputError

from ._piecewise_linear_rnn_onnx import SCHEMA, body, translation
from .op import Op, Sample


def piecewise_linear_rnn(
    drive: Tensor,
    A: Tensor,
    W: Tensor,
    h: Tensor,
    force: Tensor | None = None,
    force_mask: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    num_relu: int,
) -> tuple[Tensor, Tensor]:
    """Run a piecewise linear network over T tokens, from a state to a state.

    Args:
        drive: what each token adds to the state, [B, T, M]; zeros where the network runs freely.
        A: what each unit keeps of itself, [M], in the dtype of the state: fp32 (fp64 for fp64
            inputs), as are W and h.
        W: what each unit (row) takes of every unit (column), [M, M].
        h: what is added at every token, [M].
        force: replaces the first n <= M units before the step, [B, T, n]; None for never.
        force_mask: the tokens at which it does, bool [B, T]; None for all.
        past_state: [B, M], fp32 (fp64); None means zeros.
        num_relu: how many of the last units are rectified; 0 for none.

    Returns:
        The states after every token [B, T, M] in the dtype of `drive`, and the last of them [B, M]
        in fp32 (fp64).  T = 0 returns the state unchanged.

    Raises:
        InputError: if an argument does not fit the others; it is named.
    """
    given = (drive, A, W, h, force, force_mask, past_state)
    recorded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    function = forward if recorded and not torch.compiler.is_exporting() else TORCH_OP
    outputs: tuple[Tensor, Tensor] = function(*given, num_relu=num_relu)
    return outputs


def forward(
    drive: Tensor,
    A: Tensor,
    W: Tensor,
    h: Tensor,
    force: Tensor | None = None,
    force_mask: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    num_relu: int,
) -> tuple[Tensor, Tensor]:
    """Compute `piecewise_linear_rnn`, with what needs no state taken for all tokens at once."""
    _check(drive, A, W, h, force, force_mask, past_state, num_relu)
    state = _start(drive, A, past_state)
    if drive.shape[1] == 0:
        return drive.clone(), state.clone()
    added = (drive.to(A.dtype) + h).unbind(1)
    taught = None if force is None else force.to(A.dtype).unbind(1)
    chosen = None if force_mask is None else force_mask[..., None].unbind(1)
    rectified = torch.arange(len(A), device=A.device) >= len(A) - num_relu
    mixing = W.t().contiguous()
    states = []
    for t, add in enumerate(added):
        if taught is not None:
            forced = torch.cat((taught[t], state[:, taught[t].shape[1] :]), 1)
            state = forced if chosen is None else torch.where(chosen[t], forced, state)
        bent = torch.where(rectified, state.relu(), state)
        state = torch.addmm(torch.addcmul(add, A, state), bent, mixing)
        states.append(state)
    return torch.stack(states, 1).to(drive.dtype), state.clone()


def reference(
    drive: Tensor,
    A: Tensor,
    W: Tensor,
    h: Tensor,
    force: Tensor | None = None,
    force_mask: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    num_relu: int,
) -> tuple[Tensor, Tensor]:
    """Compute `piecewise_linear_rnn` as its equations stand."""
    _check(drive, A, W, h, force, force_mask, past_state, num_relu)
    state = _start(drive, A, past_state).clone()
    linear = len(A) - num_relu
    outputs = [drive.new_empty(drive.shape[0], 0, len(A))]
    for t in range(drive.shape[1]):
        if force is not None:
            rows = slice(None) if force_mask is None else force_mask[:, t]
            state = state.clone()
            state[rows, : force.shape[2]] = force[rows, t].to(A.dtype)
        phi = torch.cat((state[:, :linear], state[:, linear:].relu()), 1)
        state = A * state + (W * phi[:, None]).sum(-1) + h + drive[:, t].to(A.dtype)
        outputs.append(state[:, None].to(drive.dtype))
    return torch.cat(outputs, 1), state


def _start(drive: Tensor, A: Tensor, past_state: Tensor | None) -> Tensor:
    return A.new_zeros(drive.shape[0], len(A)) if past_state is None else past_state


def _check(
    drive: Tensor,
    A: Tensor,
    W: Tensor,
    h: Tensor,
    force: Tensor | None,
    force_mask: Tensor | None,
    past_state: Tensor | None,
    num_relu: int,
) -> None:
    if drive.dim() != 3:
        raise InputError(f"drive has the shape {list(drive.shape)}; it should be [B, T, M].")
    batch, time, units = drive.shape
    if not 0 <= num_relu <= units:
        raise InputError(f"num_relu is {num_relu}; of {units} units it should be 0 to {units}.")
    if force is not None and (force.dim() != 3 or force.shape[2] > units):
        raise InputError(
            f"force has the shape {list(force.shape)}; it should be [{batch}, {time}, n], n at "
            f"most {units}."
        )
    if force is None and force_mask is not None:
        raise InputError("force_mask is given, but no force that it could choose.")
    kind = torch.float64 if drive.dtype == torch.float64 else torch.float32
    forced = 0 if force is None else force.shape[2]
    for name, given, shape, dtype in (
        ("A", A, [units], kind),
        ("W", W, [units, units], kind),
        ("h", h, [units], kind),
        ("force", force, [batch, time, forced], None),
        ("force_mask", force_mask, [batch, time], torch.bool),
        ("past_state", past_state, [batch, units], kind),
    ):
        if given is not None and list(given.shape) != shape:
            raise InputError(f"{name} has the shape {list(given.shape)}; it should be {shape}.")
        if given is not None and dtype is not None and given.dtype != dtype:
            raise InputError(
                f"{name} is {given.dtype}; for a drive of {drive.dtype} it is {dtype}."
            )


@torch.library.custom_op("intaglio::piecewise_linear_rnn", mutates_args=())
def _op(
    drive: Tensor,
    A: Tensor,
    W: Tensor,
    h: Tensor,
    force: Tensor | None = None,
    force_mask: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    num_relu: int,
) -> tuple[Tensor, Tensor]:
    return forward(drive, A, W, h, force, force_mask, past_state, num_relu=num_relu)


@_op.register_fake
def _shapes(
    drive: Tensor,
    A: Tensor,
    W: Tensor,
    h: Tensor,
    force: Tensor | None = None,
    force_mask: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    num_relu: int,
) -> tuple[Tensor, Tensor]:
    _check(drive, A, W, h, force, force_mask, past_state, num_relu)
    return torch.empty_like(drive), A.new_empty(drive.shape[0], drive.shape[2])


TORCH_OP: Any = torch.ops.intaglio.piecewise_linear_rnn.default


def samples(dtype: torch.dtype) -> list[Sample]:
    """Free and driven, forced at some tokens, at all and at none, from no to all units rectified.

    W keeps states bounded: rounding is not amplified from token to token.
    """
    generator = torch.Generator().manual_seed(0)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    M = 5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def sample(
        time: int, num_relu: int, *, forced: int = 0, mask: bool = False, state: bool = True
    ) -> Sample:
        made: Sample = {
            "drive": normal(2, time, M).to(dtype),
            "A": (0.5 * normal(M).tanh()).to(kind),
            "W": (0.2 * normal(M, M)).to(kind),
            "h": normal(M).to(kind),
            "num_relu": num_relu,
        }
        if forced:
            made["force"] = normal(2, time, forced).to(dtype)
        if mask:
            made["force_mask"] = normal(2, time) > 0
        if state:
            made["past_state"] = normal(2, M).to(kind)
        return made

    free = sample(6, 2)
    free["drive"] = torch.zeros_like(free["drive"])
    return [
        free,
        sample(1, 2, state=False),
        sample(9, 2, forced=3, mask=True),
        sample(4, M, forced=M),
        sample(5, 0, state=False),
    ]


PIECEWISE_LINEAR_RNN = Op(
    signature=operators.PIECEWISE_LINEAR_RNN,
    since=1,
    own=SCHEMA,
    body=body,
    attributes=lambda sample: {"num_relu": sample["num_relu"]},
    reference=reference,
    forward=forward,
    torch_op=TORCH_OP,
    translation=translation,
    samples=samples,
    tolerance={
        torch.float64: 1e-13,
        torch.float32: 1e-6,
        torch.float16: 2e-3,
        torch.bfloat16: 1e-2,
    },
    source="Brenner et al. 2024, arXiv:2410.14240; Gu et al. 2022, arXiv:2206.12037",
)
