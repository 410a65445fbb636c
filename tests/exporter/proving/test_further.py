"""Faults that hide beyond the first tokens are found, or what was not tried is said."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from intaglio.exporter.export import export
from intaglio.exporter.proving.coverage import Coverage
from intaglio.exporter.proving.parity import ParityReport
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source

VOCABULARY, STEPS = 200, 16
Place = Callable[[Tensor], Tensor]


class Positions(nn.Module):
    """Sums of tokens, beside what `place` makes of positions."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(4, 4)
        self.place = place

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        places = self.place(torch.arange(x.shape[1]))
        result: Tensor = self.head(x + 0.1 * x.cumsum(1).tanh() + places[:, None].sin())
        return result


def counted(i: Tensor) -> Tensor:
    return i * 0.1


def late(i: Tensor) -> Tensor:
    """Off by one from token 300 on."""
    return (i + (i >= 300)) * 0.1


def source_of(place: Place) -> Source:
    return load_source(Positions(place))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return export(
        Positions(counted), tmp_path_factory.mktemp("bundles") / "bundle", verify=False
    ).out


def covers(report: ParityReport) -> Coverage:
    assert report.covers is not None
    return report.covers


def test_a_fault_past_a_number_of_the_source_is_found(bundle: Path) -> None:
    """The bundle has no such number: the source is asked, not what passes made of it."""
    report = verify(bundle, source_of(late), steps=STEPS, keep=False)

    assert not report.passed
    assert report.worst.found.worst_step is not None
    assert report.worst.found.worst_step > 300


def test_a_value_that_no_trial_drew_is_said_and_drawn_if_asked(bundle: Path) -> None:
    source = source_of(counted)
    drawn = set(source.random_inputs(2, STEPS, 0)["input_ids"].flatten().tolist())
    hidden = next(i for i in range(VOCABULARY) if i not in drawn)
    with torch.no_grad():
        source.module.embed.weight[hidden] += 1  # type: ignore[index, operator, union-attr]
    same = next(iter(drawn))

    def always_the_same(sizes: Mapping[str, int], _seed: int) -> dict[str, Tensor]:
        return {"input_ids": torch.full((sizes["batch"], sizes["time"]), same)}

    source = replace(source, sample=always_the_same)
    first = verify(bundle, source, steps=STEPS, keep=False)

    assert first.passed
    assert f"{VOCABULARY - 1} of {VOCABULARY} values of 'input_ids' (--thorough)" in first.summary()
    thorough = verify(bundle, source, steps=STEPS, thorough=True, keep=False)
    assert not thorough.passed
    assert covers(thorough).drawn == {"input_ids": (VOCABULARY, VOCABULARY)}


def test_carried_sums_run_for_thousands_of_tokens(bundle: Path) -> None:
    report = verify(bundle, source_of(counted), steps=STEPS, keep=False)

    assert report.passed
    assert covers(report).tokens == 4096
    assert covers(report).rows
    assert covers(report).restored


class Neighbours(nn.Module):
    """Each row less the mean of all rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


def test_rows_that_depend_on_their_neighbours_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the proof that they stay apart would be wrong."""
    monkeypatch.setattr("intaglio.passes.exact.statefulize.check_rows", lambda _graph: None)
    inputs = {"x": torch.randn(2, 7, 3)}
    made = export(Neighbours(), tmp_path / "bundle", inputs=inputs, verify=False)
    report = verify(made.out, load_source(Neighbours(), inputs=inputs), steps=STEPS)

    assert {row.against for row in report.failures} == {"each row alone"}


def test_values_that_a_source_looks_for_occur(bundle: Path) -> None:
    """Separators of documents are rare among random tokens."""

    def separated(i: Tensor) -> Tensor:
        return counted(i)

    class Separated(Positions):
        def forward(self, input_ids: Tensor) -> Tensor:
            result: Tensor = super().forward(input_ids)
            return result + (input_ids == 123).unsqueeze(-1)

    report = verify(bundle, load_source(Separated(separated)), steps=STEPS, keep=False)

    assert not report.passed
    assert covers(report).compared == {}


def test_gaps_name_the_option_that_closes_them() -> None:
    found = Coverage(
        tokens=10,
        beyond=(600, 50),
        drawn={"ids": (3, 9)},
        compared={"ids": (7, 8)},
        unknown=("past.0.conv",),
        graphs=("encode",),
    )

    assert found.gaps() == [
        "positions past 50, 600, with which the graph computes them (--steps 602)",
        "the values 7, 8 of 'ids', which the graph looks for",
        "6 of 9 values of 'ids' (--thorough)",
        "the states past.0.conv beside the source, which has none such",
        "the portable graph",
        "the graphs encode",
    ]
    assert Coverage(tokens=10, portable=10).words() == ""
