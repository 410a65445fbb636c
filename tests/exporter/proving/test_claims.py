"""A manifest that was edited makes no verification easier: each way is refused, or is of no use."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import BundleError, IntaglioError
from intaglio.exporter.export import export
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.passes.exact.fold_constants import FoldConstants
from intaglio.runtime.manifest import FileRecord

WIDTH, STEPS = 32, 12
Entry = dict[str, Any]


class Net(nn.Module):
    """A convolution and a sum that are carried, between projections."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH, padding=2)
        self.norm = nn.LayerNorm(WIDTH)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        result: Tensor = self.last(self.norm(y))
        return result


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(0)
    return load_source(Net(), inputs={"x": torch.randn(2, 5, WIDTH)})


@pytest.fixture(scope="module")
def plain(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("claims") / "plain"
    return export(source, out, passes=[FoldConstants(limit=9)], verify=False).out


@pytest.fixture(scope="module")
def low_bit(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("claims") / "low_bit"
    passes = ["rtn:bits=4,group=32"]
    return export(source, out, passes=passes, verify=False).out


def edited(bundle: Path, place: Path, change: Callable[[Entry], object]) -> Path:
    """A copy of `bundle` whose manifest says something else of its graph, of the same files."""
    shutil.copytree(bundle, place)
    entry = json.loads((place / "manifest.json").read_text())
    change(entry["graphs"]["main"])
    for name in entry["files"]:
        record = FileRecord.of(place / name)
        entry["files"][name] = {"sha256": record.sha256, "bytes": record.bytes}
    (place / "manifest.json").write_text(json.dumps(entry))
    return place


def perturb(place: Path, *graphs: str, by: float = 5e-3) -> None:
    """Change a float vector of some graphs of a bundle by a little: the last bias."""
    for name in graphs:
        model = onnx.load(place / name, load_external_data=False)
        (bias,) = (t for t in model.graph.initializer if t.name == "last.bias")
        bias.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + by, bias.name)
        )
        (place / name).write_bytes(model.SerializeToString())


def claim_low_bits(entry: Entry) -> None:
    """That the graph for ONNX Runtime rounds activations, which it does not."""
    record = dict(next(each for each in entry["passes"] if each["name"] == "ort-low-bit"))
    record |= {"changed": True, "details": {"accuracy": "fast"}}
    entry["passes"] = [record if e["name"] == "ort-low-bit" else e for e in entry["passes"]]


def claim_tuned(*names: str) -> Callable[[Entry], None]:
    def claim(entry: Entry) -> None:
        entry["passes"][0]["details"]["tuned"] = list(names)

    return claim


def test_honest_bundles_pass(plain: Path, low_bit: Path, source: Source) -> None:
    """Both graphs of each; what is not tried is said."""
    for bundle in (plain, low_bit):
        report = verify(bundle, source, steps=STEPS, keep=False)
        assert report.passed, report.summary()
        assert report.covers is not None
        assert (report.covers.portable, report.covers.unknown) == (STEPS, ())
        assert any("in model.onnx" in row.split for row in report.rows)


def test_a_claimed_lowering_raises_no_limit(plain: Path, source: Source, tmp_path: Path) -> None:
    """Limits follow from the graph: an error of a hundredth fails where nothing is rounded."""
    place = edited(plain, tmp_path / "bundle", claim_low_bits)
    perturb(place, "ort/model.onnx", by=2e-2)
    place = edited(place, tmp_path / "again", lambda _: None)

    report = verify(place, source, steps=STEPS, keep=False)
    assert not report.passed
    assert {row.found.limit for row in report.rows} == {1e-4}


def test_a_claimed_dtype_raises_no_limit(plain: Path, source: Source, tmp_path: Path) -> None:
    """Of a target, whose states are then no longer those of the graph, or are."""

    def claim(entry: Entry) -> None:
        entry["targets"]["ort"]["dtype"] = "float16"

    place = edited(plain, tmp_path / "bundle", claim)
    with pytest.raises(BundleError, match="manifest says float16"):
        verify(place, source, steps=STEPS, keep=False)


def test_tuned_matrices_are_refused_and_names_alone_change_nothing(
    plain: Path, low_bit: Path, source: Source, tmp_path: Path
) -> None:
    """A name would put the bundle's weights in place of the source's."""
    place = edited(plain, tmp_path / "plain", claim_tuned("last.bias"))
    perturb(place, "model.onnx", "ort/model.onnx")
    place = edited(place, tmp_path / "again", lambda _: None)
    assert not verify(place, source, steps=STEPS, keep=False).passed

    matrix = edited(low_bit, tmp_path / "matrix", claim_tuned("conv.weight"))
    with pytest.raises(BundleError, match=r"tuned 'conv\.weight', a matrix"):
        verify(matrix, source, steps=STEPS, keep=False)


def test_weights_of_another_model_are_not_called_quantization(
    low_bit: Path, source: Source
) -> None:
    """A bundle of other weights in few bits computes what its own, dequantized, do."""
    module: Any = copy.deepcopy(source.module)
    other = replace(source, body=module)
    with torch.no_grad():
        for weight in (module.first.weight, module.last.weight):
            weight.copy_(torch.randn(WIDTH, WIDTH) * weight.std())

    report = verify(low_bit, other, steps=STEPS, keep=False)
    assert not report.passed
    assert "Quantization moved" in report.summary()
    assert "--tolerance output.quantization=VALUE" in report.summary()
    accepted = verify(
        low_bit, other, steps=STEPS, keep=False, tolerance={"output.quantization": 9.0}
    )
    failed = {row.kind for row in accepted.failures}
    assert "what the new weights moved," not in failed


@pytest.mark.parametrize(
    "claim",
    [
        {"module": "elsewhere"},
        {"op": "recurrence"},
        {"call": 7},
        {"module": "elsewhere", "op": "cumulative_sum", "port": "sum"},
    ],
)
def test_states_that_are_renamed_are_found_by_what_they_hold(
    plain: Path, source: Source, tmp_path: Path, claim: Entry
) -> None:
    """And compared with the source all the same."""
    place = edited(plain, tmp_path / "bundle", lambda e: e["states"][0].update(claim))

    report = verify(place, source, steps=STEPS, keep=False)
    assert report.passed
    assert report.unknown == ()
    states = [row for row in report.rows if row.kind == "state"]
    assert {(row.module, row.against) for row in states} == {("conv", "source")}


def test_a_renamed_state_that_is_wrong_fails(
    plain: Path, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the operator that it says, it is held to the call that no state claims."""
    place = edited(plain, tmp_path / "bundle", lambda e: e["states"][0].update(module="elsewhere"))
    monkeypatch.setattr(
        "intaglio.exporter.proving.caught_calls._Convolution.state",
        lambda self, _, tokens: self.inputs[..., tokens : tokens + self.reach] + 1,
    )

    assert not verify(place, source, steps=STEPS, keep=False).passed


def test_a_context_that_ends_early_is_no_fewer_steps(
    plain: Path, source: Source, tmp_path: Path
) -> None:
    """The source takes more: unless that was asked for, one step proves nothing."""
    place = edited(plain, tmp_path / "bundle", lambda e: e["limits"].update(max_context=1))

    with pytest.raises(BundleError, match=r"at most 1 tokens.*--steps 1"):
        verify(place, source, steps=STEPS, keep=False)
    assert verify(place, source, steps=1, keep=False).steps == 1


def test_a_graph_of_whole_sequences_is_not_what_a_manifest_makes_it(
    plain: Path, source: Source, tmp_path: Path
) -> None:
    """It would run in one split."""
    place = edited(plain, tmp_path / "bundle", lambda e: e.update(whole=True))

    with pytest.raises(IntaglioError, match=r"whole sequences|valid manifest"):
        verify(place, source, steps=STEPS, keep=False)


def test_the_portable_graph_is_run(plain: Path, source: Source, tmp_path: Path) -> None:
    """Other runtimes take it, and a session never does."""
    place = edited(plain, tmp_path / "bundle", lambda _: None)
    perturb(place, "model.onnx")
    place = edited(place, tmp_path / "again", lambda _: None)

    report = verify(place, source, steps=STEPS, keep=False)
    assert {row.split for row in report.failures} == {"2 x 6 in model.onnx"}


def test_without_a_portable_graph_that_is_said(source: Source, tmp_path: Path) -> None:
    out = export(source, tmp_path / "bundle", portable=False, verify=False).out

    report = verify(out, source, steps=STEPS, keep=False)
    assert report.covers is not None
    assert "the portable graph" in report.covers.gaps()
    assert np.isfinite(report.worst.found.error)


class TwoRates(nn.Module):
    """Of the first convolution, which moves by two, the source tells no state."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.conv = nn.Conv1d(4, 4, 4, stride=2), nn.Conv1d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(torch.nn.functional.pad(x, (2, 0)))
        result: Tensor = self.conv(torch.nn.functional.pad(y, (2, 0)))
        return result


def test_a_state_that_no_call_tells_is_not_held_to_another_of_its_kind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = export(
        TwoRates(),
        tmp_path / "bundle",
        inputs={"x": torch.randn(2, 4, 20)},
        axes={"x": ["batch", 4, "time"]},
        steps=STEPS,
    )
    assert report.parity is not None
    told = {row.module for row in report.parity.rows if row.kind == "state"}
    assert "conv" in told
    assert [spec.module for spec in report.manifest.main.states] == ["down", "conv"]
