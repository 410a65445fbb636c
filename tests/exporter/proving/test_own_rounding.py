"""A source whose rounding grows is far from itself, and a failure says so."""

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.exporter.proving.own_rounding import own_rounding
from intaglio.exporter.proving.parity import OUTPUT, ParityReport, Row
from intaglio.exporter.proving.reference import reference
from intaglio.exporter.sources.load import load_source
from intaglio.runtime.compare import Deviation

TOKENS = 80


class Map(nn.Module):
    """The logistic map, which is chaotic from a rate of 3.57 on."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([rate]))

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.sigmoid(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.rate * h * (1 - h) + 0 * x[:, t]
            out.append(h)
        return torch.stack(out, 1)


def rounding(rate: float) -> dict[str, float]:
    source = load_source(Map(rate), inputs={"x": np.zeros((2, 5, 1), np.float32)})
    inputs = {"x": torch.linspace(0, 1, 2 * TOKENS).reshape(2, TOKENS, 1)}
    return own_rounding(source, inputs, reference(source, inputs, states=False).outputs)


def test_rounding_grows_where_differences_do() -> None:
    assert rounding(2.0)["output"] < 1e-6
    assert rounding(3.9)["output"] > 0.1


def report(rounding: dict[str, float]) -> ParityReport:
    found = Deviation(
        name="output", error=0.5, limit=1e-4, difference=0.5, reference=1.0, worst_step=70, steps=80
    )
    row = Row(kind=OUTPUT, module="", split="80 x 1", against="Map", found=found)
    return ParityReport(
        against="Map", precision="float64", steps=80, batch=2, seed=0, splits=("80 x 1",),
        rows=[row], rounding=rounding,
    )  # fmt: skip


def test_a_failure_says_that_rounding_alone_fails_as_well() -> None:
    """And what to type; below the limit it is no reason."""
    said = report({"output": 0.25}).summary()

    assert "Rounding alone takes the source itself 2.5e-01 from its own output 'output'" in said
    assert "--tolerance output=VALUE" in said
    assert "Rounding alone" not in report({"output": 5e-5}).summary()


class Gated(nn.Module):
    """Sums whose decay is divided out before, and multiplied in again behind."""

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.cumsum(torch.ones_like(x), 1)
        return torch.exp(-gates) * torch.cumsum(torch.exp(gates) * x, 1)


def test_what_overflows_in_the_source_itself_is_told_as_that() -> None:
    """Finite in float64 alone; a difference within the exponent is what helps."""
    source = load_source(Gated(), inputs={"x": np.zeros((2, 5, 1), np.float32)})
    inputs = {"x": torch.ones(1, 100, 1)}
    found = own_rounding(source, inputs, reference(source, inputs, states=False).outputs)

    assert found == {"output": float("inf")}
    assert "overflows, as the exponential of a sum" in report(found).summary()
