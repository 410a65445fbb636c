"""Streams that change their rate: how many entries make a token, from the source to a session."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import InputError
from intaglio.exporter.export import export
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.load import load
from intaglio.exporter.tracing.pace import at_pace, find_pace
from intaglio.exporter.tracing.whole import settled
from intaglio.runtime import Session

FRAMES: dict[str, list[int | str]] = {"x": ["batch", 2, "time"]}


class Down(nn.Module):
    """A causal convolution by a stride."""

    def __init__(self, stride: int, kernel: int = 4) -> None:
        super().__init__()
        self.conv, self.front = nn.Conv1d(2, 2, kernel, stride), kernel - stride

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (self.front, 0)))
        return y


class Up(nn.Module):
    """A causal transposed convolution by a stride."""

    def __init__(self, stride: int, kernel: int = 4) -> None:
        super().__init__()
        self.conv, self.stride = nn.ConvTranspose1d(2, 2, kernel, stride), stride

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)[..., : self.stride * x.shape[-1]]
        return y


class Stacked(nn.Module):
    """Four frames in one; no number of frames but a multiple of four is taken."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mT.reshape(x.shape[0], x.shape[2] // 4, 8)


class Averaged(nn.Module):
    """The mean of each five frames; what is left over at the end is cut off."""

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, time = x.shape
        return x[..., : time // 5 * 5].reshape(rows, channels, time // 5, 5).mean(-1)


class Chain(nn.Module):
    """One layer after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Gru(nn.Module):
    """A recurrence, which is traced as one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gru(x.mT)[0].mT
        return y


PACES = {
    "a convolution": (Down(2), 2),
    "one after the other": (Chain(Down(2), Gru(), Down(3)), 6),
    "down and up": (Chain(Down(4), Up(4)), 4),
    "up and down": (Chain(Up(4), Down(2)), 1),
    "stacked": (Stacked(), 4),
    "averaged": (Averaged(), 5),
    "pooled": (Chain(nn.MaxPool1d(3)), 3),
    "one rate": (Gru(), 1),
}


@pytest.mark.parametrize("name", PACES)
def test_the_strides_of_a_model_tell_its_pace(name: str) -> None:
    module, pace = PACES[name]
    options = LoadOptions(inputs={"x": torch.randn(2, 2, 24)}, axes=FRAMES)
    source = load(module.eval(), options)
    assert find_pace(source) == pace
    drawn = at_pace(source, pace).random_inputs(3, 5, 0)["x"]
    assert drawn.shape == (3, 2, 5 * pace)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = Chain(Down(3, 5), nn.Tanh(), Gru(), Up(6, 7)).eval()
    out = tmp_path_factory.mktemp("codec") / "bundle"
    inputs = {"x": torch.randn(2, 2, 24)}
    report = export(module, out, inputs=inputs, axes=FRAMES, steps=20, check_passes=True)
    assert report.parity is not None
    assert report.parity.passed
    return module, out


def test_a_session_takes_multiples_of_the_pace(codec: tuple[nn.Module, Path]) -> None:
    """In any parts; the manifest says how many entries a token has where."""
    module, out = codec
    session = Session.load(out)
    assert session.entry.inputs[0].shape == ("batch", 2, "3*time")
    assert session.entry.outputs[0].shape == ("batch", 2, "6*time")
    x = torch.randn(2, 2, 18)
    with torch.no_grad():
        wanted = module(x).numpy()
    name = session.entry.outputs[0].name
    got = [session.step({"x": part.numpy()})[name] for part in torch.split(x, [3, 9, 6], -1)]
    np.testing.assert_allclose(np.concatenate(got, -1), wanted, atol=1e-5)
    with pytest.raises(InputError, match="has 7 entries, and a step takes a multiple of 3"):
        session.step({"x": np.zeros((2, 2, 7), np.float32)})


def test_rows_of_unequal_length_count_tokens(codec: tuple[nn.Module, Path]) -> None:
    module, out = codec
    session = Session.load(out)
    x = torch.randn(2, 2, 12)
    found = session.step({"x": x.numpy()}, lengths=[4, 2])[session.entry.outputs[0].name]
    with torch.no_grad():
        np.testing.assert_allclose(found[0], module(x[:1])[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(found[1, :, :12], module(x[1:, :, :6])[0].numpy(), atol=1e-5)
    assert not found[1, :, 12:].any()


def test_what_takes_whole_inputs_is_counted_in_entries() -> None:
    """A convolution that looks ahead is whole; its sizes are those of its inputs again."""
    module = Chain(nn.Conv1d(2, 2, 3, 2, padding=1), nn.Conv1d(2, 2, 3, padding=1))
    options = LoadOptions(inputs={"x": torch.randn(2, 2, 24)}, axes=FRAMES)
    found = settled(load(module.eval(), options), None)
    assert (found.whole, found.pace) == (True, 1)
    assert found.draw({"time": 9}, 0)["x"].shape[2] == 9


def test_states_of_a_slower_recurrence_are_those_of_the_source(tmp_path: Path) -> None:
    """Tokens are fewer than entries, rows are as many as ever."""

    class Subsampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.gru = Down(2), nn.GRU(2, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.gru(self.down(x).mT)[0]
            return y

    report = export(
        Subsampled(), tmp_path / "bundle", inputs={"x": torch.randn(2, 2, 12)}, axes=FRAMES, steps=8
    )

    assert report.parity is not None
    assert {state.op for state in report.manifest.main.states} >= {"rnn"}


class Shortened(nn.Module):
    """Attention to all entries, to a window of them, and to tokens of two entries between.

    Nawrot et al. 2021, arXiv:2110.13711, section 2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        apart = place[:, None] - place
        near = (apart >= 0) & (apart < 4)
        x = x + self.attend(x, None)
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        short = self.down(before.reshape(x.shape[0], x.shape[1] // 2, 8))
        long = self.up(self.attend(short, None)).reshape(x.shape)
        return x + self.attend(x + long, near)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        one = x[:, None]
        y = F.scaled_dot_product_attention(one, one, one, attn_mask=mask, is_causal=mask is None)
        return y[:, 0]


def test_caches_of_faster_attention_are_those_of_the_source(tmp_path: Path) -> None:
    """An entry of a cache holds the keys of all entries of a token; a window counts entries."""
    report = export(
        Shortened(),
        tmp_path / "bundle",
        inputs={"x": torch.randn(2, 8, 4)},
        axes={"x": ["batch", "time", 4]},
        steps=8,
    )
    shapes = {state.input: state.shape[1:] for state in report.manifest.main.states}

    assert report.parity is not None
    assert (1, "capacity", 8) in shapes.values()
    assert (1, "capacity", 4) in shapes.values()
    assert (1, 3, 4) in shapes.values()


class Rounds(nn.Module):
    """A loop in Python over pooled tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.longest = max(self.longest, x.shape[1])
        y = F.avg_pool1d(x.mT, 2).mT
        return torch.stack([y[:, at].tanh() for at in range(y.shape[1])], 1)


def test_a_loop_in_python_is_not_run_at_lengths_that_take_minutes() -> None:
    module = Rounds()
    axes: dict[str, list[int | str]] = {"x": ["batch", "time", 3]}
    source = load(module, LoadOptions(inputs={"x": torch.randn(2, 8, 3)}, axes=axes))
    assert find_pace(source) == 1
    assert module.longest < 500
