"""Fourier transforms of frames, as products with their matrices; of hops along time, a convolution.

A frame of n samples has the spectrum

    X_k = sum over t < n of x_t (cos(2 pi k t / n) - i sin(2 pi k t / n)),

and a short-time transform that of each frame of a signal, times a window (Allen and Rabiner 1977,
"A unified approach to short-time Fourier analysis and synthesis", equation 2.1).  Along an axis of
a known size that is a product with a matrix of weights, in which every token stays alone; along
time, without frames around the first sample, a convolution by strides of the hop.  Windows are
numbers, which the converter to ONNX has wrong (Hamming's) or not at all.  A transform along the
first of two axes is that of one row.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from .small_matrices import AsItIsError

LONGEST = 4096  # samples of a frame: its matrices have as many squared


def rfft(x: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    """[.., n, ..] real -> [.., n // 2 + 1, ..] complex."""
    if x.is_complex():
        raise AsItIsError
    if _of_one_row(x, dim):
        row: Tensor = torch.fft.rfft(x.unsqueeze(0), n, 1, norm)
        return row.squeeze(0)
    return _forward(x, _length(x, n, dim), dim, norm, half=True)


def fft(x: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    """[.., n, ..] -> [.., n, ..] complex."""
    if _of_one_row(x, dim):
        row: Tensor = torch.fft.fft(x.unsqueeze(0), n, 1, norm)
        return row.squeeze(0)
    return _forward(x, _length(x, n, dim), dim, norm, half=False)


def ifft(x: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    """[.., n, ..] -> [.., n, ..] complex: the conjugate of what the conjugate has forward."""
    turned = {None: "forward", "backward": "forward", "forward": "backward"}.get(norm, norm)
    given = x.conj().resolve_conj() if x.is_complex() else x
    made = _forward(given, _length(x, n, dim), dim, turned, half=False)
    return torch.complex(made.real, -made.imag)


def irfft(x: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    """[.., n // 2 + 1, ..] complex -> [.., n, ..] real."""
    if not x.is_complex():
        raise AsItIsError
    count = _known(x, 2 * (x.shape[dim] - 1) if n is None else n, dim)
    half = count // 2 + 1
    twice = torch.full((half,), 2.0, dtype=torch.float64)
    twice[0] = 1.0
    if count % 2 == 0:
        twice[-1] = 1.0
    turned = {None: "forward", "backward": "forward", "forward": "backward"}.get(norm, norm)
    angles = _angles(count)[:half]
    kind = x.real.dtype
    along = _of_length(_last(x, dim), half)
    cosines, sines = (
        (_scale(count, turned) * twice[:, None] * part).to(kind)
        for part in (angles.cos(), angles.sin())
    )
    return _last(along.real @ cosines - along.imag @ sines, dim)


def stft(
    x: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Tensor:
    """[batch, samples] -> [batch, frequencies, frames] complex, or with pairs at the end."""
    del pad_mode  # of frames around the first sample
    one_sided = not x.is_complex() if onesided is None else onesided
    samples: Any = x.shape[-1]
    odd = x.dim() != 2 or x.is_complex() or not one_sided or center or align_to_window
    if odd or not isinstance(samples, SymInt) or n_fft > LONGEST:
        raise AsItIsError
    hop, size = hop_length or n_fft // 4, win_length or n_fft
    shape = torch.ones(size, dtype=x.dtype) if window is None else window.to(x.dtype)
    shape = F.pad(shape, ((n_fft - size) // 2, n_fft - size - (n_fft - size) // 2))
    angles = _angles(n_fft)[: n_fft // 2 + 1]
    scale = 1 / math.sqrt(n_fft) if normalized else 1.0
    taps = torch.cat([angles.cos(), -angles.sin()]).to(x.dtype) * shape * scale
    found = F.conv1d(x[:, None], taps[:, None], stride=hop)  # [batch, 2 * frequencies, frames]
    real, imaginary = found.chunk(2, 1)
    if return_complex:
        return torch.complex(real, imaginary)
    return torch.stack((real, imaginary), -1)


def _forward(x: Tensor, count: int, dim: int, norm: str | None, *, half: bool) -> Tensor:
    angles = _angles(count)
    angles = angles[:, : count // 2 + 1] if half else angles
    kind = x.real.dtype if x.is_complex() else x.dtype
    if not kind.is_floating_point:
        raise AsItIsError
    scale = _scale(count, norm)
    cosines, sines = ((scale * part).to(kind) for part in (angles.cos(), angles.sin()))
    along = _of_length(_last(x, dim), count)
    if x.is_complex():
        real = along.real @ cosines + along.imag @ sines
        imaginary = along.imag @ cosines - along.real @ sines
    else:
        real, imaginary = along @ cosines, -(along @ sines)
    return _last(torch.complex(real, imaginary), dim)


def _of_one_row(x: Tensor, dim: int) -> bool:
    """Whether it is a kernel [tokens, channels], whose free size PyTorch fixes without rows."""
    return x.dim() == 2 and dim % 2 == 0 and isinstance(x.shape[0], SymInt)


def _last(x: Tensor, dim: int) -> Tensor:
    """`x` with axis `dim` in the place of the last, and the last in its place."""
    return x if dim % x.dim() == x.dim() - 1 else x.transpose(dim, -1)


def _length(x: Tensor, n: int | None, dim: int) -> int:
    return _known(x, x.shape[dim] if n is None else n, dim)


def _known(x: Tensor, count: Any, dim: int) -> int:
    """How many samples a frame has, where data has them: other axes are free, this one is not."""
    free = [isinstance(size, SymInt) for size in x.shape]
    if type(count) is not int or free[dim] or not any(free) or not 0 < count <= LONGEST:
        raise AsItIsError
    return count


def _of_length(x: Tensor, count: int) -> Tensor:
    """The first `count` entries at the end, zeros behind them."""
    size = x.shape[-1]
    if size >= count:
        return x[..., :count]
    more = (0, count - size)
    if x.is_complex():
        return torch.complex(F.pad(x.real, more), F.pad(x.imag, more))
    return F.pad(x, more)


def _angles(count: int) -> Tensor:
    """2 pi k t / n for all k and t, in float64, of products taken modulo n."""
    places = torch.arange(count)
    return (places[:, None] * places % count).double() * (2 * math.pi / count)


def _scale(count: int, norm: str | None) -> float:
    return {"ortho": 1 / math.sqrt(count), "forward": 1 / count}.get(norm or "backward", 1.0)


def _one_by_one(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` over the last axis and then the one before it."""

    def spelled(
        x: Tensor, s: Any = None, dim: tuple[int, int] = (-2, -1), norm: str | None = None
    ) -> Tensor:
        if s is not None or len(dim) != 2:
            raise AsItIsError
        rest = fft if function is rfft else function
        return rest(function(x, None, dim[1], norm), None, dim[0], norm)

    return spelled


def _numbers(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A window as the numbers that it holds."""

    def spelled(*args: Any, **named: Any) -> Tensor:
        if any(isinstance(each, SymInt) for each in (*args, *named.values())):
            raise AsItIsError
        with _disable_current_modes():
            numbers = function(*args, **named)
            values, kind = numbers.tolist(), numbers.dtype
        return torch.tensor(values, dtype=kind)

    return spelled


WINDOWS = (
    torch.hann_window,
    torch.hamming_window,
    torch.blackman_window,
    torch.bartlett_window,
    torch.kaiser_window,
)

SPELLED: Mapping[Any, Callable[..., Tensor]] = {
    torch.stft: stft,
    Tensor.stft: stft,
    torch.fft.fft: fft,
    torch.fft.ifft: ifft,
    torch.fft.rfft: rfft,
    torch.fft.irfft: irfft,
    torch.fft.fft2: _one_by_one(fft),
    torch.fft.ifft2: _one_by_one(ifft),
    torch.fft.rfft2: _one_by_one(rfft),
    **{each: _numbers(each) for each in WINDOWS},
}
"""What stands for which function while a module is captured."""
