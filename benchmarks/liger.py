"""Liger: what linearizing a trained transformer costs, and what tuning it brings back.

    python benchmarks/liger.py [--quick] [--json]

From models/checkpoints/llama.pt, held-out loss in nats per byte: the transformer, the same weights
as a recurrence, the recipe, the recipe without the window, and the recurrence from random weights
with as many steps.  Then the state that a row carries, where heads of a query share one and where
the module repeats keys and values for each head, with the largest difference between their outputs.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from evidence import Row, run
from torch import nn

import intaglio
from intaglio.models import save
from intaglio.models.liger import LIGER, TINY, Linearization, adopt
from intaglio.models.llama import LLAMA
from intaglio.models.parts.pretrained_llama import read
from intaglio.models.training import TrainingRecipe, train, validate
from intaglio.quiet import quiet
from intaglio.runtime import Session

START = Path(__file__).parents[1] / "models" / "checkpoints" / "llama.pt"
NEAR = 0.2  # nats per byte above the transformer
WIDE = {"hidden_size": 128, "intermediate_size": 128, "num_layers": 2, "num_heads": 8}
TOKENS = 256


def measure(quick: bool) -> list[Row]:
    """Losses, then states."""
    torch.set_num_threads(1)
    return [*_losses(quick), *_states()]


def _losses(quick: bool) -> list[Row]:
    start = read(START)
    softmax = LLAMA.build(LLAMA.configure(start.config))
    softmax.load_state_dict(dict(start.tensors))
    recipe = Linearization()
    if quick:
        recipe = Linearization(tuning=replace(recipe.tuning, steps=20))
    steps = recipe.tuning.steps
    config = adopt(TINY, START)
    as_it_is = LIGER.build(config)
    as_it_is.load_state_dict(dict(start.tensors))
    before, bare = validate(softmax), validate(as_it_is)
    tuned = _tuned(recipe, config.window)
    alone = _tuned(recipe, 1)
    torch.manual_seed(recipe.seed)
    scratch = train(LIGER.build(config), TrainingRecipe(steps=steps))
    unit, note = "nats per byte", f"{steps} steps"
    return [
        Row(name="transformer (softmax), held-out loss", value=before, unit=unit),
        Row(name="its weights as Liger-GLA, not tuned", value=bare, unit=unit),
        Row(
            name="after the recipe",
            value=tuned,
            unit=unit,
            target=f"<= {NEAR} above the transformer",
            holds=tuned - before <= NEAR,
            note=note,
        ),
        Row(name="after the recipe, each token's window itself alone", value=alone, unit=unit),
        Row(
            name="from random weights",
            value=scratch,
            unit=unit,
            target="above the recipe",
            holds=scratch > tuned,
            note=note,
        ),
    ]


def _tuned(recipe: Linearization, window: int | None) -> float:
    torch.manual_seed(recipe.seed)
    module = LIGER.build(replace(adopt(TINY, START), window=window))
    recipe.train(module, None, START)
    return validate(module)


def _states() -> list[Row]:
    torch.manual_seed(0)
    shared = LIGER.build(LIGER.configure({**WIDE, "num_kv_heads": 2})).eval()
    for parameter in shared.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.1)
    apart = LIGER.build(LIGER.configure({**WIDE, "num_kv_heads": 8})).eval()
    apart.load_state_dict({name: _apart(name, x) for name, x in shared.state_dict().items()})
    ids = np.random.default_rng(0).integers(0, 256, (1, TOKENS))
    with tempfile.TemporaryDirectory() as folder:
        one, each = (
            _stepped(Path(folder) / name, module, kv_heads, ids)
            for name, module, kv_heads in (("one", shared, 2), ("each", apart, 8))
        )
    difference = float(np.abs(one[0] - each[0]).max() / np.abs(each[0]).max())
    ratio = each[1] / one[1]
    return [
        Row(name="recurrent state of a row, one for 4 heads of the query", value=one[1], unit="B"),
        Row(
            name="one state for each head of the query : one for 4",
            value=ratio,
            unit="x",
            target=">= 4",
            holds=ratio >= 4,
        ),
        Row(
            name="largest difference of their outputs",
            value=difference,
            unit="of the largest",
            target="<= 1e-5",
            holds=difference <= 1e-5,
            note=f"{TOKENS} tokens, one at a time",
        ),
    ]


def _apart(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The projections of keys and values once for each head of the query."""
    if not name.endswith(("k_proj.weight", "v_proj.weight")):
        return weight
    groups = weight.reshape(2, -1, weight.shape[1])
    return groups.repeat_interleave(4, 0).flatten(0, 1)


def _stepped(
    path: Path, module: nn.Module, kv_heads: int, ids: np.ndarray
) -> tuple[np.ndarray, float]:
    config: Mapping[str, int] = {**WIDE, "num_kv_heads": kv_heads}
    save(path.with_suffix(".pt"), "liger", LIGER.configure(config), module)
    with quiet():
        intaglio.export(path.with_suffix(".pt"), path, steps=32)
    session = Session.load(path)
    logits = [session.step({"input_ids": ids[:, t : t + 1]})["logits"] for t in range(ids.shape[1])]
    states = session.manifest.main.states
    kept = [s for s in states if s.op == "linear_attention"]
    return np.concatenate(logits, 1), 4.0 * sum(
        int(np.prod([d for d in s.shape if isinstance(d, int)])) for s in kept
    )


if __name__ == "__main__":
    run(__doc__, measure)
