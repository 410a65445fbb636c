"""A picture for each row: given once, and put where the tokens stand that mean one."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vision_language import EDGE, LIBRARY, MARKER, greedy, llava, save, smolvlm

import intaglio
from intaglio.errors import SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.huggingface import given_pictures
from intaglio.exporter.sources.kinds.huggingface_directory import load
from intaglio.runtime import Session
from intaglio.runtime.generation import generate_rows

PLACES, GENERATED = 4, 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llava")
    save(llava(), path)
    return path


def library(path: Path) -> Any:
    model = LIBRARY.LlavaForConditionalGeneration.from_pretrained(path).eval()
    model.generation_config.eos_token_id = None
    return model


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
    with torch.no_grad():
        given = {"input_ids": ids, "pixel_values": shown}
        logits = judge(**given).logits.numpy()
    tokens = greedy(judge, GENERATED, **given)
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


def test_rows_of_several_pictures_take_them_one_after_the_other(tmp_path: Path) -> None:
    """A row with one picture less has zeros behind its own, and one in the library's batch."""
    torch.manual_seed(0)
    judge = save(smolvlm(), tmp_path / "source")
    out = tmp_path / "out"
    intaglio.export(tmp_path / "source", out, condition=["pixel_values"], verify=False)
    shown, words = torch.randn(2, 2, 3, EDGE, EDGE), torch.randint(3, 50, (2, 9))
    shown[1, 1] = 0
    marks = torch.full((PLACES,), MARKER)
    prompts = [
        torch.cat([words[0, :2], marks, words[0, 2:4], marks, words[0, 4:]]),
        torch.cat([words[1, :5], marks, words[1, 5:]]),
    ]
    wanted = [
        greedy(judge, GENERATED, input_ids=prompt[None], pixel_values=shown[row : row + 1])[0]
        for row, prompt in enumerate(prompts)
    ]
    session = Session.load(out, threads=1)
    session.condition({"pixel_values": shown.numpy()})
    steps = generate_rows(session, [x.tolist() for x in prompts], max_new_tokens=GENERATED)
    found = np.stack([step.tokens for step in steps], 1)
    assert np.array_equal(found, torch.stack(wanted).numpy())


class Seeing(nn.Module):
    """A model that says where pictures stand, and runs with none of them."""

    config = SimpleNamespace(image_token_id=3)

    def forward(self, input_ids: Tensor, pixel_values: Tensor, **_: Any) -> Tensor:
        raise RuntimeError(f"sizes of {len(pixel_values)} pictures for {len(input_ids)} rows")


@pytest.mark.parametrize(
    ("named", "layout", "said"),
    [
        (["pixel_values"], None, "sizes of 2 pictures"),
        (["pixel_values"], ("batch", 3, 8, 8), "Leave --axes out"),
        (["input_features"], None, "asked to take 'input_features'"),
    ],
)
def test_what_cannot_be_stepped_is_refused(
    named: list[str], layout: tuple[int | str, ...] | None, said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        given_pictures.taken(Seeing(), 10, {}, Path(), named, layout)
