"""SeqBoat: an average over all tokens, and attention among those alone that a router activates.

Of every token x: m = SiLU(EMA(norm(x))), with decays q in (0, 1) for N states a channel

    h_t = q * h_{t-1} + p * beta x_t,  EMA(x)_t = sum of gamma_n h_{t,n} / sqrt(N) + omega x_t,

and (u | hx) = Linear(m).  A token is active where u_1 > u_0, with weight a = softmax(u / tau)_1.
Active tokens attend over the last w + 1 active ones, themselves included, by softmax or squared
ReLU; out = SiLU(hx + a Linear(r * attention) + x), with a = 0 for the others.

Here attention is written over all tokens, with a mask that counts active ones: key j is seen by
query i where j is active and at most w active tokens lie between it and i.

Source: Ren et al. 2023, arXiv:2306.11197; parameters as in renll/SeqBoat, `standalone_seqboat.py`.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fft, nn
from torch.nn import functional as F

from intaglio.errors import SourceError

from .layout import CheckpointLayout, Shapes, Values, read_value, refuse
from .model import Model
from .training import Report, refuse_start


@dataclass(frozen=True, kw_only=True)
class Config:
    """`key_size` and `value_size` are those of attention, `averages` N, `window` w.

    `attention` is softmax or relu2, `positions` rotary or simple, a table of `max_positions`
    distances between tokens as they stand in the sequence.  `pooled` decodes the mean so far.
    """

    input_size: int = 16
    output_size: int = 16
    hidden_size: int = 64
    key_size: int = 32
    value_size: int = 128
    averages: int = 4
    window: int = 16
    num_layers: int = 2
    attention: str = "softmax"
    positions: str = "rotary"
    max_positions: int = 1024
    prenorm: bool = True
    pooled: bool = False


TINY = Config(input_size=10, output_size=10)


class SequenceNorm(nn.Module):
    """LayerNorm, under the name that it has there."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., size]."""
        y: Tensor = self.norm(x)
        return y


class MovingAverage(nn.Module):
    """Damped exponential moving averages (Ma et al. 2022, arXiv:2209.10655, equation 2)."""

    def __init__(self, size: int, averages: int) -> None:
        super().__init__()
        sign = (-1.0) ** torch.arange(averages)[:, None]
        self.delta, self.alpha = (nn.Parameter(0.2 * torch.randn(size, averages, 1)) for _ in "ab")
        self.beta = nn.Parameter(sign + 0.02 * torch.randn(size, averages, 1))
        self.gamma = nn.Parameter(torch.randn(size, averages))
        self.omega = nn.Parameter(torch.randn(size))

    def kernel(self, time: int) -> Tensor:
        """The averages' response [size, T]."""
        p = torch.sigmoid(self.delta)
        rate = torch.log1p(-p * torch.sigmoid(self.alpha))
        lag = torch.arange(time, dtype=rate.dtype, device=rate.device)
        gamma = self.gamma / math.sqrt(self.gamma.shape[1])
        found: Tensor = torch.einsum("dnl,dn->dl", p * self.beta * torch.exp(rate * lag), gamma)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Average x [B, T, size] over what has been."""
        u, n = x.mT, 2 * x.shape[1]
        product = fft.rfft(u, n=n) * fft.rfft(self.kernel(x.shape[1]), n=n)
        y: Tensor = fft.irfft(product, n=n)[..., : x.shape[1]]
        return y.mT + x * self.omega


class Router(nn.Module):
    """The temperature of the choice between tokens that attend and those that do not."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.full((1,), math.log(math.sqrt(size))))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Of u [B, T, 2] which tokens are active, and with what weight, [B, T]."""
        return u[..., 1] > u[..., 0], F.softmax(u / self.temp.exp(), dim=-1)[..., 1]


class Distances(nn.Module):
    """A learned term for each distance, both directions."""

    def __init__(self, max_positions: int) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.rel_pos_bias = nn.Parameter(0.02 * torch.randn(2 * max_positions - 1))

    def forward(self, time: int) -> Tensor:
        """The terms [T, T] of queries and keys."""
        at = torch.arange(time, device=self.rel_pos_bias.device)
        return self.rel_pos_bias[self.max_positions - 1 + at - at[:, None]]


class SeqBoatLayer(nn.Module):
    """An average, and attention among active tokens."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.attention not in ("softmax", "relu2"):
            raise SourceError(f"attention is {config.attention!r}, not softmax or relu2.")
        if config.positions not in ("rotary", "simple"):
            raise SourceError(f"positions is {config.positions!r}, not rotary or simple.")
        self.config = config
        size, keys, values = config.hidden_size, config.key_size, config.value_size
        self.norm = SequenceNorm(size)
        self.ssm = MovingAverage(size, config.averages)
        self.gamma = nn.Parameter(1 + 0.02 * torch.randn(2, keys))
        self.beta = nn.Parameter(torch.zeros(2, keys))
        if config.positions == "simple":
            self.rel_pos_bias = Distances(config.max_positions)
        self.q_router = Router(size)
        self.mx_proj = nn.Linear(size, keys + 2 * values)
        self.hx_proj = nn.Linear(size, 2 + size)
        self.h_proj = nn.Linear(values, size)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        config = self.config
        m = F.silu(self.ssm(self.norm(x) if config.prenorm else x))
        chosen = self.hx_proj(m)
        u, hx = chosen[..., :2], chosen[..., 2:]
        active, weight = self.q_router(u)
        keys, values = config.key_size, config.value_size
        mixed = F.silu(self.mx_proj(m))
        z, r, v = mixed[..., :keys], mixed[..., keys:-values], mixed[..., -values:]
        q, k = (z * self.gamma[i] + self.beta[i] for i in (0, 1))
        h = self.h_proj(r * self.attend(q, k, v, active))
        out = F.silu(hx + h * (weight * active)[..., None] + x)
        y: Tensor = out if config.prenorm else self.norm(out)
        return y

    def attend(self, q: Tensor, k: Tensor, v: Tensor, active: Tensor) -> Tensor:
        """Attention [B, T, values] over the last window + 1 active tokens, masked over all."""
        config, time = self.config, q.shape[1]
        if config.positions == "rotary":
            q, k = (rotated(each) for each in (q, k))
        soft = config.attention == "softmax"
        scores = (q * config.key_size**-0.5 if soft else q / config.window) @ k.mT
        if config.positions == "simple":
            scores = scores + self.rel_pos_bias(time)
        count = active.long().cumsum(1)
        between = count[:, :, None] - count[:, None, :]
        at = torch.arange(time, device=q.device)
        seen = active[:, None, :] & (between <= config.window) & (at <= at[:, None])
        if not soft:
            return scores.relu().square().masked_fill(~seen, 0.0) @ v
        # what a token that is not active finds is left out; it sees itself, lest that is no number
        seen = seen | (at == at[:, None])
        return torch.softmax(scores.masked_fill(~seen, -math.inf), -1) @ v


def rotated(x: Tensor) -> Tensor:
    """Values x [B, T, size] with each pair of neighbours turned by its position."""
    half = x.shape[-1] // 2
    rate = 10_000 ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = torch.arange(x.shape[1], device=x.device)[:, None] * rate
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class SeqBoat(nn.Module):
    """Encoder, layers, decoder: [B, T, inputs] -> [B, T, outputs]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pooled = config.pooled
        self.encoder = nn.Linear(config.input_size, config.hidden_size)
        self.seq_layers = nn.ModuleList(SeqBoatLayer(config) for _ in range(config.num_layers))
        self.final_norm = SequenceNorm(config.hidden_size) if config.prenorm else None
        self.decoder = nn.Linear(config.hidden_size, config.output_size)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, signal: Tensor) -> Tensor:
        """Map signal [B, T, inputs]."""
        x = self.encoder(signal)
        for layer in self.seq_layers:
            x = layer(x)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.pooled:
            count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
            x = x.cumsum(1) / count[:, None]
        y: Tensor = self.decoder(x)
        return y


def build(config: Config) -> SeqBoat:
    """The module of `config`, freshly initialised."""
    return SeqBoat(config)


def signals(config: Config, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random symbols, one hot: [B, T, inputs]."""
    drawn = torch.randint(config.input_size, (batch, time), generator=generator)
    return {"signal": F.one_hot(drawn, config.input_size).float()}


@dataclass(frozen=True, kw_only=True)
class SelectiveCopy:
    """Symbols among noise, to be given back in order at the end of a sequence.

    Symbol 0 is noise and the last one asks; `marked` others stand at random places of `time`
    tokens, of which the last `marked` ask.  AdamW with a cosine.
    """

    steps: int = 700
    batch: int = 32
    time: int = 48
    marked: int = 2
    rate: float = 3e-3
    seed: int = 0

    def train(self, module: nn.Module, report: Report | None, start: Path | None) -> str:
        """As `Training` says.

        Raises:
            SourceError: if there is a checkpoint to start from.
        """
        refuse_start(start)
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.AdamW(module.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        assert isinstance(module, SeqBoat)
        classes = module.encoder.in_features
        for step in range(self.steps):
            signal, wanted = self.draw(classes, self.batch, generator)
            told = module(signal)[:, -self.marked :]
            loss = F.cross_entropy(told.flatten(0, 1), wanted.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if report is not None and step % 50 == 0:
                report(step, loss.item())
        signal, wanted = self.draw(classes, 64, torch.Generator().manual_seed(self.seed + 1))
        with torch.no_grad():
            right = (module(signal)[:, -self.marked :].argmax(-1) == wanted).float().mean().item()
        return f"{right:.3f} of the symbols are given back"

    def draw(self, classes: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences [B, T, classes], one hot, and the symbols [B, marked] asked for."""
        room = self.time - self.marked
        order = torch.rand(batch, room, generator=generator).argsort(1)[:, : self.marked]
        wanted = torch.randint(1, classes - 1, (batch, self.marked), generator=generator)
        symbols = torch.zeros(batch, self.time, dtype=torch.long)
        symbols.scatter_(1, order.sort(1).values, wanted)
        symbols[:, room:] = classes - 1
        return F.one_hot(symbols, classes).float(), wanted


IMMATERIAL = (  # arguments that the shapes tell, and those of training
    *("d_ema", "d_input", "d_model", "d_output", "d_qk", "dropout", "init_temp_scale"),
    *("max_positions", "n_layers"),
)


def _fits(values: Values, keys: Collection[str]) -> bool:
    del values
    return "seq_layers.0.ssm.delta" in keys


def _configure(values: Values, shapes: Shapes) -> dict[str, Any]:
    refuse(
        values,
        {
            "bidirectional": (False,),
            "norm_type": ("layernorm",),
            "local_pos": (False,),
            "rel_pos_bias": ("simple", "rotary"),
            "attention_activation": ("softmax", "relu2"),
        },
    )
    lacking = [n for n in ("bidirectional", "norm_type", "mem_size") if n not in values]
    if lacking:
        raise SourceError(
            f"nothing tells {', '.join(lacking)}: pass --config with a file of the arguments of "
            "SeqBoatModel"
        )
    first, prenorm = "seq_layers.0.", "final_norm.norm.weight" in shapes
    refuse(values, {"prenorm": (prenorm,)})  # which decides whether there is such a norm
    size, averages = shapes[first + "ssm.gamma"]
    keys = shapes[first + "gamma"][1]
    table = first + "rel_pos_bias.rel_pos_bias"
    found = {
        "input_size": shapes["encoder.weight"][1],
        "output_size": shapes["decoder.weight"][0],
        "hidden_size": size,
        "key_size": keys,
        "value_size": shapes[first + "h_proj.weight"][1],
        "averages": averages,
        "window": read_value(values, "mem_size", int),
        "num_layers": len({n.split(".")[1] for n in shapes if n.startswith("seq_layers.")}),
        "attention": read_value(values, "attention_activation", str, default="relu2"),
        "positions": read_value(values, "rel_pos_bias", str, default="simple"),
        "prenorm": prenorm,
        "pooled": read_value(values, "pooled", bool, default=True),
    }
    if table in shapes:
        found["max_positions"] = (shapes[table][0] + 1) // 2
    return found


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    del config
    return dict(tensors)


def _axes(config: Config) -> dict[str, str]:
    """As many tokens as there are distances, where these are a table."""
    time = f"time=..{config.max_positions}" if config.positions == "simple" else "time"
    return {"signal": f"batchx{time}x{config.input_size}"}


SEQBOAT = Model(
    name="seqboat",
    summary="SeqBoat: moving averages, and attention among the tokens that a router activates.",
    config=Config,
    build=build,
    inputs=signals,
    presets={"tiny": TINY},
    recipe=SelectiveCopy(),
    source="arXiv:2306.11197",
    axes=_axes,
    layouts=(
        CheckpointLayout(
            name="seqboat",
            source="renll/SeqBoat @ 5a34aed, standalone_seqboat.py",
            fits=_fits,
            configure=_configure,
            weights=_weights,
            immaterial=IMMATERIAL,
        ),
    ),
)
