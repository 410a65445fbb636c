"""Programs of torch.export: exported with free batch and time, else refused with the way out."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source


def test_a_program_becomes_a_bundle_with_the_paths_of_its_modules(
    exported: Path, tmp_path: Path
) -> None:
    """Its own bound on time is kept, and its states are compared with one prefill."""
    report = export(exported / "free.pt2", tmp_path / "bundle", allow_pickle=True, steps=20)

    assert report.parity is not None
    assert report.parity.passed
    assert report.manifest.source["format"] == "torch.export"
    assert report.manifest.main.limits.max_context == 40
    assert [spec.name for spec in report.manifest.main.outputs] == ["logits"]
    assert {spec.module for spec in report.manifest.main.states} == {"layers.0"}
    assert set(report.parity.unknown) == {spec.input for spec in report.manifest.main.states}
    assert "2 states were compared with one call of all tokens" in report.parity.summary()


def test_reading_a_program_needs_the_consent_that_a_pickle_needs(exported: Path) -> None:
    """PyTorch's reader evaluates text of the file, whatever the file is called."""
    with pytest.raises(SourceError, match=r"run any code .*--allow-pickle"):
        load_source(exported / "free.pt2")


def test_a_program_of_fixed_sizes_says_how_to_save_it(exported: Path) -> None:
    with pytest.raises(SourceError, match=r"batch of the input 'input_ids' was fixed to 2.*Dim"):
        load_source(exported / "fixed.pt2", allow_pickle=True)


def test_a_program_in_memory_with_another_layout_takes_its_axes(tmp_path: Path) -> None:
    """And stays as it was: it still takes its arguments by position."""
    program = torch.export.export(
        nn.Conv1d(3, 5, 1).eval(),
        (torch.ones(2, 3, 7),),
        dynamic_shapes=({0: Dim("b"), 2: Dim("t")},),
    )

    assert load_source(program).dynamic == {"input": {0: "batch", 2: "time"}}
    with pytest.raises(OptionError, match="--model says nothing about an exported program"):
        load_source(program, model="llama")
    axes = {"input": ("batch", 3, "time")}
    report = export(program, tmp_path / "bundle", axes=axes, steps=5)

    assert report.parity is not None
    assert report.parity.passed
    assert program.module()(torch.ones(2, 3, 4)).shape == (2, 5, 4)


def test_a_damaged_program_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.pt2").write_bytes(b"PK\x03\x04" + bytes(60))

    with pytest.raises(SourceError, match="cannot be read as an exported program"):
        load_source(tmp_path / "broken.pt2", allow_pickle=True)
    good = torch.export.export(nn.Linear(2, 2), (torch.ones(2, 2),))
    torch.export.save(good, tmp_path / "good.pt2")
    data = (tmp_path / "good.pt2").read_bytes()
    (tmp_path / "directory.pt2").write_bytes(data.replace(b"PK\x01\x02", b"PK\x01\x09"))

    with pytest.raises(SourceError, match="truncated or damaged"):
        load_source(tmp_path / "directory.pt2", allow_pickle=True)
