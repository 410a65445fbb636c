"""The linear interpreter: a network is recorded for one input and replayed as an affine map."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from in_double import in_double
from torch import Tensor, nn

from intaglio.errors import PassError
from intaglio.exporter.export import export
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.load import load
from intaglio.exporter.tracing.trace import trace
from intaglio.exporter.tracing.whole import settled
from intaglio.passes import evaluate, pipeline
from intaglio.passes.base import Context
from intaglio.passes.exact.linear_interpreter import LinearInterpreter

Array = npt.NDArray[Any]
SIDE = 8
ROOM = (SIDE - 2) // 2  # of a side, after a convolution and a pool


class Gated(nn.Module):
    """Channels are scaled by what the picture's mean says of them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(size, size, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.mix(x.mean((2, 3), keepdim=True)).sigmoid()
        return x * gate


class Residual(nn.Module):
    """A sum of two ways, one of them cut, padded and joined."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, [2, 2], 1)
        around = nn.functional.pad(first[:, :, 1:, :-1] - second[:, :, 1:, :-1], (0, 1, 1, 0))
        return x + torch.cat((around, second * 2), 1).transpose(2, 3) / 3


class Attending(nn.Module):
    """Attention has no form here."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return (tokens @ tokens.mT / 2).softmax(-1) @ tokens


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "classifier": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ),
    "images": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.LeakyReLU(0.1),
        Gated(4),
        Residual(),
        nn.AvgPool2d(2),
        nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
        nn.InstanceNorm2d(2, affine=True),
        nn.Tanh(),
    ),
    "norms": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, groups=1),
        nn.PReLU(4),
        nn.GroupNorm(2, 4),
        nn.Hardswish(),
        nn.ReLU6(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(4),
        nn.Linear(4, 5),
        nn.SiLU(),
        nn.Softplus(),
        nn.Linear(5, 2),
    ),
}


def made(module: nn.Module, std: float = 0.4) -> tuple[ir.Model, Context]:
    """A graph of pictures, tidied, and what the pass put beside it."""
    torch.manual_seed(0)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    options = {
        "inputs": (torch.randn(2, 3, SIDE, SIDE),),
        "axes": {"input": f"batchx3x{SIDE}x{SIDE}"},
    }
    source = settled(load(module.eval(), LoadOptions.of(options)), None)
    model, context = trace(source).model, Context()
    for step in pipeline.whole():
        step.run(model, context)
    result = LinearInterpreter().run(model, context)
    assert not result.notes
    return model, context


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_gives_the_output_and_its_rows_are_its_columns(name: str) -> None:
    """W x0 + r = y0, and W by columns is W by rows, to 1e-10 in float64."""
    _, context = made(NETWORKS[name]())
    record, replay, transpose = (
        in_double(context.beside[n]) for n in ("record", "replay", "transpose")
    )
    x = np.random.default_rng(1).standard_normal((1, 3, SIDE, SIDE))
    found = record({"input": x})
    output = str(context.beside["replay"].graph.outputs[0].name)
    names = [str(v.name) for v in context.beside["replay"].graph.inputs][1:]
    decisions = {n: found[n] for n in names}
    size = x.size
    units = np.concatenate((np.zeros((1, size)), np.eye(size))).reshape(-1, 3, SIDE, SIDE)
    mapped = replay({"input": units, **decisions})[output]
    bias, columns = mapped[0].ravel(), (mapped[1:] - mapped[:1]).reshape(size, -1).T
    wanted = found[output].ravel()
    np.testing.assert_allclose(columns @ x.ravel() + bias, wanted, rtol=0, atol=1e-10)
    taken = {str(v.name) for v in context.beside["transpose"].graph.inputs}
    weights = np.eye(len(wanted)).reshape(-1, *found[output].shape[1:])
    feeds = {n: v for n, v in decisions.items() if n in taken}
    rows = transpose({f"{output}_weights": weights, **feeds})["row"].reshape(len(wanted), -1)
    np.testing.assert_allclose(rows, columns, rtol=0, atol=1e-10)


def test_the_map_is_that_of_loops_over_entries() -> None:
    """phi(a) / a of a convolution, the largest of each window, and a matrix, in numpy."""
    module = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * ROOM**2, 4)
    )
    _, context = made(module)
    w = {name: value.double().numpy() for name, value in module.state_dict().items()}
    x = np.random.default_rng(1).standard_normal((3, SIDE, SIDE))
    wanted, bias = np.zeros((4, 3, SIDE, SIDE)), w["4.bias"].copy()
    for channel, row, column in np.ndindex(2, ROOM, ROOM):
        best = (-np.inf, 0.0, 0, 0)
        for i, j in np.ndindex(2, 2):
            r, c = 2 * row + i, 2 * column + j
            a = (w["0.weight"][channel] * x[:, r : r + 3, c : c + 3]).sum() + w["0.bias"][channel]
            gain = 1 / (1 + math.exp(-a))
            best = max(best, (gain * a, gain, r, c))
        _, gain, r, c = best
        onto = w["4.weight"][:, (channel * ROOM + row) * ROOM + column] * gain
        bias += onto * w["0.bias"][channel]
        wanted[:, :, r : r + 3, c : c + 3] += onto[:, None, None, None] * w["0.weight"][channel]
    found = in_double(context.beside["record"])({"input": x[None]})
    output = str(context.beside["replay"].graph.outputs[0].name)
    taken = {str(v.name) for v in context.beside["transpose"].graph.inputs}
    feeds = {name: value for name, value in found.items() if name in taken}
    rows = in_double(context.beside["transpose"])({f"{output}_weights": np.eye(4), **feeds})["row"]
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-10)
    result = (wanted * x).sum((1, 2, 3)) + bias
    np.testing.assert_allclose(found[output][0], result, rtol=0, atol=1e-10)


def test_a_deep_network_that_hardly_moves_has_its_rows_checked_all_the_same() -> None:
    """Beside the bias term W u would be rounded away: the inputs of the check are larger."""
    torch.manual_seed(0)
    layers = [each for _ in range(7) for each in (nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    _, context = made(module, std=0.012)
    replay = context.beside["replay"].graph
    assert "transpose" in context.beside
    assert replay.outputs


def test_of_rectifiers_and_pools_the_map_is_the_derivative_and_of_others_not() -> None:
    """W has phi(a) / a, where a derivative has phi'(a)."""
    for activation, same in ((nn.ReLU(), True), (nn.GELU(), False)):
        module = nn.Sequential(nn.Conv2d(3, 2, 3), activation, nn.MaxPool2d(2), nn.Flatten())
        _, context = made(module)
        x = torch.randn(1, 3, SIDE, SIDE)
        found = evaluate.run(context.beside["record"], {"input": x.numpy()})
        decisions = {
            str(v.name): found[str(v.name)] for v in context.beside["replay"].graph.inputs[1:]
        }
        units = np.eye(x.numel(), dtype=np.float32).reshape(-1, 3, SIDE, SIDE)
        both = np.concatenate((np.zeros_like(units[:1]), units))
        mapped = next(
            iter(evaluate.run(context.beside["replay"], {"input": both, **decisions}).values())
        )
        jacobian = torch.func.jacrev(module)(x).detach()
        wanted = jacobian.reshape(mapped.shape[1], -1).T.numpy()
        assert np.allclose(mapped[1:] - mapped[:1], wanted, atol=1e-5) == same


class Squared(nn.Module):
    """No gate among two values that depend on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean(1, keepdim=True)


class Sorted(nn.Module):
    """An operator that has no form here."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(-1).values


class Rowwise(nn.Module):
    """Rows meet."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            nn.Sequential(Squared()),
            "multiplies two values that depend on the input, of which none is a gate",
        ),
        (nn.Sequential(Sorted()), "TopK .* has no affine form here"),
        (nn.Sequential(nn.Conv2d(3, 4, 2, 2), Attending()), "Attention .* has no affine form here"),
        (nn.Sequential(Rowwise()), r"in which rows do not stand alone along the first axis"),
    ],
)
def test_what_has_no_affine_form_is_refused_by_name(module: nn.Module, words: str) -> None:
    with pytest.raises(PassError, match=words):
        made(module)


def test_graphs_that_were_made_are_lowered_for_tensorrt_too(tmp_path: Path) -> None:
    """Transposed pools add to the places that were recorded, which TensorRT's scatters do not."""
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2))
    report = export(
        module, tmp_path / "b", dry_run=True, targets=["ort", "trt"],
        inputs={"input": torch.randn(2, 3, SIDE, SIDE)}, passes=["linear-interpreter"],
    )  # fmt: skip
    graphs = report.manifest.graphs
    assert list(graphs) == ["main", "record", "replay", "transpose"]
    assert all(set(graph.targets) == {"ort", "trt"} for graph in graphs.values())
    assert not any("TensorRT" in note for note in report.notes)
