"""An option of loading has one name, in Python, on the command line and in a recipe."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from intaglio.cli.commands.load_flags import LoadFlags
from intaglio.errors import OptionError
from intaglio.exporter.options.loading import (
    FLAGS,
    OF_ALL,
    LoadKeywords,
    LoadOptions,
    SourceOptions,
    as_graphs,
)
from intaglio.exporter.options.recipe import Recipe, RecipeKeywords, decide

OF_A_BUNDLE = {"implied", "offered"}  # what no user says


def names(record: type) -> set[str]:
    return {entry.name for entry in fields(record)}


def test_every_option_is_a_keyword_and_a_flag() -> None:
    """Whoever adds one to the record is told where else it stands.

    Graphs are made by the export alone, one for each `--graph NAME=METHOD`: other commands name one
    with `--graph`, and find in the bundle what it was made of.
    """
    assert set(LoadKeywords.__annotations__) == names(LoadOptions) - OF_A_BUNDLE
    assert set(LoadFlags.__annotations__) == names(LoadOptions) - OF_A_BUNDLE - {"graphs"}
    own = names(Recipe) - names(SourceOptions) - {"hashes"}  # of what is given beside a recipe
    assert set(RecipeKeywords.__annotations__) == own


def test_what_is_given_last_decides_and_none_gives_nothing() -> None:
    found = LoadOptions.of({"model": "a", "key": "k", "steps": 5}, {"model": "b", "key": None})

    assert found == LoadOptions(model="b", key="k")
    assert found.given() == {"model": "b", "key": "k"}


@pytest.mark.parametrize(
    "name", sorted(names(LoadOptions) - OF_A_BUNDLE - {"allow_code", "allow_pickle", *OF_ALL})
)
def test_a_kind_of_source_refuses_whatever_it_does_not_take(name: str) -> None:
    """Consent is none of these, nor is what every kind of source takes."""
    given = LoadOptions.of({name: {"x": ["batch"]}, "allow_code": True, "allow_pickle": True})

    given.take("a stone", name)
    flag = FLAGS.get(name, name.replace("_", "-"))
    replace(given, implied=[name]).take("a stone")  # nobody typed it
    with pytest.raises(OptionError, match=f"--{flag} says nothing about a stone"):
        given.take("a stone", *(names(LoadOptions) - {name}))


def test_keywords_go_before_the_recipe(tmp_path: Path) -> None:
    """What it repeats of loading comes back; what it does not is the caller's."""
    (tmp_path / "net.json").write_text('{"width": 3, "rope": null}')
    first = Recipe().override({"model": "nets:Net", "config": tmp_path / "net.json", "steps": 9})
    (tmp_path / "recipe.toml").write_text(first.to_toml())

    how, loading = decide(
        tmp_path / "recipe.toml",
        {"key": "ema", "steps": 7, "import_from": ["code"], "allow_code": True},
    )

    assert (how.model, how.key, how.steps) == ("nets:Net", "ema", 7)
    assert loading == LoadOptions(
        model="nets:Net",
        config={"width": 3, "rope": None},
        key="ema",
        import_from=["code"],
        allow_code=True,
    )


def test_a_config_without_keys_is_not_the_one_of_the_checkpoint(tmp_path: Path) -> None:
    """A recipe tells them apart."""
    (tmp_path / "recipe.toml").write_text(decide(None, {"config": {}})[0].to_toml())

    assert decide(tmp_path / "recipe.toml", {})[1].config == {}
    assert decide(None, {})[1].config is None


ODD = [3, [], {"method": "encode", "speed": 2}, {"generates": {"a": 1}}]


@pytest.mark.parametrize("entry", ODD)
def test_a_graph_of_no_form_is_told(entry: object) -> None:
    with pytest.raises(OptionError, match=r"The graph 'main' is .*; give a method's name, or"):
        as_graphs({"main": entry})
