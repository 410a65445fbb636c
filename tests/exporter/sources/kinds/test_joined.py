"""A file that joins sources says what is wrong with it, and loads its parts with distrust."""

from pathlib import Path

import pytest
import torch

from intaglio.errors import IntaglioError
from intaglio.exporter.sources.load import load_source
from intaglio.models import save
from intaglio.models.llama import LLAMA, Config
from intaglio.models.mlp_memory import MLP_MEMORY
from intaglio.models.mlp_memory import Config as Sizes


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder with a language model and a memory, each a checkpoint of ours."""
    config = Config(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, vocab_size=40)
    save(tmp_path / "lm.pt", "llama", config, LLAMA.build(config))
    sizes = Sizes(vocab_size=40, hidden_size=16, intermediate_size=24, num_layers=1)
    save(tmp_path / "memory.pt", "mlp-memory", sizes, MLP_MEMORY.build(sizes))
    return tmp_path


def written(folder: Path, text: str) -> Path:
    (folder / "joint.toml").write_text(text)
    return folder / "joint.toml"


BOTH = 'model = "mlp-memory"\n[parts]\nlanguage_model = "lm.pt"\nmemory = "memory.pt"\n'


def test_parts_of_any_kind_become_one_module(parts: Path) -> None:
    source = load_source(written(parts, BOTH))
    assert source.symbols == ("batch", "time")
    assert source.dynamic["weight"] == {0: "batch"}
    given = source.random_inputs(2, 5, 0)
    found = source.module(**given)
    assert found.shape == (2, 5, 40)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 5))
    again = load_source(written(parts, BOTH))
    assert again.sha256 == source.sha256


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[parts]\nmemory = 'memory.pt'\n", "should hold model = NAME"),
        ("model = 'mlp-memory'\nother = 1\n", "not 'other'"),
        ("model = 'gla'\n[parts]\n", "is not made of parts; these are: mlp-memory"),
        ("model = 'mlp-memory'\n", r"a table \[parts\] with the paths of language_model, memory"),
        (BOTH.replace("memory =", "store ="), "it should have language_model, memory"),
        (BOTH.replace("memory.pt", "lm.pt"), "The memory is a LanguageModel"),
        (BOTH.replace("memory.pt", "gone.pt"), "gone.pt"),
        ("model =", "not valid TOML"),
    ],
)
def test_a_file_that_does_not_fit_says_why(parts: Path, text: str, says: str) -> None:
    with pytest.raises(IntaglioError, match=says):
        load_source(written(parts, text))


def test_what_a_part_would_run_is_refused(parts: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), parts / "memory.pt")
    with pytest.raises(IntaglioError, match="allow-pickle"):
        load_source(written(parts, BOTH))


def test_an_option_that_means_nothing_is_refused(parts: Path) -> None:
    with pytest.raises(IntaglioError, match="--axes says nothing"):
        load_source(written(parts, BOTH), axes="input_ids:batchxtime")
