"""Prompts whose tokens see later ones: given once, and in the stream by their places."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vision_language import EDGE, MARKER, gemma3, greedy, paligemma, save, unequal_prompts

import intaglio
from intaglio.errors import SourceError
from intaglio.exporter.sources.huggingface import prefixes
from intaglio.runtime import Session
from intaglio.runtime.generation import generate_rows

PLACES, GENERATED = 4, 5


@pytest.mark.parametrize(("make", "kind"), [(gemma3, 1), (paligemma, 0)])
def test_greedy_tokens_are_those_of_the_library_for_prompts_of_unequal_length(
    make: Callable[[], Any], kind: int, tmp_path: Path
) -> None:
    """A row without a picture as well, in one call, token by token, and from a padded prompt."""
    torch.manual_seed(0)
    judge = save(make(), tmp_path / "source")
    out, condition = tmp_path / "out", ["pixel_values"]
    intaglio.export(tmp_path / "source", out, condition=condition, steps=24, verify=kind == 0)
    prompts, shown = unequal_prompts(PLACES), torch.randn(3, 3, EDGE, EDGE)
    wanted = []
    for row, prompt in enumerate(prompts):
        ids = prompt[None]
        types = ids * 0 if kind == 0 else (ids == MARKER).long()
        seen = {"pixel_values": shown[row : row + 1]} if MARKER in prompt else {}
        wanted.append(greedy(judge, GENERATED, input_ids=ids, token_type_ids=types, **seen)[0])
    longest = max(map(len, prompts))
    padded = np.zeros((3, longest), np.int64)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt.numpy()
    mask = np.arange(longest) < np.array([[len(prompt)] for prompt in prompts])
    session = Session.load(out, threads=1)
    session.condition(
        {"pixel_values": shown.numpy(), "prefix_ids": padded, "prefix_mask": mask.astype(np.int64)}
    )
    steps = generate_rows(session, [x.tolist() for x in prompts], max_new_tokens=GENERATED)
    found = np.stack([step.tokens for step in steps], 1)
    assert np.array_equal(found, torch.stack(wanted).numpy())
    whole = session.fork()
    for each in (session, whole):
        each.state.reset()
    ones = [session.step({"input_ids": padded[:, at : at + 1]})["logits"] for at in range(6)]
    at_once = whole.step({"input_ids": padded[:, :6] * 0})["logits"]  # of the prompt, no ids count
    np.testing.assert_allclose(np.concatenate(ones, 1), at_once, atol=1e-4)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList([nn.Identity()]), nn.Identity()


class Forward(nn.Module):
    """A model that looks back alone, whatever the types of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def forward(self, input_ids: Tensor, **_: Any) -> tuple[Tensor]:
        return (self.decoder.norm(input_ids.double().cumsum(1)),)


def test_types_that_change_nothing_are_refused() -> None:
    with pytest.raises(SourceError, match="is not what it does with them"):
        prefixes.taken(Forward(), 10, 3, ("batch", 3, 4, 4))


def test_what_comes_into_a_layer_is_shown_and_may_be_exchanged() -> None:
    model, ids = Forward(), torch.tensor([[1, 2]])
    seen: list[Tensor] = []
    with prefixes.into_layers(model, lambda _, x: seen.append(x)):
        model(ids)
    assert [x.tolist() for x in seen] == [[[1.0, 3.0]]]
    with prefixes.into_layers(model, lambda _, x: x + 1):
        assert model(ids)[0].tolist() == [[2.0, 4.0]]
    assert model(ids)[0].tolist() == [[1.0, 3.0]]
