"""Dimensions are given in Python as they are typed, or as sequences."""

from typing import Any

import pytest

from intaglio.errors import OptionError
from intaglio.exporter.options.layout_text import read_layouts
from intaglio.exporter.options.loading import LoadOptions, as_graphs
from intaglio.exporter.options.recipe import Recipe
from intaglio.graphs import Graph

MEL = {"mel": ["batch", 80, "time"]}


@pytest.mark.parametrize(
    "given",
    [
        {"mel": ("batch", 80, "time")},
        {"mel": "batchx80xtime"},
        "mel:batchx80xtime",
        " mel:batch, 80, time ",
        ["mel:batchx80xtime"],
    ],
)
def test_one_input_in_every_form(given: Any) -> None:
    assert read_layouts(given) == MEL
    assert LoadOptions.of({"axes": given}).axes == MEL
    assert Recipe().override({"axes": given}).axes == MEL
    assert as_graphs({"main": Graph(axes=given)})["main"].axes == MEL


def test_several_inputs_in_one_text() -> None:
    found = read_layouts("x:batch, height=64..512:32  edge_index:2xedges<nodes s:")

    assert found == {
        "x": ["batch", "height=64..512:32"],
        "edge_index": [2, "edges<nodes"],
        "s": [],
    }


@pytest.mark.parametrize(
    "given", ["mel", ["mel"], {"mel": 3}, {"mel": [1.5]}, 7, [("mel",)], ":x8"]
)
def test_what_names_no_dimensions_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match="is not NAME:DIMS"):
        read_layouts(given)
