"""What depends on weights alone is computed once; what a parameter is named by stays."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import TraceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.fold_weights import fold_weights
from intaglio.exporter.tracing.trace import Traced, trace
from intaglio.graph_keys import FOLDED
from intaglio.passes.graph import constant

SIZE = 4
Compute = Callable[..., Tensor]


class Net(nn.Module):
    """`compute` of a signal [B, T, 4] and two weights, within a module called `part`."""

    def __init__(self, compute: Compute, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.part = Part(compute)
        with torch.no_grad():
            self.part.a.mul_(scale)

    def forward(self, signal: Tensor) -> Tensor:
        found: Tensor = self.part(signal)
        return found


class Part(nn.Module):
    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(SIZE, SIZE)) for _ in range(2))
        self.compute = compute

    def forward(self, signal: Tensor) -> Tensor:
        return self.compute(signal, self.a, self.b)


INPUTS = {"signal": torch.randn(2, 7, SIZE)}

COMPUTED = {
    "exponential": lambda x, a, b: x @ torch.matrix_exp(a - b),
    "inverse": lambda x, a, b: x @ torch.linalg.inv(a + 9 * torch.eye(SIZE)) + b[0],
    "with a number": lambda x, a, b: x @ torch.linalg.inv(a + torch.tensor(9.0) * b) + b[0],
    "written in place": lambda x, a, b: x @ torch.linalg.inv(a.clone().add_(9 * b)),
    "factors": lambda x, a, b: x @ (a[:, :2] @ b[:2]),
    "values of a decomposition": lambda x, a, b: x * torch.linalg.eigvalsh(a @ a.mT) + b[0],
    "complex on the way": lambda x, a, b: x * torch.linalg.eigvals(a).abs() + b[0],
    "normalised": lambda x, a, b: x @ (a / a.norm(dim=1, keepdim=True)) + b[0],
    "masked": lambda x, a, b: x @ (a * b),
    "a kernel": lambda x, a, b: F.conv1d(
        F.pad(x.mT, (1, 0)), torch.fft.irfft(torch.fft.rfft(a, n=2), n=2)[:, None], groups=SIZE
    ).mT + b[0],
}  # fmt: skip


def traced(compute: Compute, scale: float = 1.0) -> Traced:
    return trace(load_source(Net(compute, scale), inputs=INPUTS))


def folded(found: Traced) -> list[str]:
    values = found.model.graph.initializers
    return [name for name, value in values.items() if FOLDED in value.metadata_props]


def test_numbers_written_in_forward_do_not_cost_another_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch writes `detach_` after each `torch.tensor`, which changes no value."""
    net = Net(lambda x, a, b: x @ a * torch.tensor(2.0) + b[0])
    program = torch.export.export(net, (), INPUTS)
    assert any("detach_" in str(node.target) for node in program.graph.nodes)
    monkeypatch.delattr(torch.export.ExportedProgram, "run_decompositions")
    assert fold_weights(program) == (program, {})


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_of_weights_is_a_weight_named_after_its_module(name: str) -> None:
    """Traces are compared with their module, so that the value is right as well."""
    found = traced(COMPUTED[name])

    assert len(folded(found)) == 1
    assert folded(found)[0].startswith("part.")
    assert any(note.startswith(f"{folded(found)[0]} is computed once, of ") for note in found.notes)


KEPT = {
    "viewed": lambda x, a, b: x @ a.mT + b.reshape(-1)[:SIZE],
    "mapped": lambda x, a, b: x * -a[0].exp() + F.softplus(b[0]) * 2,
    "joined": lambda x, a, b: x @ torch.cat([a, b], 1)[:, :SIZE],
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_viewed_or_mapped_alone_keeps_the_name_of_the_parameter(name: str) -> None:
    found = traced(KEPT[name])

    assert folded(found) == []
    assert {"part.a", "part.b"} <= found.model.graph.initializers.keys()


def test_values_are_those_of_float64() -> None:
    """Rounded once, at the end."""
    net = Net(lambda x, a, b: x * (a @ b).sum())
    a, b = net.part.a.detach().double(), net.part.b.detach().double()
    found = trace(load_source(net, inputs=INPUTS))
    value = constant(found.model.graph.initializers[folded(found)[0]])

    assert value is not None
    assert float(value) == float((a @ b).sum().float())


def test_a_matrix_without_an_inverse_is_told_with_its_module() -> None:
    with pytest.raises(TraceError, match=r"In module 'part', .* singular"):
        traced(lambda x, a, b: x @ torch.linalg.inv(a) + b[0], scale=0.0)


def test_random_numbers_are_not_frozen() -> None:
    with pytest.raises(TraceError, match="draws random numbers"):
        traced(lambda x, a, b: x @ (a @ torch.rand(SIZE, SIZE)) + b[0])


def test_a_bundle_of_such_a_module_holds_parity(tmp_path: Path) -> None:
    report = export(Net(COMPUTED["exponential"]), tmp_path / "bundle", inputs=INPUTS, steps=16)

    assert report.parity is not None
    assert report.parity.passed
