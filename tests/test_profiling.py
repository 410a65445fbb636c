"""`intaglio.profile`: a bundle beside its source in PyTorch, and what is kept in the bundle."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import intaglio
from intaglio import models
from intaglio.errors import MissingExtraError
from intaglio.models import llama
from intaglio.runtime import Bundle, ProfileSettings
from intaglio.runtime.profile.report import Phase, ProfileReport
from intaglio.runtime.report_file import read_report

QUICK = ProfileSettings(
    contexts=[3], prompts=[5], threads=1, warmup=0, duration=0, iterations=2, ops=False
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    config = llama.Config(hidden_size=16, intermediate_size=24, num_layers=1)
    path = tmp_path_factory.mktemp("checkpoint") / "small.pt"
    models.save(path, "llama", config, models.find("llama").build(config))
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    path = checkpoint.parent / "bundle"
    intaglio.export(checkpoint, path, verify=False)
    return path


@pytest.fixture(scope="module")
def report(checkpoint: Path, bundle: Path) -> ProfileReport:
    return intaglio.profile(bundle, settings=QUICK, against=checkpoint)


def test_the_source_is_measured_beside_its_bundle(report: ProfileReport) -> None:
    """In the same phases, with the bundle's model, and with no state of its own to report."""
    ours, eager = report.measured

    assert (ours.kind, eager.kind) == ("bundle", "eager")
    assert torch.__version__.partition("+")[0] in eager.name
    assert eager.name.endswith(", no cache")
    assert [timing.phase for timing in eager.timings] == [Phase("prefill", 5), Phase("step", 3)]
    assert [ratio.name for ratio in report.ratios] == [eager.name] * 2
    assert eager.timings[0].states is None
    assert eager.weights is not None
    assert eager.peak is not None


def test_what_was_found_is_kept_in_the_bundle(report: ProfileReport, bundle: Path) -> None:
    """Its own figures alone: a bundle is passed on without those of others."""
    kept = read_report(Bundle.open(bundle))["profile"]

    assert [entry["name"] for entry in kept["measured"]] == ["bundle"]
    assert kept["measured"][0] == report.measured[0].to_json(report.percentiles)
    assert kept["ratios"] == []


def test_profiling_without_pytorch_says_what_is_missing(
    checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "intaglio.exporter.proving.eager", None)

    with pytest.raises(MissingExtraError, match="'export'"):
        intaglio.profile(bundle, settings=QUICK, against=checkpoint)


def test_profiling_loads_nothing_of_an_extra() -> None:
    """Neither here nor in the child."""
    code = (
        "import sys, intaglio, intaglio.runtime.profile.child; intaglio.profile;"
        "print(*sorted({'torch', 'onnx', 'onnx_ir', 'matplotlib'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)

    assert (run.returncode, run.stderr, run.stdout.strip()) == (0, "", "")
