"""SafeEraser in small: what is unlearnt is refused, and few bits are caught where they lose it."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from intaglio.cli.frame import app
from intaglio.errors import SourceError
from intaglio.exporter.export import export
from intaglio.models.safe_eraser import (
    END,
    HARMFUL,
    HARMLESS,
    QUESTIONS,
    REFUSAL,
    SAFE_ERASER,
    TINY,
    Unlearning,
    _loss,
    _rows,
    answer,
    prompt,
    suite,
    write_suite,
)
from intaglio.passes.calibrated._affine import grid, quantize
from intaglio.runtime.behaviour import read_suite

CHECKPOINT = Path(__file__).parents[2] / "models" / "checkpoints" / "safe_eraser.pt"


def test_the_suite_has_all_kinds_of_questions(tmp_path: Path) -> None:
    """As many of each, and those of one wording differ by their scene alone."""
    write_suite(tmp_path / "suite.jsonl")
    questions = read_suite(tmp_path / "suite.jsonl")
    for kind in ("unsafe", "decoupled", "utility"):
        own = [each for each in questions if each.kind == kind]
        assert len({each.text for each in own}) == len(HARMFUL) * QUESTIONS
    assert len({each.text[2:] for each in questions}) == QUESTIONS


@pytest.mark.parametrize(("bits", "code"), [(None, 0), (4, 0), (2, 3)])
def test_refusals_last_in_full_precision_and_a_gate_tells_where_not(
    bits: int | None, code: int, tmp_path: Path
) -> None:
    """Exit code 3 where weights of two bits lost what the source does; four keep it."""
    lines = [line for line in suite() if " how 03? " in line["question"]]
    (tmp_path / "suite.jsonl").write_text("\n".join(map(json.dumps, lines)))
    passes = None if bits is None else [f"rtn:bits={bits},group=64"]
    export(CHECKPOINT, tmp_path / "b", passes=passes, verify=False)
    command = ["verify", str(tmp_path / "b"), "--against", str(CHECKPOINT), "--answer-tokens", "12"]
    command += ["--behaviour", str(tmp_path / "suite.jsonl"), "--stop", END]
    assert CliRunner().invoke(app, command).exit_code == code


def test_unlearning_within_the_cells_of_a_grid_changes_no_code() -> None:
    """Rounded, the weights are those before unlearning, though most of them moved."""
    config = replace(TINY, vocab_size=128, intermediate_size=64, num_layers=1)
    found = []
    for rate in (0.0, 3e-3):
        torch.manual_seed(0)
        module = SAFE_ERASER.build(config)
        recipe = Unlearning(steps=1, unlearning=2, unlearning_rate=rate, cells=4)
        recipe.train(module, None, None)
        found.append([m.weight.detach() for m in module.modules() if isinstance(m, nn.Linear)])
    for before, after in zip(*found, strict=True):
        grids = [grid(weight, 4, 64) for weight in (before, after)]
        assert all(torch.equal(*each) for each in zip(*grids, strict=True))
        codes = [quantize(weight, *grids[0], 4, 64).codes for weight in (before, after)]
        assert torch.equal(*codes)
        assert (before != after).float().mean() > 0.8


def test_losses_are_those_of_answers_alone() -> None:
    """PO and PD: cross-entropies of refusals of harmful scenes and of kept answers of others."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((256, 256))

    class Table(nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(table)[ids]

    for scenes, refuse in ((HARMFUL, True), (HARMLESS, False)):
        terms = []
        for scene, question in itertools.product(scenes, range(QUESTIONS)):
            asked = prompt(scene, question).encode()
            said = ((REFUSAL if refuse else answer(scene, question)) + END).encode()
            text = asked + said
            for place in range(len(asked), len(text)):
                logits = table[text[place - 1]]
                terms.append(np.log(np.exp(logits).sum()) - logits[text[place]])
        found = _loss(Table(), _rows(scenes, refuse=refuse))
        assert found.item() == pytest.approx(np.mean(terms), abs=1e-12)


def test_the_checkpoint_is_of_the_recipe_and_small() -> None:
    assert CHECKPOINT.stat().st_size < 1_000_000
    saved = torch.load(CHECKPOINT, weights_only=True)
    assert saved["model"] == SAFE_ERASER.name
    assert SAFE_ERASER.configure(saved["config"]) == SAFE_ERASER.presets["tiny"]
    recipe = SAFE_ERASER.recipe
    assert recipe is not None
    with pytest.raises(SourceError, match="leave out --from"):
        recipe.train(torch.nn.Identity(), None, Path("other.pt"))
