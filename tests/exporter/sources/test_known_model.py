"""A model of ours is outlined for a config of anybody: in little memory, or refused by name."""

import dataclasses

import pytest

from intaglio.errors import SourceError
from intaglio.exporter.sources.known_model import outline
from intaglio.models import MODELS, Model
from intaglio.models import s4 as s4_model

LARGE = 10**6


def integers(model: Model) -> list[str]:
    return [field.name for field in dataclasses.fields(model.config) if field.type in (int, "int")]


def test_no_number_of_a_config_ends_in_another_error() -> None:
    """What does not fit another number is told as such."""
    refused = []
    for model in MODELS:
        for name in integers(model):
            try:
                model.configure({name: LARGE})
            except SourceError as error:
                refused.append(str(error))
    assert any("'bib' does not fit: max_positions 16 is below 1000000" in each for each in refused)
    assert any("'longmem' does not fit: segment should be" in each for each in refused)


def test_what_is_computed_takes_no_more_memory_than_a_graph_may() -> None:
    """The numbers that S4 starts from are computed, and would be gigabytes."""
    with pytest.raises(SourceError, match="The model 's4' cannot be built with this config"):
        outline(s4_model.S4, s4_model.S4.configure({"rank": 2**25}), entries=0)
