"""What S4D and S4 share: convolution by Fourier transforms, and the stack around their layers.

Parameters are called as in state-spaces/s4, `example.py`, whose checkpoints load as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fft, nn

from intaglio.models.layout import Shapes, Values, read_value
from intaglio.models.training import refuse_start

IMMATERIAL = (  # of the modules there: sizes that the weights have as well, and training
    *("d_input", "d_model", "d_output", "d_state", "dropout", "dt_max", "dt_min", "lr"),
    *("n_layers", "n_ssm", "rank", "transposed"),
)
DELAYS = (16, 32, 64, 128)  # of the tiny versions, whose task is to tell the past


class Sizes(Protocol):
    """What the config of the stack says beside its layers."""

    @property
    def input_size(self) -> int: ...
    @property
    def output_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def prenorm(self) -> bool: ...
    @property
    def pooled(self) -> bool: ...


def convolve(u: Tensor, kernel: Tensor) -> Tensor:
    """The causal convolution of u [B, H, T] with a kernel [H, T], in T log T."""
    time = u.shape[-1]
    product = fft.rfft(u, n=2 * time) * fft.rfft(kernel, n=2 * time)
    y: Tensor = fft.irfft(product, n=2 * time)[..., :time]
    return y


def parameter(value: Tensor) -> nn.Parameter:
    """A parameter of fp32 that starts as `value`, where parameters are made at the moment."""
    with torch.no_grad():
        return nn.Parameter(torch.empty(value.shape).copy_(value))


class Stack(nn.Module):
    """Encoder, residual layers with a norm each, decoder: [B, T, inputs] -> [B, T, outputs].

    `pooled` decodes the mean of all tokens so far, which after the last token is the mean that a
    classifier of whole sequences takes.
    """

    def __init__(self, layers: Sequence[nn.Module], sizes: Sizes) -> None:
        super().__init__()
        size = sizes.hidden_size
        self.prenorm, self.pooled = sizes.prenorm, sizes.pooled
        self.encoder = nn.Linear(sizes.input_size, size)
        self.s4_layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in layers)
        self.decoder = nn.Linear(size, sizes.output_size)

    def forward(self, signal: Tensor) -> Tensor:
        """Map signal [B, T, inputs]."""
        x = self.encoder(signal)
        for layer, norm in zip(self.s4_layers, self.norms, strict=True):
            x = x + layer(norm(x)) if self.prenorm else norm(x + layer(x))
        if self.pooled:
            count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
            x = x.cumsum(1) / count[:, None]
        y: Tensor = self.decoder(x)
        return y


def signals(config: Sizes, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Noise [B, T, inputs], as smooth as a mean of 8 values."""
    noise = torch.randn(batch, time + 7, config.input_size, generator=generator)
    return {"signal": noise.unfold(1, 8, 1).mean(-1) * 8**0.5}


def stack_values(values: Values, shapes: Shapes) -> dict[str, Any]:
    """The config of a stack from the shapes of its weights; `prenorm` is false unless told."""
    hidden, inputs = shapes["encoder.weight"]
    layers = {name.split(".")[1] for name in shapes if name.startswith("s4_layers.")}
    return {
        "input_size": inputs,
        "output_size": shapes["decoder.weight"][0],
        "hidden_size": hidden,
        "num_layers": len(layers),
        "prenorm": read_value(values, "prenorm", bool, default=False),
        "pooled": read_value(values, "pooled", bool, default=True),
    }


@dataclass(frozen=True, kw_only=True)
class Delays:
    """Trains a stack to give back its input of `DELAYS` tokens ago, as one output each.

    Signals are smooth noise; AdamW, whose rate for the parameters of kernels is a quarter, and
    falls to 0 along a cosine.
    """

    steps: int = 600
    batch: int = 16
    time: int = 256
    rate: float = 1e-2
    seed: int = 0

    def train(self, module: nn.Module, report: object, start: object) -> str:
        """As `Training` says.

        Raises:
            SourceError: if there is a checkpoint to start from.
        """
        refuse_start(start)
        assert isinstance(module, Stack)
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(self.seed)
        slow = [p for n, p in module.named_parameters() if ".kernel." in n]
        fast = [p for n, p in module.named_parameters() if ".kernel." not in n]
        groups = [
            {"params": slow, "lr": self.rate / 4, "weight_decay": 0.0},
            {"params": fast, "lr": self.rate},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        module.train()
        for step in range(self.steps):
            loss = self.loss(module, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if callable(report) and step % 50 == 0:
                report(step, loss.item())
        module.eval()
        with torch.no_grad():
            held_out = self.loss(module, torch.Generator().manual_seed(self.seed + 1)).item()
        return f"{held_out:.4f} of the variance of inputs {DELAYS} tokens ago is left unexplained"

    def loss(self, module: nn.Module, generator: torch.Generator) -> Tensor:
        """Mean squared error of all delays, where there is an input that long ago."""
        signal = _noise(self.batch, self.time, generator)
        told = module(signal)
        first = max(DELAYS)
        parts = [
            (told[:, first:, i] - signal[:, first - delay : self.time - delay, 0]).square().mean()
            for i, delay in enumerate(DELAYS)
        ]
        return torch.stack(parts).mean()


def _noise(batch: int, time: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(batch, time + 7, 1, generator=generator)
    return noise.unfold(1, 8, 1).mean(-1) * 8**0.5
