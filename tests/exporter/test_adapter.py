"""The adapter of a tuned model: of one in its base's order, in another one, and of none."""

from pathlib import Path

import pytest
import torch
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.adapter import make_adapter
from intaglio.exporter.sources.load import load_source
from intaglio.models import find, llama, save
from intaglio.models.parts.language_layers import LanguageModel
from intaglio.models.tuning import S2FT, of_text

CONFIG = llama.Config(vocab_size=256, hidden_size=16, intermediate_size=20, num_layers=2)
IDS = torch.arange(12)[None]


def write(path: Path, module: nn.Module) -> Path:
    save(path, "llama", CONFIG, module)
    return path


def build() -> LanguageModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = llama.build(CONFIG).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def test_a_model_in_another_order_has_an_adapter_of_its_base(tmp_path: Path) -> None:
    """What S2FT leaves: channels and heads next to each other that lay anywhere."""
    base, module = write(tmp_path / "base.pt", build()), build()
    how = S2FT(up=0.2, down=0.2, value=0.3, output=0.3, steps=3, rate=0.05)
    how.tune(module, of_text(bytes(range(256)) * 4, 4, 16))
    with torch.no_grad():
        wanted = module(IDS)

    adapter, notes = make_adapter(base, write(tmp_path / "tuned.pt", module))

    assert "another order" in notes[0]
    adapter.save(tmp_path / "tuned.npz")
    fused = load_source(base, adapter={"tuned": str(tmp_path / "tuned.npz")}).module
    with torch.no_grad():
        found = fused(IDS)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert adapter.bytes < 0.5 * sum(p.numel() * 4 for p in module.parameters())


def test_another_model_is_no_tuned_one(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = find("llama").build(CONFIG)
    paths = write(tmp_path / "base.pt", build()), write(tmp_path / "other.pt", other)
    with pytest.raises(SourceError, match=r"All of .* was tuned|was tuned as well"):
        make_adapter(*paths)
