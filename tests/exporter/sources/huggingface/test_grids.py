"""Pictures as patches of a grid, one for each row, and positions in several axes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vision_language import (
    MARKER,
    NUMBERS,
    VOCABULARY,
    greedy,
    qwen2_5_vl,
    qwen2_vl,
    save,
    unequal_prompts,
)

import intaglio
from intaglio.errors import SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.huggingface import grids
from intaglio.exporter.sources.kinds.huggingface_directory import load
from intaglio.runtime import Session
from intaglio.runtime.generation import generate_rows

HEIGHT, WIDTH, PLACES, GENERATED = 4, 6, 6, 5


def test_greedy_tokens_are_those_of_the_library_for_prompts_of_unequal_length(
    tmp_path: Path,
) -> None:
    """With pictures at places of their own, and a row without one; in windows and in full."""
    torch.manual_seed(0)
    judge = save(qwen2_5_vl(), tmp_path / "source")
    axes = {"pixel_values": ("batch", HEIGHT, WIDTH, NUMBERS)}
    out = tmp_path / "out"
    intaglio.export(
        tmp_path / "source", out, condition=["pixel_values"], axes=axes, steps=24, verify=False
    )
    prompts, shown = unequal_prompts(PLACES), torch.randn(3, HEIGHT, WIDTH, NUMBERS)
    wanted = []
    for row, prompt in enumerate(prompts):
        ids, seen = prompt[None], {}
        if MARKER in prompt:
            seen = {
                "pixel_values": shown[row].flatten(0, 1),
                "image_grid_thw": torch.tensor([[1, HEIGHT, WIDTH]]),
                "mm_token_type_ids": (ids == MARKER).int(),
            }
        wanted.append(greedy(judge, GENERATED, input_ids=ids, **seen)[0])
    session = Session.load(out, threads=1)
    session.condition({"pixel_values": shown.numpy()})
    steps = generate_rows(session, [x.tolist() for x in prompts], max_new_tokens=GENERATED)
    found = np.stack([step.tokens for step in steps], 1)
    assert np.array_equal(found, torch.stack(wanted).numpy())


def test_a_grid_is_taken_unless_it_is_named_and_a_note_says_which(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = qwen2_vl().eval()
    taken = grids.taken(model, VOCABULARY, MARKER, None)
    assert taken.shapes["pixel_values"] == ("batch", 56, 56, NUMBERS)
    assert "56 by 56 patches" in taken.notes[0]
    save(model, tmp_path)
    axes = {"pixel_values": ("batch", 2, 4, NUMBERS)}
    source = load(tmp_path, LoadOptions(condition=("pixel_values",), axes=axes))
    assert source.inputs["pixel_values"].shape[1:] == (2, 4, NUMBERS)
    assert not any("patches" in note for note in source.notes)


def test_a_config_without_sizes_of_patches_is_refused() -> None:
    model = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(patch_size=4)))
    with pytest.raises(SourceError, match="does not say how large the patches"):
        grids.taken(model, VOCABULARY, MARKER, None)


@pytest.mark.parametrize(
    "layout",
    [("batch", 3, 4, NUMBERS), ("batch", 4, 4, 7), ("batch", 4, NUMBERS), ("batch", "h", 4, 96)],
)
def test_what_is_no_grid_is_refused(layout: tuple[int | str, ...]) -> None:
    with pytest.raises(SourceError, match=r"height and width in patches, numbers that 2 divides"):
        grids.taken(qwen2_vl(), VOCABULARY, MARKER, layout)
