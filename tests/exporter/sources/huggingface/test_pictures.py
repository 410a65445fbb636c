"""A picture for each row: given once, and put where the tokens stand that mean one."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import intaglio
from intaglio.errors import SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.huggingface import pictures
from intaglio.exporter.sources.kinds.huggingface_directory import load
from intaglio.runtime import Session
from intaglio.runtime.generation import generate_rows

LLAVA: Any = LlavaForConditionalGeneration
VOCABULARY, MARKER, PLACES, GENERATED = 64, 60, 4, 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4, projection_dim=16,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=MARKER, vision_feature_layer=-1
    )
    model = LLAVA(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(4)
    path = tmp_path_factory.mktemp("llava")
    model.save_pretrained(path)
    return path


def library(path: Path) -> Any:
    return LLAVA.from_pretrained(path).eval()


def test_greedy_tokens_with_a_picture_are_those_of_the_library(
    directory: Path, tmp_path: Path
) -> None:
    """Rows with pictures of their own, in one call and cut within the picture's tokens."""
    out = tmp_path / "bundle"
    intaglio.export(directory, out, condition=["pixel_values"], verify=False)
    session, judge = Session.load(out, threads=1), library(directory)
    shown, words = torch.randn(3, 3, 8, 8), torch.randint(3, 50, (3, 5))
    marks = torch.full((3, PLACES), MARKER)
    ids = torch.cat([words[:, :2], marks, words[:, 2:]], dim=1)
    judge.generation_config.eos_token_id = None
    with torch.no_grad():
        given = {"input_ids": ids, "pixel_values": shown}
        logits = judge(**given).logits.numpy()
        tokens = judge.generate(
            **given, attention_mask=torch.ones_like(ids), max_new_tokens=GENERATED, do_sample=False
        )[:, ids.shape[1] :]
    session.condition({"pixel_values": shown.numpy()})
    for cuts in ([0, 9], [0, 4, 5, 9]):
        session.state.reset()
        parts = [ids[:, a:b].numpy() for a, b in itertools.pairwise(cuts)]
        found = [session.step({"input_ids": part})["logits"] for part in parts]
        np.testing.assert_allclose(np.concatenate(found, 1), logits, atol=1e-4)
    session.state.reset()
    steps = generate_rows(session, ids.tolist(), max_new_tokens=GENERATED)
    assert np.array_equal(np.stack([step.tokens for step in steps], 1), tokens.numpy())


def test_text_alone_says_what_is_left_out(directory: Path) -> None:
    source = load(directory, LoadOptions())
    assert list(source.inputs) == ["input_ids"]
    assert any("--condition pixel_values" in note for note in source.notes)


def test_tokens_beyond_the_features_of_a_picture_stay_as_they_are(directory: Path) -> None:
    """And those of one row never take the features of another."""
    model = library(directory)
    ids = torch.tensor([[MARKER] * (PLACES + 2), [5] * (PLACES + 2)])
    shown = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), pictures.spliced_by_row(model):
        both = model(input_ids=ids, pixel_values=shown, output_hidden_states=True)
        text = model(input_ids=ids, output_hidden_states=True)
    first, plain = both.hidden_states[0], text.hidden_states[0]
    assert not torch.equal(first[0, :PLACES], plain[0, :PLACES])
    assert torch.equal(first[0, PLACES:], plain[0, PLACES:])
    assert torch.equal(first[1], plain[1])


class Seeing(nn.Module):
    """As Gemma-3, which tells tokens of pictures apart by their types."""

    config = SimpleNamespace(image_token_id=3)

    def forward(self, input_ids: Tensor, pixel_values: Tensor, token_type_ids: Tensor) -> Tensor:
        return input_ids + pixel_values + token_type_ids


@pytest.mark.parametrize(
    ("named", "said"),
    [(["pixel_values"], "see each other"), (["input_features"], "asked to take 'input_features'")],
)
def test_what_cannot_be_stepped_is_refused(named: list[str], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        pictures.taken(Seeing(), 10, {}, Path(), named)
