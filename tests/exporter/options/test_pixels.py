"""What is said of pixels, as a name, in words, or in a file that says it already."""

import json
from pathlib import Path
from typing import Any

import pytest

from intaglio.errors import OptionError
from intaglio.exporter.options.pixels import KNOWN, Pixels
from intaglio.exporter.options.recipe import Recipe

HALF = Pixels(mean=[0.5], std=[0.25], crop_pct=0.9)


def test_names_words_and_mappings_say_the_same() -> None:
    assert Pixels.read(None) == Pixels()
    assert Pixels.read("imagenet") == KNOWN["imagenet"]
    assert Pixels.read("mean=[0.5],std=[0.25],crop_pct=0.9") == HALF
    assert Pixels.read(HALF.to_json()) == HALF


def test_a_recipe_repeats_them(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(Recipe().override({"pixels": "clip"}).to_toml())
    assert Pixels.read(Recipe.read(tmp_path / "recipe.toml").pixels) == Pixels(
        **json.loads(json.dumps(KNOWN["clip"].to_json()))
    )


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"pretrained_cfg": {"mean": [0.5], "std": [0.25], "crop_pct": 0.9, "url": ""}}, HALF),
        (
            {"image_mean": [0.5], "image_std": [0.25], "resample": 3, "crop_size": {"height": 9},
             "size": {"shortest_edge": 10}, "do_center_crop": True},
            Pixels(mean=[0.5], std=[0.25], crop_pct=0.9, interpolation="bicubic"),
        ),
        ({"image_mean": [0.5], "image_std": [0.25], "do_normalize": False}, Pixels()),
    ],
)  # fmt: skip
def test_files_of_timm_and_of_processors_are_read(
    said: dict[str, Any], found: Pixels, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert Pixels.read(tmp_path / "config.json") == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("imagnet", "none of imagenet, inception, clip, and no file"),
        ("mean=[123.7,116.3,103.5]", "count from 0 to 1"),
        ("mean=0.5", r"give numbers: mean=\["),
        ("std=[0]", "count from 0 to 1"),
        ("means=[0.5]", "no 'means'; there are mean, std"),
        ("mean=[", "cannot be read"),
        ("crop_pct=1.5", "share above 0"),
        ("interpolation='cubic'", "one of nearest, bilinear, bicubic"),
        ({"mean": [True]}, "give numbers"),
    ],
)
def test_what_no_picture_has_is_refused(given: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Pixels.read(given)


def test_a_file_that_says_nothing_of_pixels_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(OptionError, match="says no mean and no std"):
        Pixels.read(tmp_path / "config.json")
