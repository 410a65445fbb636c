"""Where activations of 8 bits alone fail parity, two parts of 8 bits are tried; nothing else is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from intaglio.cli import summary
from intaglio.cli.console import Console, Flags
from intaglio.errors import ParityError
from intaglio.exporter.export import ExportReport, export
from intaglio.exporter.proving.parity import OUTPUT, ParityReport, Row
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.runtime.compare import Deviation
from intaglio.runtime.manifest import Manifest

MODELS = Path(__file__).parents[2] / "models"
TWO_BITS = "rtn:bits=2,group=32"
BETWEEN = {"logits": 2e-3}  # what two parts of 8 bits keep, and one does not


class Net(nn.Module):
    """Token ids to logits, by two layers of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(16, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.head = nn.Linear(64, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [batch, time, 16]."""
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x).tanh()
        logits: Tensor = self.head(x)
        return logits


class Damage(Exact):
    """Claims to be exact and adds `value` to a bias."""

    value: str

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Change the head."""
        del context
        bias = model.graph.initializers["head.bias"]
        assert bias.const_value is not None
        bias.const_value = ir.tensor(
            (bias.const_value.numpy() + float(self.value)).astype(np.float32), name=bias.name
        )
        return PassResult(changed=True)


class Exporter:
    """Exports `Net` and counts how often a bundle is written."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "bundle"
        self.writes = 0

    def __call__(self, *passes: Any, **options: Any) -> ExportReport:
        """Export with a few steps."""
        ids = torch.zeros(2, 4, dtype=torch.int64)
        given: dict[str, Any] = {"inputs": {"input_ids": ids}, "steps": 9, **options}
        return export(Net(), self.out, passes=passes, progress=self._count, **given)

    def _count(self, phase: str, done: float | None) -> None:
        self.writes += phase == "write" and done is None


@pytest.fixture
def exporter(tmp_path: Path) -> Exporter:
    return Exporter(tmp_path)


def lowering(manifest: Manifest) -> Mapping[str, Any]:
    (record,) = (record for record in manifest.main.passes if record["name"] == "ort-low-bit")
    return record


def test_where_one_part_fails_the_bundle_has_two(
    exporter: Exporter, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest and the page say so; a line says what was measured and what keeps one part."""
    report = exporter(TWO_BITS, tolerance=BETWEEN)
    record = lowering(report.manifest)
    summary.show(Console(Flags()), report.manifest, "bundle", {})

    assert exporter.writes == 2
    assert report.parity is not None
    assert report.parity.passed
    assert (record["options"], record["details"]["accuracy"]) == ({"accuracy": "fine"}, "fine")
    assert report.manifest == Manifest.load(exporter.out / "manifest.json")
    assert report.manifest.recipe["ort_accuracy"] == "auto"
    assert "activations in two parts of 8 bits" in capsys.readouterr().out
    (line,) = (note for note in report.notes if "two parts of 8 bits" in note)
    assert line in record["notes"]
    assert "moved logits " in line
    assert "(limit 2e-03)" in line
    assert "times as long" in line
    assert "--ort-accuracy fast --tolerance logits=" in line


def test_the_line_s_own_options_keep_one_part(exporter: Exporter) -> None:
    """Its tolerance is not less than what was measured."""
    (line,) = (n for n in exporter(TWO_BITS, tolerance=BETWEEN).notes if "two parts of 8 bits" in n)
    name, _, value = line.rpartition("--tolerance ")[2].rstrip(".").partition("=")
    report = exporter(TWO_BITS, ort_accuracy="fast", tolerance={name: float(value)}, force=True)

    assert exporter.writes == 3
    assert lowering(report.manifest)["details"]["accuracy"] == "fast"


def test_what_is_finer_is_the_same_as_if_it_had_been_asked_for(
    exporter: Exporter, tmp_path: Path
) -> None:
    """No file of the first attempt is left."""
    exporter(TWO_BITS, tolerance=BETWEEN)
    asked = Exporter(tmp_path / "asked")
    asked(TWO_BITS, tolerance=BETWEEN, ort_accuracy="fine")

    assert (exporter.writes, asked.writes) == (2, 1)
    for name in ("model.onnx", "model.onnx.data", "ort/model.onnx"):
        assert (exporter.out / name).read_bytes() == (asked.out / name).read_bytes()
    assert {path.name for path in exporter.out.iterdir()} == {
        path.name for path in asked.out.iterdir()
    }


def test_what_holds_is_tried_once(exporter: Exporter) -> None:
    report = exporter(TWO_BITS)

    assert exporter.writes == 1
    assert lowering(report.manifest)["details"]["accuracy"] == "fast"


@pytest.mark.parametrize(
    ("passes", "options"),
    [
        ([TWO_BITS, Damage(value="nan")], {}),
        ([Damage(value="1")], {}),
        ([TWO_BITS], {"ort_accuracy": "fast", "tolerance": BETWEEN}),
        ([TWO_BITS], {"ort_accuracy": "fine", "tolerance": {"logits": 0.0}}),
        ([TWO_BITS], {"ort_accuracy": "exact", "tolerance": {"logits": 0.0}}),
    ],
    ids=["NaN", "no weights of few bits", "fast", "fine", "exact"],
)
def test_another_failure_is_tried_once(
    exporter: Exporter, passes: list[Any], options: dict[str, Any]
) -> None:
    """What finer rounding does not mend, or was not asked to."""
    with pytest.raises(ParityError):
        exporter(*passes, **options)
    assert exporter.writes == 1


def test_where_two_parts_fail_too_they_are_what_is_kept(exporter: Exporter) -> None:
    """It is not rounding that is wrong, and the message asks for the proof."""
    with pytest.raises(ParityError, match=r"in two parts of 8 bits: .* --ort-accuracy exact"):
        exporter(TWO_BITS, Damage(value="1"))

    assert exporter.writes == 2
    failed = Manifest.load(exporter.out.with_name("bundle.failed") / "manifest.json")
    assert lowering(failed)["details"]["accuracy"] == "fine"


@pytest.mark.parametrize("accuracy", ["fast", "mixed", "fine", "exact", None])
@pytest.mark.parametrize("errors", [(0.0,), (0.1,), (0.1, 0.0), (0.1, float("nan"))])
def test_only_one_part_of_8_bits_is_too_coarse(
    accuracy: str | None, errors: tuple[float, ...]
) -> None:
    """And only if what fails is a number."""
    rows = [
        Row(
            kind=OUTPUT,
            module="",
            split="1 x 1",
            against="source",
            found=Deviation(
                name=f"y{index}",
                error=error,
                limit=2e-2,
                difference=error,
                reference=1.0,
                worst_step=1,
                steps=1,
            ),
        )
        for index, error in enumerate(errors)
    ]
    report = ParityReport(
        against="a",
        precision="float64",
        steps=1,
        batch=1,
        seed=0,
        splits=("1 x 1",),
        rows=rows,
        accuracy=accuracy,
    )
    wanted = accuracy in ("fast", "mixed") and errors in ((0.1,), (0.1, 0.0))
    assert report.too_coarse is wanted


@pytest.mark.parametrize("name", ["llama", "gated_deltanet", "gla"])
def test_trained_checkpoints_of_two_bits_pass_by_default(name: str, tmp_path: Path) -> None:
    """On random tokens, where the recurrent ones do not with activations of 8 bits."""
    source, out = MODELS / "checkpoints" / f"{name}.pt", tmp_path / "bundle"
    report = export(source, out, passes=["rtn:bits=2,group=64"], steps=64)

    assert report.parity is not None
    assert report.parity.passed
    lowered = [row for row in report.parity.rows if not row.split.endswith("in model.onnx")]
    limits = {row.found.name: row.found.limit for row in lowered}
    assert (limits["logits"], limits["logits.kl"]) == (2e-2, 1e-3)
    assert limits["logits.quantization"] == 0.75
    portable = {row.found.limit for row in report.parity.rows} - {
        row.found.limit for row in lowered
    }
    assert portable <= {1e-4}
    wanted = "fast" if name == "llama" else "fine"
    assert lowering(report.manifest)["details"]["accuracy"] == wanted
