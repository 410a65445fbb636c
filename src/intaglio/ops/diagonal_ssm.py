"""A state-space model with a diagonal state, carried from call to call: `intaglio::DiagonalSSM`.

For each channel d, with N states h[d, n] that do not mix:

    h[d, n] <- e^{dt[d] A[d, n]} h[d, n] + dt[d] B[n] u[d]      discretization mamba
    h[d, n] <- e^{dt[d] A[d, n]} h[d, n] +       B[n] u[d]      discretization none
    y[d]     = sum_n C[n] h[d, n]

The selective scan of Mamba is the first, with dt, B and C of each token.  Systems that are the same
for every token (`lti`), moving averages and gated recurrences (N = 1, A = -1, dt = -log of the
gate) are the second; what other discretizations give for them folds into A and B beforehand.  As
linear attention each channel would be a head, and its decay would be stored for every token and
state; here neither is ever written out.
"""

from typing import Any

import torch
from torch import Tensor

from intaglio import operators
from intaglio.errors import InputError

from ._diagonal_ssm_onnx import SCHEMA, body, translation
from .op import Op, Sample

DISCRETIZATIONS = ("none", "mamba")


def diagonal_ssm(
    input: Tensor,  # noqa: A002
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    discretization: str = "mamba",
    lti: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run a diagonal state-space model over T tokens, from a state to a state.

    Args:
        input: u, [B, T, D].
        A: [D, N], below 0, in the dtype of the state: fp32 (fp64 for fp64 inputs).
        B: [B, T, N], of each token; [D, N] with `lti`.
        C: like `B`.
        delta: step size dt, at least 0, [B, T, D]; None means 1.
        past_state: [B, D, N], fp32 (fp64); None means zeros.
        discretization: whether dt scales the input (mamba) or the decay alone (none).
        lti: B and C are the same for every token.

    Returns:
        The output [B, T, D] in the dtype of `input`, and the state after the last token [B, D, N]
        in fp32 (fp64).  T = 0 returns the state unchanged.

    Raises:
        InputError: if an argument does not fit the others; it is named.
    """
    given = (input, A, B, C, delta, past_state)
    recorded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    function = forward if recorded and not torch.compiler.is_exporting() else TORCH_OP
    outputs: tuple[Tensor, Tensor] = function(*given, discretization=discretization, lti=lti)
    return outputs


def forward(
    input: Tensor,  # noqa: A002
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    discretization: str = "mamba",
    lti: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute `diagonal_ssm` for all tokens at once, in log2 T passes over them."""
    _check(input, A, B, C, delta, past_state, discretization, lti=lti)
    state = _start(input, A, past_state)
    if input.shape[1] == 0:
        return input.clone(), state.clone()
    kept, added = _terms(input, A, B, delta, discretization, lti=lti)
    added = torch.cat((added[:, :1] + kept[:, :1] * state[:, None], added[:, 1:]), 1)
    reach = 1
    while reach < added.shape[1]:  # each token takes over what those `reach` before it gathered
        later = added[:, reach:] + kept[:, reach:] * added[:, :-reach]
        added = torch.cat((added[:, :reach], later), 1)
        kept = torch.cat((kept[:, :reach], kept[:, reach:] * kept[:, :-reach]), 1)
        reach *= 2
    read = C.to(A.dtype) if lti else C.to(A.dtype)[:, :, None]
    return (added * read).sum(-1).to(input.dtype), added[:, -1].clone()


def reference(
    input: Tensor,  # noqa: A002
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    discretization: str = "mamba",
    lti: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute `diagonal_ssm` token by token."""
    _check(input, A, B, C, delta, past_state, discretization, lti=lti)
    state = _start(input, A, past_state)
    outputs = [input.new_empty(input.shape[0], 0, input.shape[2])]
    for t in range(input.shape[1]):
        u = input[:, t, :, None].to(A.dtype)
        write, read = (x.to(A.dtype) if lti else x[:, t, None].to(A.dtype) for x in (B, C))
        dt = torch.ones_like(u) if delta is None else delta[:, t, :, None].to(A.dtype)
        u = dt * u if discretization == "mamba" else u
        state = (dt * A).exp() * state + write * u
        outputs.append((read * state).sum(-1)[:, None].to(input.dtype))
    return torch.cat(outputs, 1), state.clone()


def _start(x: Tensor, A: Tensor, past_state: Tensor | None) -> Tensor:
    return A.new_zeros(x.shape[0], *A.shape) if past_state is None else past_state


def _terms(
    x: Tensor, A: Tensor, B: Tensor, delta: Tensor | None, discretization: str, *, lti: bool
) -> tuple[Tensor, Tensor]:
    """What each token keeps of the state and adds to it, [B, T, D, N] both."""
    u, write = x[..., None].to(A.dtype), B.to(A.dtype)
    dt = torch.ones_like(u) if delta is None else delta[..., None].to(A.dtype)
    added = (dt * u if discretization == "mamba" else u) * (write if lti else write[:, :, None])
    return (dt * A).exp(), added


def _check(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta: Tensor | None,
    past_state: Tensor | None,
    discretization: str,
    *,
    lti: bool,
) -> None:
    if discretization not in DISCRETIZATIONS:
        raise InputError(
            f"discretization is {discretization!r}; it should be one of "
            f"{', '.join(DISCRETIZATIONS)}."
        )
    if x.dim() != 3:
        raise InputError(f"input has the shape {list(x.shape)}; it should be [B, T, D].")
    if A.dim() != 2 or A.shape[0] != x.shape[2]:
        raise InputError(f"A has the shape {list(A.shape)}; it should be [{x.shape[2]}, N].")
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    mixing = list(A.shape) if lti else [*x.shape[:2], A.shape[1]]
    for name, given, shape, dtype in (
        ("A", A, list(A.shape), kind),
        ("B", B, mixing, None),
        ("C", C, mixing, None),
        ("delta", delta, list(x.shape), None),
        ("past_state", past_state, [x.shape[0], *A.shape], kind),
    ):
        if given is not None and list(given.shape) != shape:
            raise InputError(f"{name} has the shape {list(given.shape)}; it should be {shape}.")
        if given is not None and dtype is not None and given.dtype != dtype:
            raise InputError(f"{name} is {given.dtype}; for an input of {x.dtype} it is {dtype}.")


@torch.library.custom_op("intaglio::diagonal_ssm", mutates_args=())
def _op(
    input: Tensor,  # noqa: A002
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    discretization: str = "mamba",
    lti: bool = False,
) -> tuple[Tensor, Tensor]:
    return forward(input, A, B, C, delta, past_state, discretization=discretization, lti=lti)


@_op.register_fake
def _shapes(
    input: Tensor,  # noqa: A002
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    discretization: str = "mamba",
    lti: bool = False,
) -> tuple[Tensor, Tensor]:
    _check(input, A, B, C, delta, past_state, discretization, lti=lti)
    return torch.empty_like(input), A.new_empty(input.shape[0], *A.shape)


TORCH_OP: Any = torch.ops.intaglio.diagonal_ssm.default


def samples(dtype: torch.dtype) -> list[Sample]:
    """Both discretizations, with and without step sizes, states, and B and C of each token."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    D, N = 3, 4

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def sample(
        discretization: str, time: int, *, lti: bool = False, delta: bool = True, state: bool = True
    ) -> Sample:
        mixing = (D, N) if lti else (2, time, N)
        made: Sample = {
            "input": normal(2, time, D).to(dtype),
            "A": -normal(D, N).exp().to(kind),
            "B": normal(*mixing).to(dtype),
            "C": normal(*mixing).to(dtype),
            "discretization": discretization,
            "lti": lti,
        }
        if delta:
            made["delta"] = normal(2, time, D).exp().to(dtype)
        if state:
            made["past_state"] = normal(2, D, N).to(kind)
        return made

    return [
        sample("mamba", 9),
        sample("mamba", 1, state=False),
        sample("mamba", 5, lti=True, delta=False),
        sample("none", 6, lti=True, state=False),
        sample("none", 4, delta=False),
    ]


DIAGONAL_SSM = Op(
    signature=operators.DIAGONAL_SSM,
    since=1,
    own=SCHEMA,
    body=body,
    attributes=lambda sample: {
        "discretization": sample.get("discretization", "mamba"),
        "lti": int(sample.get("lti", False)),
    },
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
    source="Gu and Dao 2023, arXiv:2312.00752, algorithm 2; Gupta et al. 2022, arXiv:2203.14343",
)
