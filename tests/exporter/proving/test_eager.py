"""The source in PyTorch, as a contestant of a profile."""

import json
from pathlib import Path

import pytest
import torch

import intaglio
from intaglio import models
from intaglio.exporter.proving.eager import Runner, contestant
from intaglio.models import llama
from intaglio.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights alone: the bundle must say which model they belong to."""
    torch.set_num_threads(1)
    config = llama.Config(hidden_size=16, intermediate_size=24, num_layers=1)
    module = models.find("llama").build(config)
    path = tmp_path_factory.mktemp("checkpoint") / "weights.pt"
    torch.save(module.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Bundle:
    config = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 1}
    out = checkpoint.parent / "bundle"
    intaglio.export(checkpoint, out, model="llama", config=config, verify=False)
    return Bundle.open(out)


def test_a_contestant_is_told_in_plain_values(checkpoint: Path, bundle: Bundle) -> None:
    """They cross to another process; model and config are the bundle's."""
    peer = contestant(checkpoint, bundle, 1, {"import_from": [Path("code")]})

    assert json.loads(json.dumps(peer.load)) == {
        "path": str(checkpoint),
        "threads": 1,
        "options": {
            "model": "llama",
            "config": dict(bundle.manifest.source["config"]),
            "import_from": ["code"],
            "implied": ["model", "config"],
        },
    }


def test_a_step_is_a_pass_over_the_context_and_the_token(
    checkpoint: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept from one step to the next; a prefill is a pass over the prompt."""
    peer = contestant(checkpoint, bundle, 1, {})
    runner = Runner()
    runner.load(**peer.load)
    seen: list[tuple[int, ...]] = []
    forward = runner._source.module.forward

    def count(input_ids: torch.Tensor) -> object:
        assert torch.is_inference_mode_enabled()
        seen.append(tuple(input_ids.shape))
        return forward(input_ids)

    monkeypatch.setattr(runner._source.module, "forward", count)
    runner.ready("prefill", 5, 2)
    assert len(runner.run(0, 2)) == 2
    runner.ready("step", 7, 2)
    runner.run(0, 1)

    assert seen == [(2, 5), (2, 5), (2, 8)]
    assert runner.footprint()["peak"] > 0
