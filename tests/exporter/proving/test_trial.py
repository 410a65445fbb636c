"""What a verification runs on: random inputs, or rows of the user's data."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import InputError, ParityError
from intaglio.exporter.export import export
from intaglio.exporter.proving.trial import draw
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.sources.calibration_data import read_calibration
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.models.training import held_out_text
from intaglio.runtime.bundle import Bundle
from intaglio.state import BATCH, TIME

MODELS = Path(__file__).parents[3] / "models"
TWO_BITS = ["rtn:bits=2,group=64"]


def sample(sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Token ids and floats [time, batch, 2], and a scale that has neither axis."""
    batch, time = sizes[BATCH], sizes[TIME]
    generator = torch.Generator().manual_seed(seed)
    return {
        "ids": torch.randint(256, (batch, time), generator=generator),
        "mel": torch.randn(time, batch, 2, generator=generator),
        "scale": torch.ones(3),
    }


def make_source() -> Source:
    return Source(
        path=Path("model.pt"),
        name="model.pt",
        format="test",
        sha256="",
        body=nn.Embedding(256, 2),
        dynamic={"ids": {0: BATCH, 1: TIME}, "mel": {0: TIME, 1: BATCH}, "scale": {}},
        sample=sample,
    )


def make_data(rows: int, steps: int) -> dict[str, Any]:
    """Rows that can be told apart: ids count rows, mel counts entries."""
    return {
        "ids": np.repeat(np.arange(rows)[:, None], steps, 1),
        "mel": np.arange(steps * rows * 2, dtype=np.float32).reshape(steps, rows, 2),
        "scale": np.array([1.0, 2.0, 3.0], np.float32),
    }


def test_rows_of_one_trial_have_conditions_of_equal_sizes(tmp_path: Path) -> None:
    """Files differ in them; the longest row decides, and is repeated where no other is alike."""

    def drawn(_sizes: Mapping[str, int], _seed: int) -> dict[str, Tensor]:
        return {"ids": torch.zeros(3, 7).long(), "memory": torch.zeros(3, 5, 2)}

    dynamic = {"ids": {0: BATCH, 1: TIME}, "memory": {0: BATCH, 1: "source"}}
    source = replace(make_source(), dynamic=dynamic, sample=drawn)
    for name, source_length, steps in (("a", 4, 9), ("b", 6, 8)):
        memory = np.full((2, source_length, 2), steps, np.float32)
        np.savez(tmp_path / f"{name}.npz", ids=np.zeros((2, steps), int), memory=memory)
    found = draw(source, 3, 20, tmp_path)

    assert {tuple(x.shape) for x in found.inputs.values()} <= {(3, 9), (3, 4, 2), (3, 8), (3, 6, 2)}
    assert len(set(found.inputs["memory"].flatten().tolist())) == 1


def test_without_data_inputs_are_random_and_always_the_same() -> None:
    first, again = draw(make_source(), 2, 5), draw(make_source(), 2, 5)

    assert (first.data, first.seed) == (None, 0)
    assert first.inputs["ids"].shape == (2, 5)
    assert torch.equal(first.inputs["mel"], again.inputs["mel"])


def test_rows_that_are_held_out_come_along_the_axes_of_each_input() -> None:
    """Of 16 rows in batches of 2 the last batch is held out: rows 14 and 15."""
    data = make_data(16, 9)
    found = draw(make_source(), 2, 6, data)

    assert found.steps == 6
    assert found.inputs["ids"].tolist() == [[14] * 6, [15] * 6]
    np.testing.assert_array_equal(found.inputs["mel"].numpy(), data["mel"][:6, 14:16])
    np.testing.assert_array_equal(found.inputs["scale"].numpy(), data["scale"])
    assert len(found.data or "") == 64


def test_the_longest_rows_are_taken_and_end_before_the_padding() -> None:
    data = make_data(16, 9) | {"lengths": np.array([9] * 14 + [4, 7])}

    assert draw(make_source(), 1, 99, data).inputs["ids"].tolist() == [[15] * 7]
    assert draw(make_source(), 2, 99, data).inputs["ids"].tolist() == [[15] * 4, [14] * 4]


def test_too_few_rows_are_repeated() -> None:
    found = draw(make_source(), 3, 2, make_data(1, 9))

    assert found.inputs["ids"].tolist() == [[0, 0]] * 3
    assert found.inputs["mel"].shape == (2, 3, 2)


def test_data_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="at most 5"):
        draw(make_source(), 2, 4, make_data(4, 9), max_context=5)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of the kind that the checkpoints were trained on, and none of it."""
    file = tmp_path_factory.mktemp("text") / "code.txt"
    file.write_bytes(bytes(held_out_text().numpy()))
    return file


def test_a_recurrent_model_of_two_bits_holds_on_text(tmp_path: Path, text: Path) -> None:
    """Random tokens bring its states near zero, where 8 bits of activations show, text seldom."""
    checkpoint, out = MODELS / "checkpoints" / "gla.pt", tmp_path / "bundle"
    options: dict[str, Any] = {"passes": TWO_BITS, "ort_accuracy": "fast", "steps": 96}
    with pytest.raises(ParityError, match=r"--ort-accuracy fine .* give some with --data"):
        export(checkpoint, tmp_path / "random", **options)
    report = export(checkpoint, out, data=text, **options)

    assert report.parity is not None
    assert report.parity.data is not None
    assert report.parity.seed is None
    assert "96 steps of 2 rows of the data" in report.parity.summary()
    assert Bundle.open(out).manifest.main.parity["data"] == report.parity.data
    assert not verify(out, checkpoint, steps=96).passed
    assert verify(out, checkpoint, steps=96, data=text).passed


def test_calibrated_exports_are_verified_on_what_they_were_calibrated_with(
    tmp_path: Path, text: Path
) -> None:
    checkpoint = MODELS / "checkpoints" / "llama_small.pt"
    calibrated = ["gptq:bits=2,group=64"]
    report = export(checkpoint, tmp_path / "bundle", passes=calibrated, calib=text, steps=64)

    assert report.parity is not None
    assert report.parity.data == read_calibration(text, load_source(checkpoint)).sha256
