"""Wholes from conditions alone, for any module that says how its graphs make one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import intaglio
from intaglio.errors import InputError, OptionError
from intaglio.graphs import Generation, Graph
from intaglio.runtime import Bundle
from intaglio.runtime.whole_generation import WholeGenerator

LEVEL = torch.tensor([0, 1, 1])
PLAN = Generation(logits="scores", carried={"sums": "more"}, unconditional={"kind": 2})


class Counter(nn.Module):
    """Scores grow with the kind and with what was drawn; what is drawn is summed up."""

    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.Embedding(3, 5)
        self.mix = nn.Linear(2, 5)
        self.register_buffer("level", LEVEL)

    def forward(self, tokens: Tensor, kind: Tensor) -> dict[str, Tensor]:
        level = self.level[: tokens.shape[1]]
        y = tokens[:, None]
        seen = nn.functional.scaled_dot_product_attention(
            y, y, y, attn_mask=level[:, None] == level
        )
        scores = self.mix(seen[:, 0] + tokens.cumsum(1)) + self.kinds(kind)[:, None]
        return {"scores": scores}

    def advance(self, codes: Tensor, at: Tensor, then: Tensor, sums: Tensor) -> dict[str, Tensor]:
        total = sums + (codes * (1 + at)).sum(1, keepdim=True).float()
        return {"tokens": torch.stack([total + then, total - then], -1), "more": total}

    def decode(self, sums: Tensor) -> dict[str, Tensor]:
        return {"result": 2 * sums}


def graphs(plan: Generation = PLAN) -> dict[str, Graph]:
    drawn = {
        "codes": torch.ones(2, 3, dtype=torch.int64),
        "at": torch.arange(3),
        "then": torch.arange(4) % 3,
        "sums": torch.ones(2, 1),
    }
    return {
        "main": Graph(
            inputs={"tokens": torch.randn(2, 3, 2), "kind": torch.tensor([0, 1])},
            axes={"tokens": "batchxtimex2", "kind": "batch"},
            generates=plan,
        ),
        "advance": Graph(
            "advance",
            inputs=drawn,
            axes={"codes": "batchxdrawn<5", "at": "drawn<3", "then": "more<3", "sums": "batchx1"},
        ),
        "decode": Graph("decode", inputs={"sums": torch.ones(2, 1)}, axes={"sums": "batchx1"}),
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module, path = Counter().eval(), tmp_path_factory.mktemp("wholes") / "b"
    intaglio.export(module, path, graphs=graphs(), verify=False)
    torch.save(module.state_dict(), path.parent / "weights.pt")
    return path


@torch.no_grad()
def test_any_module_may_say_how_its_graphs_generate(bundle: Path) -> None:
    """Two blocks, guidance that grows from 0 to its strength, and what is carried from zeros."""
    module = Counter()
    module.load_state_dict(torch.load(bundle.parent / "weights.pt", weights_only=True))
    found = WholeGenerator(Bundle.open(bundle)).generate(
        {"kind": np.array([0, 1])}, guidance=2.0, temperature=0.0
    )["result"]

    kind, sums = torch.tensor([0, 1]), torch.zeros(2, 1)
    tokens = torch.zeros(2, 1, 2)
    codes = module(tokens, kind)["scores"].argmax(-1)
    sums = sums + codes.float()
    total = sums.expand(2, 2)
    then = torch.tensor([1.0, 2.0])
    tokens = torch.cat([tokens, torch.stack([total + then, total - then], -1)], 1)
    none = torch.tensor([2, 2])
    with_, without = (module(tokens, each)["scores"][:, 1:] for each in (kind, none))
    sums = sums + ((3 * with_ - 2 * without).argmax(-1) * torch.tensor([2, 3])).sum(1, keepdim=True)
    np.testing.assert_allclose(found, 2 * sums.numpy())


def test_a_plan_is_kept_by_the_manifest(bundle: Path) -> None:
    """And by the recipe, which makes the bundle again."""
    opened = Bundle.open(bundle)
    assert opened.manifest.main.generates == PLAN
    assert opened.manifest.recipe["graphs"]["main"]["generates"]["carried"] == {"sums": "more"}


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Generation(advance="ahead"), "takes a graph 'ahead'; beside main there are: advance"),
        (Generation(carried={"sum": "more"}), "gives 'sum' to the graph 'advance'"),
        (Generation(unconditional={"label": 1}), "gives 'label' to the graph 'main'"),
        (
            Generation(carried={"sums": "more"}),
            "takes 'logits' of the graph 'main', which gives sc",
        ),
    ],
)
def test_a_plan_that_does_not_fit_the_graphs_is_told(
    plan: Generation, said: str, tmp_path: Path
) -> None:
    """Inputs before anything is traced, and outputs before anything is written."""
    with pytest.raises(OptionError, match=said):
        intaglio.export(Counter().eval(), tmp_path / "b", graphs=graphs(plan))


def test_bundles_without_a_plan_are_told(tmp_path: Path) -> None:
    """A model of one graph generates no wholes."""
    intaglio.export(nn.Linear(2, 2), tmp_path / "b", inputs={"input": torch.ones(1, 3, 2)})
    with pytest.raises(InputError, match="does not say how it generates"):
        WholeGenerator(Bundle.open(tmp_path / "b"))
