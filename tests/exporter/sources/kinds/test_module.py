"""Modules that hold their weights: in memory as they are, pickled with the user's consent."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.ops import piecewise_linear_rnn
from intaglio.runtime import Session

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)

    def forward(self, input_ids):
        return self.embed(input_ids) @ self.embed.weight.T
"""


def pickled(folder: Path, wrap: str) -> Path:
    """Save a module of a class that is not on the path; forget the class again."""
    code = folder / "code"
    code.mkdir()
    (code / "pickled_nets.py").write_text(CODE)
    sys.path.insert(0, str(code))
    try:
        from pickled_nets import Net  # type: ignore[import-not-found]

        module: nn.Module = Net()
        wrapped = {"bare": module, "parallel": nn.DataParallel(module), "nested": {"ema": module}}
        torch.save(wrapped[wrap], folder / "model.pt")
    finally:
        sys.path.remove(str(code))
        del sys.modules["pickled_nets"]
    return folder / "model.pt"


@pytest.mark.parametrize("wrap", ["bare", "parallel", "nested"])
def test_a_pickled_module_is_loaded_with_consent_and_its_code(tmp_path: Path, wrap: str) -> None:
    """Neither alone is enough, and each message names what is missing."""
    path = pickled(tmp_path, wrap)

    with pytest.raises(SourceError, match=r"any code .*--allow-pickle.*--import-from"):
        load_source(path)
    with pytest.raises(SourceError, match=r"pickled_nets.*--import-from DIR"):
        load_source(path, allow_pickle=True)
    source = load_source(path, allow_pickle=True, import_from=[tmp_path / "code"])
    sys.modules.pop("pickled_nets", None)

    assert source.model == "pickled_nets:Net"
    assert source.dynamic == {"input_ids": {0: "batch", 1: "time"}}
    assert not source.module.training


class Mel(nn.Module):
    """Takes [batch, channels, time]."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(3, 4, 2, padding=1, bias=False)

    def forward(self, mel: Tensor) -> Tensor:
        y: Tensor = self.mix(mel)[:, :, : mel.shape[2]]
        return y


def test_a_module_in_memory_is_exported_and_stays_as_it_was(tmp_path: Path) -> None:
    """Example inputs and the layout of their axes are given beside it; it goes on training."""
    module = Mel().train()

    report = export(
        module,
        tmp_path / "bundle",
        inputs={"mel": torch.randn(1, 3, 9)},
        axes={"mel": ("batch", 3, "time")},
        steps=9,
    )

    assert report.parity is not None
    assert report.parity.passed
    assert report.manifest.main.inputs[0].shape == ("batch", 3, "time")
    assert report.manifest.source["name"] == "Mel"
    assert module.training
    assert module.mix.weight.requires_grad


class Repeats(nn.Module):
    """Gives the same values under several names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        same = {"a": x, "b": x, "c": x.reshape(x.shape), "ids": input_ids}
        return {**same, "d": torch.relu(x), "e": torch.relu(x)}


def test_one_value_may_be_several_outputs(tmp_path: Path) -> None:
    """Whether the module names it twice, or the graph finds that two are equal."""
    inputs = {"input_ids": np.zeros((1, 4), np.int64)}
    report = export(Repeats(), tmp_path / "bundle", inputs=inputs, steps=9, check_passes=True)

    assert report.parity is not None
    assert report.parity.passed
    step = Session.load(tmp_path / "bundle").step({"input_ids": np.arange(4)[None]})
    assert list(step) == ["a", "b", "c", "ids", "d", "e"]
    np.testing.assert_array_equal(step["a"], step["c"])
    np.testing.assert_array_equal(step["d"], step["e"])
    np.testing.assert_array_equal(step["ids"], np.arange(4)[None])


class Normalized(nn.Module):
    """Linear attention as sums over the tokens so far, with a norm; and a sum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 6)
        self.project = nn.Linear(6, 18)

    def forward(self, input_ids: Tensor) -> Tensor:
        q, k, v = self.project(self.embed(input_ids)).chunk(3, -1)
        q, k, v = q.exp(), k.exp(), v.cumsum(-1)
        memory = torch.cumsum(k[..., None] * v[..., None, :], 1)
        y: Tensor = (q[..., None] * memory).sum(2) / (q * k.cumsum(dim=1)).sum(-1, keepdim=True)
        return y


def test_sums_over_the_tokens_so_far_are_states(tmp_path: Path) -> None:
    """Both are held to the source; the sum over channels is none."""
    inputs = {"input_ids": np.zeros((1, 4), np.int64)}
    report = export(Normalized(), tmp_path / "bundle", inputs=inputs, steps=40, check_passes=True)

    assert report.parity is not None
    assert report.parity.passed
    states = {row.found.name for row in report.parity.rows if row.kind == "state"}
    assert states == {spec.input for spec in report.manifest.main.states}
    assert [spec.shape for spec in report.manifest.main.states] == [("batch", 6, 6), ("batch", 6)]


class Running(nn.Module):
    """The mean so far of channels that come before time."""

    def forward(self, mel: Tensor) -> Tensor:
        counts = torch.ones_like(mel[:, :1]).cumsum(-1)
        return mel.cumsum(-1) / counts + mel.cumsum(1)


def test_time_may_be_the_last_axis_of_a_sum(tmp_path: Path) -> None:
    """There are as many channels as rows, and sums over both."""
    report = export(
        Running(),
        tmp_path / "bundle",
        inputs={"mel": torch.randn(2, 3, 9)},
        axes={"mel": ("batch", 3, "time")},
        steps=12,
    )

    assert report.parity is not None
    assert report.parity.passed
    assert [spec.shape for spec in report.manifest.main.states] == [("batch", 1), ("batch", 3)]


class FreeRun(nn.Module):
    """An AL-RNN that is warmed up by observations where there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(0.5 * torch.rand(6))
        self.W = nn.Parameter(0.2 * torch.randn(6, 6))
        self.h = nn.Parameter(torch.randn(6))

    def forward(self, observed: Tensor, known: Tensor) -> Tensor:
        free = observed.new_zeros(*observed.shape[:2], 6)
        z, _ = piecewise_linear_rnn(free, self.A, self.W, self.h, observed, known, num_relu=2)
        return z[..., :3]


def test_a_network_that_runs_freely_carries_its_state(tmp_path: Path) -> None:
    """Its length is that of the mask; outputs and states are those of its source at any step."""
    torch.manual_seed(0)
    inputs = {"observed": torch.randn(2, 5, 3), "known": torch.rand(2, 5) < 0.5}
    report = export(FreeRun(), tmp_path / "bundle", inputs=inputs, steps=12, check_passes=True)

    assert report.parity is not None
    assert report.parity.passed
    assert "past.0.recurrent" in {row.found.name for row in report.parity.rows}
    (state,) = report.manifest.main.states
    assert (state.op, state.shape) == ("piecewise_linear_rnn", ("batch", 6))


def test_example_inputs_may_come_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", input=np.ones((2, 3, 5), np.float32))
    layer = nn.Linear(5, 5)

    source = load_source(layer, inputs=tmp_path / "inputs.npz")

    assert source.inputs["input"].shape[2:] == (5,)
    with pytest.raises(SourceError, match=r"cannot be read.*numpy\.savez"):
        load_source(layer, inputs=tmp_path / "absent.npz")
    with pytest.raises(SourceError, match=r"what to trace it with is not known.*--inputs"):
        load_source(layer)
