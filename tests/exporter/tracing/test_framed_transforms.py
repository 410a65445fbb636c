"""Fourier transforms of frames, and of hops along time, give what PyTorch's give, and step."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.exporter.export import export
from intaglio.exporter.tracing.framed_transforms import WINDOWS
from intaglio.exporter.tracing.spellings import Spellings
from intaglio.runtime import Session

FRAME, HOP = 12, 6


class Transforms(nn.Module):
    """Of frames `x` of [batch, 5, 8], along either axis, of other lengths, by every norm."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = torch.complex(x, x.flip(2))
        return {
            "rfft": torch.fft.rfft(x),
            "rfft, longer": torch.fft.rfft(x, n=11, norm="ortho"),
            "rfft, shorter": torch.fft.rfft(x, n=7, norm="forward"),
            "rfft, along the other": torch.fft.rfft(x, dim=1),
            "irfft": torch.fft.irfft(z),
            "irfft, odd": torch.fft.irfft(z, n=9, norm="ortho"),
            "irfft, longer": torch.fft.irfft(z, n=20, norm="forward", dim=1),
            "fft": torch.fft.fft(x),
            "fft of complex numbers": torch.fft.fft(z, n=10, dim=-2, norm="ortho"),
            "ifft": torch.fft.ifft(x),
            "ifft of complex numbers": torch.fft.ifft(z, n=5, norm="forward"),
            "fft2": torch.fft.fft2(x),
            "ifft2": torch.fft.ifft2(z),
            "rfft2": torch.fft.rfft2(x, norm="ortho"),
            "left to PyTorch": torch.fft.rfft2(x, s=(3, 4)),
        }


def test_frames_are_transformed_as_pytorch_does() -> None:
    torch.manual_seed(0)
    free = {"x": {0: torch.export.Dim("batch", min=2)}}
    with Spellings():
        program = torch.export.export(Transforms(), (torch.randn(3, 5, 8),), dynamic_shapes=free)
    left = {str(n.target) for n in program.graph.nodes if "fft" in str(n.target)}
    assert left == {"aten.fft_rfft2.default"}
    x = torch.randn(4, 5, 8)
    found, wanted = program.module()(x), Transforms()(x)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


class Enhancer(nn.Module):
    """A mask on short-time spectra, and the frames that it leaves, added where they overlap."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FRAME).sqrt())
        self.gru = nn.GRU(FRAME // 2 + 1, FRAME // 2 + 1, batch_first=True)

    def forward(self, wave: Tensor) -> Tensor:
        frames = F.pad(wave, (HOP, 0)).unfold(-1, FRAME, HOP) * self.window
        spectra = torch.fft.rfft(frames)
        mask = self.gru(spectra.abs())[0].sigmoid()
        first, second = (torch.fft.irfft(spectra * mask, n=FRAME) * self.window).chunk(2, -1)
        added: Tensor = first + F.pad(second, (0, 0, 1, 0))[:, :-1]
        return added.flatten(1)


class ShortTime(nn.Module):
    """Spectra of hops, by a window that is shorter than the frame and made in the forward."""

    def forward(self, wave: Tensor) -> Tensor:
        spectra = torch.stft(
            F.pad(wave, (HOP, 0)),
            FRAME,
            HOP,
            win_length=9,
            window=torch.hamming_window(9),
            center=False,
            normalized=True,
            return_complex=True,
        )
        return torch.view_as_real(spectra).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("module", [Enhancer, ShortTime])
def test_streams_of_frames_are_stepped(module: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, wave = module(), torch.randn(3, 9 * HOP)

    export(
        model,
        tmp_path / "bundle",
        inputs={"wave": wave[:2, : 5 * HOP]},
        axes={"wave": ["batch", "time"]},
        steps=4 * HOP,
    )

    session = Session.load(tmp_path / "bundle")
    parts = np.split(wave.numpy(), [HOP, 5 * HOP, 6 * HOP], 1)
    got = np.concatenate([session.step({"wave": part})["output"] for part in parts], 1)
    np.testing.assert_allclose(got, model(wave).detach(), rtol=1e-4, atol=1e-5)


class Windowed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x * window(8, periodic=at > 2) for at, window in enumerate(WINDOWS)])


def test_windows_are_numbers_by_the_time_they_are_converted() -> None:
    """The converter's own Hamming window is another."""
    free = {"x": {0: torch.export.Dim("batch", min=2)}}
    with Spellings():
        program = torch.export.export(Windowed(), (torch.ones(2, 8),), dynamic_shapes=free)
    assert not any("window" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(torch.ones(3, 8)), Windowed()(torch.ones(3, 8)))
