"""Convolutions with kernels of exponentials, or with tables that few states realise, are steps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, fft, nn

import intaglio
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.causal_convolution import INVERSES, FourierConvolution
from intaglio.exporter.tracing.exponentials import LagReader
from intaglio.exporter.tracing.fold_weights import in_double
from intaglio.exporter.tracing.kernel_forms import LagSum
from intaglio.exporter.tracing.realisation import ERROR, Matrices, Poles, realise
from intaglio.exporter.tracing.trace import trace

SIZE, STATES, MOST = 3, 4, 64

Kernel = Callable[["Convolved", Tensor], Tensor]


class Convolved(nn.Module):
    """x [B, T, SIZE] convolved with a kernel [.., SIZE, T] that is computed from weights."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.rate, self.turn, self.weight = (
            nn.Parameter(torch.rand(SIZE, STATES) + 0.1) for _ in range(3)
        )
        self.table = nn.Parameter(_dying(0.05).float())
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        u, n = x.mT, 2 * x.shape[1]
        k = self.kernel(self, torch.arange(x.shape[1]))
        y: Tensor = fft.irfft(fft.rfft(u, n=n) * fft.rfft(k, n=n), n=n)[..., : x.shape[1]]
        return y.mT


def _decays(m: Convolved, lag: Tensor) -> Tensor:
    q = 1 - torch.sigmoid(m.rate)
    powers = torch.exp(lag.to(q).view(1, 1, lag.shape[0]) * torch.log(q)[..., None])
    kernel: Tensor = torch.einsum("dnl,dn->dl", powers, m.weight / 2)
    return kernel


def _poles(m: Convolved, lag: Tensor) -> Tensor:
    rate = torch.complex(-m.rate, m.turn)
    weight = torch.complex(m.weight, m.turn) * (torch.exp(rate) - 1.0) / rate
    return 2 * torch.einsum("hn, hnl -> hl", weight, torch.exp(rate[..., None] * lag)).real


def _vandermonde(m: Convolved, lag: Tensor) -> Tensor:
    return (m.weight[:, None] @ torch.sigmoid(m.rate)[..., None].pow(lag)).squeeze(1)


def _waves(m: Convolved, lag: Tensor) -> Tensor:
    fading = torch.exp(-m.rate[..., None] * (lag + 1))
    waves = torch.cos(m.turn[..., None] * lag) + torch.sin(lag * m.weight[..., None]) / 3
    return 0.5 - (waves * fading).sum(1)


def _polar(m: Convolved, lag: Tensor) -> Tensor:
    angle = m.turn[..., None] * lag
    found = torch.polar(torch.exp(-m.rate[..., None] * lag), angle).permute(1, 0, 2).sum(0)
    return found.imag - found.real


@pytest.mark.parametrize("kernel", [_decays, _poles, _vandermonde, _waves, _polar])
def test_what_is_read_of_a_kernel_is_the_kernel(kernel: Kernel) -> None:
    """Re sum of weight ratio^l at every lag, in float64."""
    torch.manual_seed(0)
    module = Convolved(kernel)
    shapes = ({1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(module, (torch.randn(2, 9, SIZE),), dynamic_shapes=shapes)
    inverse = next(node for node in program.graph.nodes if node.target in INVERSES)
    found = FourierConvolution.of(inverse)
    assert found is not None
    read = LagReader(program, found.length, lambda n: in_double(program, n)).of(found.factors[1])
    lag = torch.arange(7)
    assert isinstance(read, LagSum)
    values = (read.weight * read.ratio ** lag[:, None]).sum(-1)
    wanted = kernel(module.double(), lag)
    torch.testing.assert_close(values.real, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "states"), [(_decays, STATES), (_poles, 2 * STATES), (_waves, 4 * STATES + 2)]
)
def test_a_kernel_of_exponentials_is_a_state_of_fixed_size(
    kernel: Kernel, states: int, tmp_path: Path
) -> None:
    """Verified token by token, in parts and rows of unequal length against float64."""
    torch.manual_seed(0)
    report = intaglio.export(
        Convolved(kernel), tmp_path / "out", inputs={"x": torch.randn(2, 9, SIZE)}, steps=40
    )
    (state,) = report.manifest.main.states
    assert state.shape == ("batch", SIZE, states)


def test_a_table_that_few_states_realise_is_carried_as_these(tmp_path: Path) -> None:
    """A table of three dying waves is three pairs of poles; the note says how far off it is."""
    torch.manual_seed(0)
    module = Convolved(lambda m, lag: m.table[:, : lag.shape[0]])
    report = intaglio.export(
        module,
        tmp_path / "out",
        inputs={"x": torch.randn(2, 9, SIZE)},
        axes={"x": f"batchxtime=..{MOST}x{SIZE}"},
        steps=40,
    )
    (state,) = report.manifest.main.states
    assert state.shape == ("batch", SIZE, 6)
    assert report.manifest.main.limits.max_context == MOST
    assert any("summed over all positions" in note for note in report.notes)


def _dying(rate: float) -> Tensor:
    lag = torch.arange(MOST, dtype=torch.float64)
    turn = torch.linspace(0.3, 2.5, 3)[:, None]
    waves = torch.cos(turn * lag + torch.arange(SIZE)[:, None, None]) * torch.exp(-rate * lag)
    return waves.sum(1)


def test_noise_is_realised_by_no_small_system() -> None:
    """Half as many states as positions would be needed: the inputs are kept instead."""
    torch.manual_seed(0)
    assert realise(torch.randn(2, MOST, dtype=torch.float64)) is None
    assert realise(torch.zeros(2, MOST, dtype=torch.float64)) is None


@pytest.mark.parametrize("basis", ["legs", "waves", "few and many"])
def test_a_realisation_is_right_at_every_position(basis: str) -> None:
    """Poles where they are well conditioned, else matrices, both as fp32 holds them.

    A channel may need more states than the one before, or fewer.
    """
    legs, few = _legendre(512), 0.9 ** torch.arange(512, dtype=torch.float64)[None]
    tables = {"legs": legs, "waves": _dying(0.01), "few and many": torch.cat((few, legs, few))}
    table = tables[basis]
    found = realise(table)
    assert found is not None
    assert isinstance(found.system, Poles if basis == "waves" else Matrices)
    response = np.array([_response(found.system, row, table.shape[1]) for row in range(len(table))])
    off = np.abs(response - table.numpy()).sum(1) / np.abs(table.numpy()).sum(1)
    assert off.max() <= found.error * 1.001 + 1e-12
    assert found.error <= ERROR


def _legendre(length: int) -> Tensor:
    """Impulse responses of LegS with 32 states, whose eigenvectors are all but parallel."""
    n = np.arange(32.0)
    A = -np.where(n[:, None] > n, np.sqrt(np.outer(2 * n + 1, 2 * n + 1)), 0) - np.diag(n + 1)
    generator = np.random.default_rng(0)
    rows = []
    for dt in (0.01, 0.1):
        left, right = np.eye(32) - dt / 2 * A, np.eye(32) + dt / 2 * A
        x, C = np.linalg.solve(left, dt * np.sqrt(2 * n + 1)), generator.standard_normal(32)
        row = []
        for _ in range(length):
            row.append(C @ x)
            x = np.linalg.solve(left, right @ x)
        rows.append(row)
    return torch.tensor(np.array(rows))


def _response(system: Poles | Matrices, row: int, length: int) -> npt.NDArray[np.float64]:
    """What a step as fp32 holds it gives for an impulse, token by token in float64."""
    if isinstance(system, Poles):
        ratio = 1 + (system.ratio[row] - 1).to(torch.complex64).to(torch.complex128)
        weight = system.weight[row].to(torch.complex64).to(torch.complex128)
        return (weight * ratio ** torch.arange(length)[:, None]).sum(-1).real.numpy()
    still = torch.eye(system.entry.shape[-1], dtype=torch.float64)
    step = still + (system.matrix[row] - still).float().double()
    x, found = system.entry[row].float().double(), []
    for _ in range(length):
        found.append(float(system.read[row].float().double() @ x))
        x = step @ x
    return np.array(found)


def test_a_kernel_that_is_no_sum_of_exponentials_keeps_its_cache() -> None:
    """A Gaussian in the lag; and one that data flows into is refused elsewhere."""
    torch.manual_seed(0)
    module = Convolved(lambda m, lag: torch.exp(-m.rate[:, :1] * lag * lag))
    traced = trace(load_source(module, inputs={"x": torch.randn(2, 9, SIZE)}))
    assert not [node for node in traced.model.graph if node.op_type in ("Scan", "DiagonalSSM")]


class Implicit(nn.Module):
    """Filters that a small network makes of places in tables (Hyena), with Fourier norms."""

    def __init__(self, norm: str | None) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("places", torch.randn(1, MOST + 3, 5))
        self.register_buffer("fade", torch.linspace(0, 3, MOST)[None, :, None])
        self.net = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        time = x.shape[1]
        places, fade = self.get_buffer("places"), self.get_buffer("fade")
        k = (self.net(places[:, :time]) * torch.exp(-fade[:, :time]))[0].T
        n, norm = 2 * time, self.norm
        product = fft.rfft(x.mT, n=n) * fft.rfft(k, n=n)
        if norm == "forward":
            product = product / n
        if norm == "ortho":
            product = fft.rfft(x.mT, n=n, norm=norm) * fft.rfft(k, n=n)
        y: Tensor = fft.irfft(product, n=n, norm=norm)[..., :time]
        return y.mT


@pytest.mark.parametrize("norm", [None, "forward", "ortho"])
def test_filters_that_a_network_makes_of_tables_are_tables(
    norm: str | None, tmp_path: Path
) -> None:
    """Its inputs are kept, as many as the shorter of the tables has entries."""
    torch.manual_seed(0)
    report = intaglio.export(
        Implicit(norm), tmp_path / "out", inputs={"x": torch.randn(2, 9, SIZE)}, steps=MOST
    )
    assert report.manifest.main.limits.max_context == MOST
    assert not report.manifest.main.whole
    assert report.parity is not None
    assert report.parity.passed


class OtherNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time = x.shape[1]
        found = fft.rfft(x, n=2 * time, dim=1).square()
        y: Tensor = fft.irfft(found * found, n=2 * time, dim=1, norm="ortho")[:, :time]
        product = fft.rfft(x, n=2 * time, dim=1) * fft.rfft(y, n=2 * time, dim=1)
        z: Tensor = fft.irfft(product, n=2 * time, dim=1, norm="ortho")[:, :time]
        return z


def test_a_norm_of_another_length_is_no_convolution() -> None:
    """It is one divided by a root of its length, which grows."""
    shapes = ({1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(OtherNorm(), (torch.randn(2, 9, SIZE),), dynamic_shapes=shapes)
    inverses = [node for node in program.graph.nodes if node.target in INVERSES]
    assert [FourierConvolution.of(inverse) for inverse in inverses] == [None, None]


class AlongTime(nn.Module):
    """Transforms along time where it is, of a kernel [T, SIZE] of powers without rows."""

    def __init__(self, dim: int, rows: bool) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(SIZE) / 2 + 0.4)
        self.dim, self.rows = dim, rows

    def forward(self, x: Tensor) -> Tensor:
        time = x.shape[1]
        k = self.decay ** torch.arange(time)[:, None]
        k = k[None] if self.rows else k
        n = 2 * time
        product = fft.rfft(x, n=n, dim=1) * fft.rfft(k, n=n, dim=self.dim)
        y: Tensor = fft.irfft(product, n=n, dim=1)[:, :time]
        return y


@pytest.mark.parametrize(("dim", "rows"), [(0, False), (-2, False), (1, True)])
def test_time_may_be_any_axis_of_the_kernel(dim: int, rows: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = intaglio.export(
        AlongTime(dim, rows), tmp_path / "out", inputs={"x": torch.randn(2, 9, SIZE)}, steps=40
    )
    (state,) = report.manifest.main.states
    assert state.shape == ("batch", SIZE, 1)
