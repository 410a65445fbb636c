"""Cells and graphs that carry their own states, from source to session."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from intaglio.cli.commands.load_flags import own_states
from intaglio.cli.stream import step_arrays
from intaglio.errors import SourceError, StateError, TraceError
from intaglio.exporter.export import ExportReport, export
from intaglio.runtime import Session

STEPS = 20


def exported(source: Any, out: Path, **options: Any) -> ExportReport:
    torch.set_num_threads(1)
    return export(source, out, steps=STEPS, check_passes=True, **options)


class Policy(nn.Module):
    """Observations and an LSTM's state, with an action, the state and a count of steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(5, 6, 2), nn.Linear(6, 3)

    def forward(
        self, obs: Tensor, state: tuple[Tensor, Tensor], count: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        y, state = self.lstm(obs[None], state)
        return self.head(y[0]) / (count[:, None] + 1), state, count + 1


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    module, out = Policy(), tmp_path_factory.mktemp("policy") / "bundle"
    zeros = torch.zeros(2, 3, 6)
    inputs = {
        "obs": torch.randn(3, 5),
        "state": (zeros, zeros),
        "count": torch.zeros(3, dtype=torch.int64),
    }
    report = exported(module, out, inputs=inputs)
    assert report.parity is not None
    assert report.parity.passed
    return module, out


def follow(module: nn.Module, observations: Tensor) -> list[np.ndarray[Any, Any]]:
    """Actions of the module for [steps, batch, size]."""
    batch = observations.shape[1]
    state: Any = (torch.zeros(2, batch, 6), torch.zeros(2, batch, 6))
    count, found = torch.zeros(batch, dtype=torch.int64), []
    with torch.no_grad():
        for each in observations:
            action, state, count = module(each, state, count)
            found.append(action.numpy())
    return found


def test_a_session_carries_what_the_module_was_given_back(policy: tuple[nn.Module, Path]) -> None:
    """States with the rows on their second axis, and an integer one."""
    module, out = policy
    observations, session = torch.randn(6, 4, 5), Session.load(out)
    for wanted, given in zip(follow(module, observations), observations, strict=True):
        found = session.step({"obs": given.numpy()})
        assert list(found) == ["output_0"]
        np.testing.assert_allclose(found["output_0"], wanted, atol=1e-5)
    assert session.state.save().arrays["count"].tolist() == [6] * 4


def test_rows_are_selected_reset_forked_and_restored_on_any_axis(
    policy: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    module, out = policy
    x, session = torch.randn(4, 3, 5), Session.load(out)
    for given in x[:2]:
        session.step({"obs": given.numpy()})
    session.state.save(tmp_path / "state.npz")
    twin = session.fork()

    session.state.reset([1])
    found = session.step({"obs": x[2].numpy()})["output_0"]
    old = follow(module, x)[2]
    np.testing.assert_allclose(found[[0, 2]], old[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(found[1:2], follow(module, x[2:3, 1:2])[0], atol=1e-5)

    twin.state.select([2, 0])
    swapped = twin.step({"obs": x[2, [2, 0]].numpy()})["output_0"]
    np.testing.assert_allclose(swapped, old[[2, 0]], atol=1e-5)

    session.state.restore(tmp_path / "state.npz")
    some = session.step({"obs": x[2].numpy()}, lengths=[1, 0, 1])["output_0"]
    np.testing.assert_allclose(some[[0, 2]], old[[0, 2]], atol=1e-5)
    assert not some[1].any()
    assert session.state.past_length.tolist() == [3, 2, 3]


class Shared(nn.Module):
    """A step that all rows share, kept in the module beside a mean of its own for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.full((1, 4), 2.0))
        self.mean: Tensor
        self.step: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        self.mean = self.mean + (x - self.mean) / (self.step + 1)
        return x - self.mean


def test_buffers_that_are_kept_are_carried_and_a_shared_one_binds_the_rows(tmp_path: Path) -> None:
    module = Shared()
    exported(module, tmp_path / "b", inputs={"x": torch.randn(2, 4)}, axes={"x": ("batch", 4)})

    session, x = Session.load(tmp_path / "b"), torch.randn(5, 3, 4)
    for given in x:
        found = session.step({"x": given.numpy()})["output"]
        np.testing.assert_allclose(found, module(given).numpy(), atol=1e-5)
    with pytest.raises(StateError, match="'step' is one for all rows"):
        session.state.reset([0])
    session.state.reset()
    fresh = session.step({"x": x[0].numpy()})["output"]
    np.testing.assert_allclose(fresh, Shared()(x[0]).numpy(), atol=1e-5)


class Learned(nn.Module):
    """Two layers that start from a weight, one of which projects its state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.LSTM(4, 6, proj_size=3, batch_first=True)
        self.gru, self.h0 = nn.GRU(3, 5, batch_first=True), nn.Parameter(torch.randn(1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.first(x)
        start = (2 * self.h0).expand(1, x.shape[0], 5).contiguous()
        found: Tensor = self.gru(y, start)[0]
        return found


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_learned_initial_states_are_weights_that_reset_rows_start_from(tmp_path: Path) -> None:
    module = Learned().eval()
    exported(module, tmp_path / "b", inputs={"x": torch.randn(2, 5, 4)})

    session, x = Session.load(tmp_path / "b"), torch.randn(3, 7, 4)
    with torch.no_grad():
        wanted = module(x).numpy()
    found = [session.step({"x": x[:, a:b].numpy()})["output"] for a, b in ((0, 1), (1, 4), (4, 7))]
    np.testing.assert_allclose(np.concatenate(found, 1), wanted, atol=1e-5)
    session.state.reset([1])
    again = session.step({"x": x[:, :1].numpy()})["output"]
    np.testing.assert_allclose(again[1], wanted[1, :1], atol=1e-5)


def detector(
    path: Path, opset: int, *, batch: int | str = "batch", size: int | None = None
) -> Path:
    """A file like those of voice activity detectors: samples, state and rate in, stateN out."""
    random, hidden = np.random.default_rng(0), 8

    def weights(*shape: int) -> np.ndarray[Any, Any]:
        return (0.3 * random.standard_normal(shape)).astype(np.float32)

    constants = {
        "filters": weights(6, 1, 16),
        "W": weights(1, 4 * hidden, 6),
        "R": weights(1, 4 * hidden, hidden),
        "B": weights(1, 8 * hidden),
        "head": weights(hidden, 1),
        "rate": np.array(16000, np.float32),
    }
    axes: dict[int, dict[str, Any]] = {0: {}, 1: {}}
    if opset < 13:
        axes = {axis: {"axes": [axis]} for axis in axes}
    else:
        constants |= {"axis0": np.array([0]), "axis1": np.array([1])}

    def after(axis: int) -> list[str]:
        return [f"axis{axis}"] if opset >= 13 else []

    nodes = [
        helper.make_node("Cast", ["sr"], ["float_rate"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float_rate", "rate"], ["ratio"]),
        helper.make_node("Mul", ["input", "ratio"], ["scaled"]),
        helper.make_node("Unsqueeze", ["scaled", *after(1)], ["wave"], **axes[1]),
        helper.make_node("Conv", ["wave", "filters"], ["frames"], strides=[16]),
        helper.make_node("Transpose", ["frames"], ["sequence"], perm=[2, 0, 1]),
        helper.make_node("Split", ["state"], ["h", "c"], axis=0),
        helper.make_node(
            "LSTM", ["sequence", "W", "R", "B", "", "h", "c"], ["y", "hn", "cn"], hidden_size=hidden
        ),
        helper.make_node("Concat", ["hn", "cn"], ["stateN"], axis=0),
        helper.make_node("Squeeze", ["hn", *after(0)], ["last"], **axes[0]),
        helper.make_node("MatMul", ["last", "head"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["output"]),
    ]
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "detector",
        [
            helper.make_tensor_value_info("input", kind, [batch, size]),
            helper.make_tensor_value_info("state", kind, [2, batch, hidden]),
            helper.make_tensor_value_info("sr", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("output", kind, [batch, 1]),
            helper.make_tensor_value_info("stateN", kind, None),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=7), path)
    return path


@pytest.mark.parametrize("opset", [9, 16])
def test_a_voice_activity_detector_of_any_opset_steps_like_its_file(
    tmp_path: Path, opset: int
) -> None:
    """Fixed samples in each call, the state's rows on its second axis, the rate by default."""
    import onnxruntime

    path = detector(tmp_path / "vad.onnx", opset)
    rate = {"sr": np.array(16000)}
    exported(path, tmp_path / "b", inputs=rate, axes={"input": ("batch", 64)})

    session, engine = Session.load(tmp_path / "b"), onnxruntime.InferenceSession(str(path))
    x = np.random.default_rng(1).standard_normal((5, 3, 64)).astype(np.float32)
    state = np.zeros((2, 3, 8), np.float32)
    for chunk in x:
        wanted, state = engine.run(None, {"input": chunk, "state": state, **rate})
        np.testing.assert_allclose(session.step({"input": chunk})["output"], wanted, atol=1e-6)
    np.testing.assert_allclose(session.state.save().arrays["state"], state, atol=1e-6)


def test_a_file_with_one_row_stays_with_one_and_what_is_not_known_is_asked_for(
    tmp_path: Path,
) -> None:
    fixed = detector(tmp_path / "one.onnx", 16, batch=1, size=64)
    with pytest.raises(SourceError, match=r"numpy\.savez\('FILE\.npz', sr=16000\)"):
        exported(fixed, tmp_path / "b")
    report = exported(fixed, tmp_path / "b", inputs={"sr": np.array(16000)})
    assert report.manifest.main.limits.batch == 1
    session = Session.load(tmp_path / "b")
    session.step({"input": np.zeros((1, 64), np.float32), "sr": np.array(16000)})
    session.state.reset([0])
    assert not session.state.save().arrays["state"].any()

    free = detector(tmp_path / "free.onnx", 16)
    with pytest.raises(TraceError, match="--axes input:batchx512"):
        exported(free, tmp_path / "c", inputs={"sr": np.array(16000)})


def test_run_takes_a_step_of_each_entry_along_one_axis_more(
    policy: tuple[nn.Module, Path],
) -> None:
    """[batch, time, ...] for a cell, which has no time; or a single step."""
    module, out = policy
    x = torch.randn(4, 3, 5)
    outputs, latency = step_arrays(Session.load(out), {"obs": x.transpose(0, 1).numpy()})
    wanted = np.stack(follow(module, x), 1)
    np.testing.assert_allclose(outputs["output_0"], wanted, atol=1e-5)
    assert len(latency.seconds) == 4
    single, _ = step_arrays(Session.load(out), {"obs": x[0].numpy()})
    np.testing.assert_allclose(single["output_0"], wanted[:, 0], atol=1e-5)


def test_a_state_on_the_command_line() -> None:
    assert own_states(["h=h_out:0.5", "c=d=e"]) == {"h": "h_out:0.5", "c": "d=e"}
    assert own_states(["none"]) == {"none": ""}
    assert own_states(None) is None
    for wrong in ("h", "=h", "h="):
        with pytest.raises(typer.BadParameter, match="IN=OUT"):
            own_states([wrong])
