"""Modules with inputs that are given once, from the module to the bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from intaglio.cli import commands  # noqa: F401  importing it adds the commands to the app
from intaglio.cli.frame import app
from intaglio.errors import OptionError
from intaglio.exporter.export import export
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.sources.load import load_source
from intaglio.runtime.bundle import Bundle


class Captioner(nn.Module):
    """An encoder of regions, and words that attend to what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.words = nn.Linear(16, 32), nn.Embedding(17, 32)
        self.key, self.value, self.out = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 17)

    def encode(self, regions: Tensor) -> Tensor:
        seen: Tensor = self.see(regions).relu()
        return seen

    def forward(self, input_ids: Tensor, regions: Tensor) -> Tensor:
        x, seen = self.words(input_ids)[:, None], self.encode(regions)
        k, v = self.key(seen)[:, None], self.value(seen)[:, None]
        logits: Tensor = self.out((x + F.scaled_dot_product_attention(x, k, v))[:, 0])
        return logits


def test_passes_learn_from_the_data_of_every_graph(tmp_path: Path) -> None:
    """Weights that became part of `prepare` too; sources as long as rows are no padding of them.

    Each graph is held to its source with the weights dequantized, and its limits follow from what
    its conditions are prepared with.
    """
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    data: dict[str, npt.NDArray[Any]] = {
        "input_ids": random.integers(0, 17, (24, 6)),
        "regions": random.standard_normal((24, 6, 16)).astype(np.float32),
        "lengths": random.integers(2, 7, 24),
    }
    examples = {name: torch.from_numpy(array[:2]) for name, array in data.items()}
    examples.pop("lengths")
    options: dict[str, Any] = {
        "graphs": {"main": "forward", "encode": "encode"},
        "inputs": examples,
        "axes": {"regions": ("batch", "regions", 16)},
    }
    module = Captioner().eval()
    layers = "layers=['see', 'key', 'value']"
    report = export(
        module,
        tmp_path / "bundle",
        calib=data,
        passes=[f"gptq:bits=4,group=16,{layers}"],
        steps=12,
        **options,
    )
    graphs = report.manifest.graphs
    learnt = {n: next(p for p in g.passes if p["name"] == "gptq") for n, g in graphs.items()
              if n != "prepare"}  # fmt: skip
    lowered = next(p for p in graphs["prepare"].passes if p["name"] == "ort-low-bit")

    tokens = data["lengths"][:21].sum()
    assert learnt["main"]["details"]["calibration"]["tokens"] == tokens
    assert [each["path"] for each in learnt["main"]["details"]["layers"]] == ["see", "key", "value"]
    assert [each["path"] for each in learnt["encode"]["details"]["layers"]] == ["see"]
    assert "perplexity" in learnt["main"]["details"]["stages"][0]
    assert lowered["details"]["in_two_parts"][1] == 3
    assert {each.targets["ort"].parity for each in graphs.values()} == {"passed"}
    again = verify(Bundle.open(report.out).root, load_source(module, **options), data=data, steps=4)
    assert again.passed
    assert again.data is not None
    assert max(row.found.error for row in again.rows if row.kind == "output") > 1e-5
    assert {row.found.limit for row in again.rows if row.kind == "output"} == {2e-2}


def test_run_takes_conditions_of_one_row(tmp_path: Path) -> None:
    module = Captioner().eval()
    given = {"input_ids": torch.ones(2, 6, dtype=torch.long), "regions": torch.randn(2, 5, 16)}
    export(module, tmp_path / "b", inputs=given, verify=False)
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    regions = np.random.default_rng(0).standard_normal((2, 9, 16)).astype(np.float32)
    np.savez(one, regions[:1])
    np.savez(two, regions)

    def run(path: Path) -> Any:
        options = ["--prompt", "3", "--steps", "4", "--condition", f"regions={path}"]
        return CliRunner().invoke(app, ["run", str(tmp_path / "b"), *options])

    found = run(one)
    ids, wanted = torch.tensor([[3]]), []
    for _ in range(4):
        with torch.no_grad():
            wanted.append(int(module(ids, torch.from_numpy(regions[:1]))[0, -1].argmax()))
        ids = torch.tensor([[3, *wanted]])
    assert found.stdout.split() == list(map(str, wanted)), found.stderr
    found = run(two)
    assert (found.exit_code, "gives 2 rows, and a text is one" in found.stderr) == (1, True)


class Classifier(nn.Module):
    """One result for all tokens together."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        found: Tensor = x.mean(1) + bias
        return found


class Cell(nn.Module):
    """A step, with a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor, h: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x + label, h)
        return h, h


@pytest.mark.parametrize(
    ("module", "inputs", "options", "words"),
    [
        (Classifier(), {"x": (2, 5, 4), "bias": (2, 4)}, {"condition": ["bias"]},
         "'bias', but the model takes whole inputs"),
        (Cell(), {"x": (2, 4), "h": (2, 4), "label": (2, 4)},
         {"condition": ["label"], "states": {"h": "output_1"}},
         r"'label', but the model carries its own states \(h\): each call takes 'label' anew"),
        (Cell(), {"x": (2, 4), "h": (2, 4), "label": (2, 4)}, {"condition": ["label", "x"]},
         "'label', but the model takes whole inputs"),
    ],
)  # fmt: skip
def test_what_is_asked_for_once_is_never_taken_in_each_call(
    module: nn.Module,
    inputs: dict[str, tuple[int, ...]],
    options: dict[str, Any],
    words: str,
    tmp_path: Path,
) -> None:
    """Where a model has no sequence, there is nothing that a condition could hold for."""
    examples = {name: torch.randn(shape) for name, shape in inputs.items()}
    with pytest.raises(OptionError, match=words):
        export(module.eval(), tmp_path / "bundle", inputs=examples, dry_run=True, **options)
