"""A tokenizer beside a source goes into the bundle, and comes back from its recipe."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from intaglio import export
from intaglio.cli.chat import Texts
from intaglio.errors import InputError, OptionError, SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.runtime import Session
from intaglio.runtime.manifest import Manifest

MODEL = Path(__file__).parents[2] / "data" / "unigrams.model"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Bigram(nn.Module):
    """Scores of the next token by the last alone."""

    def __init__(self, tokens: int = 400) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(tokens, 4)
        self.head = nn.Linear(4, tokens)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.table(input_ids))
        return scores


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose tokenizer came from a model of sentencepiece."""
    out = tmp_path_factory.mktemp("text") / "bundle"
    export(Bigram(), out, text=MODEL, verify=False)
    return out


def test_a_bundle_holds_what_a_model_of_sentencepiece_was_converted_to(
    bundle: Path, tmp_path: Path
) -> None:
    """Its recipe finds it beside itself, and nowhere else."""
    export(Bigram(), tmp_path / "again", recipe=bundle / "recipe.toml")
    first, second = (Manifest.load(at / "manifest.json") for at in (bundle, tmp_path / "again"))
    assert first.files == second.files
    assert first.text["eos"] == [2]

    (tmp_path / "recipe.toml").write_text((bundle / "recipe.toml").read_text())
    with pytest.raises(OptionError, match="Give it with --tokenizer FILE"):
        export(Bigram(), tmp_path / "no", recipe=tmp_path / "recipe.toml")


def test_a_conversation_is_written_by_the_template_in_a_sandbox(
    bundle: Path, tmp_path: Path
) -> None:
    """What it runs is bounded, and refusals are the user's to read."""
    session = Session.load(bundle)
    asked = [{"role": "user", "content": "a graph"}]
    with pytest.raises(InputError, match="no chat template"):
        Texts.of(session).conversation(asked, Texts.of(session).codec(session.entry))
    (tmp_path / "tokenizer.json").write_bytes((bundle / "tokenizer/tokenizer.json").read_bytes())
    said = tmp_path / "chat_template.jinja"

    def talk(template: str) -> list[int]:
        said.write_text(template)
        texts = Texts.at(tmp_path)
        return texts.conversation(asked, texts.codec(session.entry))

    plain = Texts.at(tmp_path).codec(session.entry)
    assert talk(TEMPLATE) == plain.encode("<user>a graph<assistant>")
    for template, fault in (
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
        ("{{ raise_exception('no system, please') }}", "no system, please"),
        ("{% for x in range(99999999) %}{% endfor %}", "fails"),
    ):
        with pytest.raises(InputError, match=fault):
            talk(template)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("absent.json", "No such file"), (".", "holds no tokenizer.json"), ("bad.model", "no model")],
)
def test_what_is_no_tokenizer_is_told(text: str, fault: str, tmp_path: Path) -> None:
    if text != ".":
        (tmp_path / "bad.model").write_bytes(b"no message")
    with pytest.raises(SourceError, match=fault):
        load_source(Bigram(), text=tmp_path / text)


def test_a_model_without_tokens_takes_none() -> None:
    inputs: Any = torch.zeros(2, 3)
    with pytest.raises(OptionError, match="--tokenizer is for a model that takes token ids"):
        load_source(nn.Linear(3, 2), inputs=[inputs], text=MODEL)
