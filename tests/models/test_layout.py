"""Layouts: their values are read by name and kind, and no config or file breaks the asking."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from intaglio.errors import SourceError
from intaglio.models import MODELS, CheckpointLayout
from intaglio.models.layout import Asked, read_value, refuse, renamed

LAYOUTS = [
    pytest.param(layout, id=f"{model.name}-{layout.name}")
    for model in MODELS
    for layout in model.layouts
]
ODD = [{}, {"model_type": []}, {"model_type": {}, "config": 3}, {"architectures": "x"}]


def test_values_are_read_by_name_and_kind() -> None:
    assert read_value({"size": 3}, "size", int) == 3
    assert read_value({}, "size", int | None, None) is None
    assert read_value({"layers": [1, 2]}, "layers", tuple[int, ...]) == [1, 2]
    with pytest.raises(KeyError, match="size"):
        read_value({}, "size", int)
    for wrong in (0, True, "3", [3]):
        with pytest.raises(SourceError, match="size"):
            read_value({"size": wrong}, "size", int)
    with pytest.raises(SourceError, match="a list, each entry an integer"):
        read_value({"layers": "12"}, "layers", tuple[int, ...])


def test_options_are_held_to_what_is_supported() -> None:
    refuse({"bias": False}, {"bias": (False,), "gate": (None,)})
    with pytest.raises(SourceError, match=r"bias = 0, of which only False"):
        refuse({"bias": 0}, {"bias": (False,)})


def test_all_names_that_are_missing_are_told() -> None:
    with pytest.raises(KeyError) as caught:
        renamed({}, {"a": "x", "b": "y"})
    assert caught.value.args == ("x", "y")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("values", ODD, ids=str)
def test_a_layout_answers_for_any_config(layout: CheckpointLayout, values: dict[str, Any]) -> None:
    assert not layout.fits(values, [])


def official() -> Iterator[Any]:
    """The configs of full size among the data, and the layouts that read them."""
    for path in sorted((Path(__file__).parents[1] / "data" / "keys").glob("*.json")):
        listed = json.loads(path.read_text())
        for entry in listed.get("models", {"": listed}).values():
            shapes = {n: tuple(shape) for n, shape in entry.get("keys", {}).items()}
            for model in MODELS:
                for layout in model.layouts:
                    if layout.immaterial is not None and layout.fits(entry["config"], shapes):
                        name = entry["config"].get("model_type", path.stem)
                        yield pytest.param(layout, entry["config"], shapes, id=name)


@pytest.mark.parametrize(("layout", "config", "shapes"), [*official()])
def test_a_value_that_is_not_known_is_not_passed_over(
    layout: CheckpointLayout, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    """What released configs hold is read or changes nothing; any other value is named."""
    immaterial = layout.immaterial or ()
    library = {"transformers_version": "5.23.0", "use_cache": True, "later_option": None}
    asked = Asked({**config, **library})
    layout.configure(asked, shapes)
    asked.check(immaterial)
    asked = Asked({**config, "logit_softcapping": 30.0})
    layout.configure(asked, shapes)
    with pytest.raises(SourceError, match=r"logit_softcapping = 30\.0, which is not known"):
        asked.check(immaterial)
