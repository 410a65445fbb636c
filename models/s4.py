"""S4: a state-space model for each channel whose state matrix is diagonal plus low rank.

x' = (diag(A) - P P^*) x + B u, y = 2 Re(C x) + D u, made discrete by the bilinear rule, N/2 complex
states a channel.  Its kernel over L positions is read off the generating function

    K(z) = C~ (1 - M z)^-1 N,   C~ = C (1 - M^L),   M, N the discrete matrices,

at the L-th roots of unity, where Woodbury's identity leaves sums of 1 / (g(z) - A) alone.  What is
trained and stored is C~ of `context` positions, not C.

Source: Gu et al. 2021, arXiv:2111.00396, section 3 and appendix C; initialisations of
arXiv:2206.12037; parameters as in state-spaces/s4, `models/s4/s4.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fft, nn
from torch.nn import functional as F

from intaglio.errors import SourceError

from .layout import CheckpointLayout, Shapes, Values, read_value, refuse
from .model import Model
from .parts.hippo import RANKS, diagonal_plus_low_rank, timescales
from .parts.s4_layers import (
    DELAYS,
    IMMATERIAL,
    Delays,
    Stack,
    convolve,
    parameter,
    signals,
    stack_values,
)

SMALLEST = 1e-4  # of a pole's distance from the imaginary axis, whose logarithm is stored


@dataclass(frozen=True, kw_only=True)
class Config:
    """`basis` is legs, legt or fout; `context` how many positions a kernel has.

    `state_size` N counts real numbers a channel, `rank` is that of the correction P, at least the
    basis's own; steps are drawn between `dt_min` and `dt_max`, and stored as `dt_transform` (exp or
    softplus) takes them.  `systems` is how many different A, B and P there are, None for one a
    channel.  `pooled` decodes the mean of all tokens so far.
    """

    input_size: int = 1
    output_size: int = 10
    hidden_size: int = 256
    num_layers: int = 4
    state_size: int = 64
    context: int = 1024
    basis: str = "legs"
    rank: int = 1
    systems: int | None = None
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_transform: str = "exp"
    prenorm: bool = False
    pooled: bool = True


TINY = Config(
    output_size=len(DELAYS),
    hidden_size=32,
    num_layers=2,
    state_size=32,
    context=512,
    dt_min=0.005,
    pooled=False,
)


class Kernel(nn.Module):
    """Diagonal and low rank, step sizes and C~; gives the kernel at all positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, systems = config.hidden_size, config.systems or config.hidden_size
        if channels % systems:
            raise SourceError(
                f"There are {systems} systems for {channels} channels; each takes as many."
            )
        if config.dt_transform not in ("exp", "softplus"):
            raise SourceError(f"dt_transform is {config.dt_transform!r}, not exp or softplus.")
        poles, P, B = diagonal_plus_low_rank(config.basis, config.state_size)
        if config.rank < len(P):
            raise SourceError(f"{config.basis} takes a rank of {RANKS[config.basis]} at least.")
        self.context, self.dt_transform = config.context, config.dt_transform
        P = torch.cat((P, P.new_zeros(config.rank - len(P), P.shape[1])))
        generator = torch.Generator(device="cpu").manual_seed(torch.initial_seed() % 2**63)
        dt = timescales(channels, config.dt_min, config.dt_max, generator)
        half = len(poles)
        self.C = nn.Parameter(torch.randn(1, channels, half, 2) / math.sqrt(2))
        self.B = parameter(_pairs(B.expand(1, systems, half)))
        self.P = parameter(_pairs(P[:, None].expand(-1, systems, half)))
        real = (-poles.real).clamp(min=SMALLEST).log()
        self.A_real = parameter(real.expand(systems, half))
        self.A_imag = parameter((-poles.imag).expand(systems, half))
        stored = dt.log() if config.dt_transform == "exp" else dt.expm1().log()
        self.inv_dt = parameter(stored[:, None])
        self.register_buffer("l_kernel", torch.tensor(config.context))
        with torch.no_grad():
            self.C.copy_(_pairs(truncated(self, torch.view_as_complex(self.C), self.context)))

    def systems(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each channel dt [H, 1], A [H, N/2], B [H, N/2] and P [rank, H, N/2]."""
        dt = self.inv_dt.exp() if self.dt_transform == "exp" else F.softplus(self.inv_dt)
        times = len(dt) // len(self.A_real)
        A = torch.complex(-self.A_real.exp(), -self.A_imag).repeat(times, 1)
        B = torch.view_as_complex(self.B)[0].repeat(times, 1)
        P = torch.view_as_complex(self.P).repeat(1, times, 1)
        return dt, A, B, P

    def forward(self) -> Tensor:
        """The kernel [channels, context].

        With g = 2 (1 - z) / (1 + z), every sum of v / (g - dt A) is taken as one of
        v / (2 (1 - z) - dt A (1 + z)), 1 + z times as small, which is finite at z = -1 too.
        """
        dt, A, B, P = self.systems()
        C = torch.view_as_complex(self.C)
        angle = torch.arange(self.context // 2 + 1, dtype=dt.dtype, device=dt.device)
        z = torch.polar(torch.ones_like(angle), -2 * math.pi / self.context * angle)
        left, right = torch.cat((C, P.conj())), torch.cat((B[None], P))
        v = dt * left[:, None] * right[None]  # [1 + rank, 1 + rank, H, N/2]
        grown = dt * A
        below = 2 * (1 - z) - grown[..., None] * (1 + z)
        twins = 2 * (1 - z) - grown.conj()[..., None] * (1 + z)
        sums = torch.einsum("ijhn,hnl->ijhl", v, 1 / below)
        sums = (sums + torch.einsum("ijhn,hnl->ijhl", v.conj(), 1 / twins)).permute(2, 3, 0, 1)
        rank = len(P)
        inner = torch.eye(rank, dtype=sums.dtype) + (1 + z)[:, None, None] * sums[..., 1:, 1:]
        solved = torch.linalg.solve(inner, sums[..., 1:, :1])
        low = (sums[..., :1, 1:] @ solved)[..., 0, 0] * (1 + z)
        kernel: Tensor = fft.irfft(2 * (sums[..., 0, 0] - low), n=self.context)
        return kernel


def discrete(kernel: Kernel) -> tuple[Tensor, Tensor]:
    """The discrete matrices M [H, N, N] and N [H, N] in complex128, conjugates written out."""
    dt, A, B, P = (x.detach().to(torch.complex128) for x in kernel.systems())
    A, B, P = (torch.cat((x, x.conj()), -1) for x in (A, B, P))
    matrix = torch.diag_embed(A) - torch.einsum("rhn,rhm->hnm", P, P.conj())
    half = matrix * dt[..., None] / 2
    still = torch.eye(A.shape[-1], dtype=A.dtype)
    return (
        torch.linalg.solve(still - half, still + half),
        torch.linalg.solve(still - half, B * dt),
    )


def truncated(kernel: Kernel, C: Tensor, length: int) -> Tensor:
    """C~ = C (1 - M^length) of C [1, H, N/2], one of each conjugate pair."""
    power = torch.linalg.matrix_power(discrete(kernel)[0], length)
    both = torch.cat((C, C.conj()), -1).to(power)
    kept: Tensor = both - torch.einsum("chn,hnm->chm", both, power)
    return kept[..., : C.shape[-1]].to(C)


def untruncated(kernel: Kernel, C: Tensor, length: int) -> Tensor:
    """C of C~ [1, H, N/2], which was made for `length` positions."""
    matrix = discrete(kernel)[0]
    power = torch.eye(matrix.shape[-1], dtype=matrix.dtype) - torch.linalg.matrix_power(
        matrix, length
    )
    both = torch.cat((C, C.conj()), -1).to(power)
    found: Tensor = torch.linalg.solve(power.mT, both[0][..., None])[None, ..., 0]
    return found[..., : C.shape[-1]].to(C)


def _pairs(value: Tensor) -> Tensor:
    return torch.view_as_real(value.to(torch.complex64).resolve_conj().contiguous())


class Convolution(nn.Module):
    """The convolution with S4's kernel, and a direct path."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.D = nn.Parameter(torch.randn(1, config.hidden_size))
        self.kernel = Kernel(config)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T, at most as many tokens as the context."""
        u = x.mT
        kernel: Tensor = self.kernel()
        return convolve(u, kernel[:, : u.shape[-1]]).mT + x * self.D[0]


class Layer(nn.Module):
    """The convolution, GELU, and a gated linear unit across channels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.layer = Convolution(config)
        self.output_linear = nn.Sequential(nn.Linear(size, 2 * size), nn.GLU(dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T, then across channels."""
        y: Tensor = self.output_linear(F.gelu(self.layer(x)))
        return y


def build(config: Config) -> Stack:
    """The module of `config`, freshly initialised."""
    return Stack([Layer(config) for _ in range(config.num_layers)], config)


def _configure(values: Values, shapes: Shapes) -> dict[str, Any]:
    refuse(values, {"bidirectional": (False,), "channels": (1,), "activation": ("gelu",)})
    known = {name: read_value(values, name, str) for name in ("dt_transform",) if name in values}
    first = "s4_layers.0.layer.kernel."
    rank, systems, half, _ = shapes[f"{first}P"]
    channels = shapes[f"{first}C"][1]
    if shapes[f"{first}C"][0] != 1:
        raise SourceError(
            f"its kernel has {shapes[f'{first}C'][0]} channels, of which 1 is supported"
        )
    if "l_max" not in values:
        raise SourceError(
            'nothing tells how long its kernels are: pass --config with a file of {"l_max": 1024}'
        )
    return {
        **stack_values(values, shapes),
        **known,
        "state_size": 2 * half,
        "rank": rank,
        "basis": "legs" if rank == 1 else "legt",  # where training starts, which is over
        "systems": None if systems == channels else systems,
        "context": read_value(values, "l_max", int),
    }


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """As they are, with C~ of as many positions as the config says.

    C is stored as it is where `l_kernel` is 0, before the first call of a module.
    """
    found = dict(tensors)
    for layer in range(config.num_layers):
        path = f"s4_layers.{layer}.layer.kernel."
        if path + "l_kernel" not in tensors:
            raise KeyError(path + "l_kernel")
        if tensors[path + "l_kernel"].is_meta:
            continue
        made_for = int(tensors[path + "l_kernel"])
        if made_for == config.context:
            continue
        with torch.no_grad():
            kernel = Kernel(config)
            own = {name: tensors[path + name] for name in kernel.state_dict()}
            kernel.load_state_dict(own)
            C = torch.view_as_complex(kernel.C.double())
            C = untruncated(kernel, C, made_for) if made_for else C
            found[path + "C"] = _pairs(truncated(kernel, C, config.context))
        found[path + "l_kernel"] = torch.tensor(config.context)
    return found


S4 = Model(
    name="s4",
    summary="S4: state-space models of LegS, LegT and FouT, diagonal plus low rank.",
    config=Config,
    build=build,
    inputs=signals,
    axes=lambda config: {"signal": f"batchxtime=..{config.context}x{config.input_size}"},
    presets={"tiny": TINY},
    recipe=Delays(),
    source="arXiv:2111.00396",
    layouts=(
        CheckpointLayout(
            name="state-spaces",
            source="state-spaces/s4 @ e757cef, models/s4/s4.py, example.py",
            fits=lambda values, keys: "s4_layers.0.layer.kernel.inv_dt" in keys,  # noqa: ARG005
            configure=_configure,
            weights=_weights,
            immaterial=IMMATERIAL,
        ),
    ),
)
