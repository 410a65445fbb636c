"""Time beside other axes, streams that change their rate, and closed forms of recurrences."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mixer import WIDTH, Mixer

BANDS = 6


def _bands() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 12, BANDS, WIDTH)}


def _images() -> dict[str, Tensor]:
    return {"x": torch.randn(2, 2, 12, BANDS)}


def _frames() -> dict[str, Tensor]:
    return {"x": torch.randn(2, WIDTH, 24)}


OF_BANDS: Mapping[str, list[int | str]] = {"x": ["batch", "time", BANDS, WIDTH]}
OF_IMAGES: Mapping[str, list[int | str]] = {"x": ["batch", 2, "time", BANDS]}
OF_FRAMES: Mapping[str, list[int | str]] = {"x": ["batch", WIDTH, "time"]}


class _Denoiser(nn.Module):
    """Down and up again over the bands, causal over time, as convolutional recurrent networks."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, (2, 3), stride=(1, 2), padding=(1, 1))
        self.norm, self.act = nn.BatchNorm2d(4), nn.PReLU()
        self.gru = nn.GRU(12, 12, batch_first=True)
        self.up = nn.ConvTranspose2d(
            4, 2, (2, 3), stride=(1, 2), padding=(0, 1), output_padding=(0, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.down(x)[:, :, :-1]))
        batch, channels, time, bands = y.shape
        flat = y.transpose(1, 2).reshape(batch, time, channels * bands)
        y = self.gru(flat)[0].reshape(batch, time, channels, bands).transpose(1, 2)
        mask: Tensor = self.up(y)[:, :, : x.shape[2]].sigmoid()
        return x * mask


class _DualPath(nn.Module):
    """A recurrence over the bands of a frame, both ways, and one over time for each band."""

    def __init__(self) -> None:
        super().__init__()
        self.over_bands = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
        self.over_time = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.norm = nn.GroupNorm(2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, bands, size = x.shape
        y, _ = self.over_bands(x.reshape(batch * time, bands, size))
        y = self.norm(y.reshape(-1, size)).view_as(x)
        z, _ = self.over_time(y.permute(0, 2, 1, 3).reshape(batch * bands, time, size))
        both: Tensor = y + z.reshape(batch, bands, time, size).permute(0, 2, 1, 3)
        return both


class _CumulativeNorm(nn.Module):
    """Mean and variance of all channels up to each frame (Luo and Mesgarani 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        channels, time = x.shape[1:]
        count = torch.arange(channels, channels * (time + 1), channels)
        mean = x.sum(1, keepdim=True).cumsum(-1) / count
        power = x.square().sum(1, keepdim=True).cumsum(-1) / count
        normal: Tensor = (x - mean) * torch.rsqrt(power - mean.square() + 1e-5)
        return normal


class _PaddedOnce(nn.Module):
    """WaveNet's dilated stack, padded in front of all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(WIDTH, 2 * WIDTH, 2, dilation=d) for d in (1, 2, 4, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (15, 0))
        for layer in self.layers:
            signal, gate = layer(x).chunk(2, 1)
            y = signal.tanh() * gate.sigmoid()
            x = x[..., -y.shape[-1] :] + y
        return x


class _Causal(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        front = (self.kernel_size[0] - 1) * self.dilation[0] - (self.stride[0] - 1)
        return super().forward(F.pad(x, (front, 0)))


class _CausalTransposed(nn.ConvTranspose1d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(x, output_size)[..., : self.stride[0] * x.shape[-1]]


class _Rates(nn.Module):
    """Layers one after the other over [batch, channels, time]."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x.mT)[0].mT + x
        return y


class _Stacked(nn.Module):
    """Four frames in one, and attention over these."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4 * WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, time = x.shape
        stacked = x.mT.reshape(batch, time // 4, 4 * channels)
        q, k, v = self.qkv(stacked).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class _Sum(nn.Module):
    """A sum over all tokens so far, by `form` of a decay's logarithm and of what is added."""

    def __init__(self, form: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.hz, self.form = nn.Linear(WIDTH, 2 * WIDTH), form

    def forward(self, x: Tensor) -> Tensor:
        h, z = self.hz(x).chunk(2, -1)
        return self.form(-F.softplus(z), h)


def spectral_denoiser() -> nn.Module:
    return _Denoiser()


def dual_path() -> nn.Module:
    return _DualPath()


def cumulative_norm() -> nn.Module:
    return _CumulativeNorm()


def dilated_stack_padded_once() -> nn.Module:
    return _PaddedOnce()


def strided_encoder() -> nn.Module:
    return _Rates(_Causal(WIDTH, WIDTH, 4, 2), nn.ELU(), _Causal(WIDTH, WIDTH, 4, 2), _Recurrent())


def causal_vocoder() -> nn.Module:
    return _Rates(
        _Causal(WIDTH, WIDTH, 7),
        nn.LeakyReLU(0.1),
        _CausalTransposed(WIDTH, WIDTH, 8, 4),
        nn.LeakyReLU(0.1),
        _CausalTransposed(WIDTH, 4, 4, 2),
        _Causal(4, 1, 7),
        nn.Tanh(),
    )


def codec() -> nn.Module:
    """Encoder, recurrence and decoder of SoundStream's and EnCodec's kind."""
    return _Rates(
        _Causal(WIDTH, WIDTH, 4, 2),
        nn.ELU(),
        _Causal(WIDTH, WIDTH, 6, 3),
        _Recurrent(),
        _CausalTransposed(WIDTH, WIDTH, 6, 3),
        nn.ELU(),
        _CausalTransposed(WIDTH, WIDTH, 4, 2),
    )


def stacked_frames() -> nn.Module:
    return _Stacked()


def pooled_frames() -> nn.Module:
    return _Rates(_Causal(WIDTH, WIDTH, 3), nn.ReLU(), nn.MaxPool1d(2), _Recurrent())


def log_space_scan() -> nn.Module:
    """MinGRU in log space (Feng et al. 2024, appendix B.2.1)."""

    def form(decay: Tensor, h: Tensor) -> Tensor:
        total = decay.cumsum(1)
        return (total + (F.logsigmoid(h) - total).logcumsumexp(1)).exp()

    return _Sum(form)


def decayed_prefix_sum() -> nn.Module:
    def form(decay: Tensor, h: Tensor) -> Tensor:
        total = (0.2 * decay).cumsum(1)  # float64 ends at e^709
        return total.exp() * (h * (-total).exp()).cumsum(1)

    return _Sum(form)


def log_cumulative_sum() -> nn.Module:
    return _Sum(lambda decay, h: (decay + h).logcumsumexp(1))


def cumulative_maximum() -> nn.Module:
    return _Sum(lambda _, h: h.cummax(1).values)


def cumulative_product() -> nn.Module:
    return _Sum(lambda decay, h: (0.1 * decay).exp().cumprod(1) * h)


def cumulative_mean() -> nn.Module:
    return _Sum(lambda _, h: h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[:, None])


MIXERS = (
    Mixer(make=spectral_denoiser, inputs=_images, axes=OF_IMAGES),
    Mixer(make=dual_path, inputs=_bands, axes=OF_BANDS),
    Mixer(make=cumulative_norm, inputs=_frames, axes=OF_FRAMES),
    Mixer(make=dilated_stack_padded_once, inputs=_frames, axes=OF_FRAMES),
    Mixer(make=strided_encoder, inputs=_frames, axes=OF_FRAMES),
    Mixer(make=causal_vocoder, inputs=_frames, axes=OF_FRAMES),
    Mixer(make=codec, inputs=_frames, axes=OF_FRAMES),
    Mixer(make=stacked_frames, inputs=_frames, axes=OF_FRAMES, constant=False),
    Mixer(make=pooled_frames, inputs=_frames, axes=OF_FRAMES),
    Mixer(make=log_space_scan),
    Mixer(make=decayed_prefix_sum),
    Mixer(make=log_cumulative_sum),
    Mixer(make=cumulative_maximum),
    Mixer(make=cumulative_product),
    Mixer(make=cumulative_mean),
)
