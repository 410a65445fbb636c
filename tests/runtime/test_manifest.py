"""The manifest comes back as it was written; one that cannot be read is told what is wrong."""

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from intaglio import __version__
from intaglio.errors import BundleError
from intaglio.runtime.manifest import FileRecord, Manifest, schema

MakeBundle = Callable[..., Path]


@pytest.fixture
def path(make_bundle: MakeBundle) -> Path:
    return make_bundle() / "manifest.json"


def test_a_manifest_survives_writing_and_reading(path: Path, tmp_path: Path) -> None:
    """Every field comes back equal, and writing it again gives the same bytes."""
    manifest = Manifest.load(path)
    manifest.save(tmp_path / "again.json")

    assert Manifest.load(tmp_path / "again.json") == manifest
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_text_does_not_depend_on_the_order_of_keys(path: Path, tmp_path: Path) -> None:
    """Mappings are written sorted, lists in their order, with a newline at the end."""
    entry = json.loads(path.read_text())
    backwards = {key: entry[key] for key in reversed(entry)}
    Manifest.from_json(backwards).save(tmp_path / "again.json")

    assert (tmp_path / "again.json").read_text() == path.read_text()
    assert path.read_text().endswith("}\n")


def test_a_manifest_is_valid_by_the_published_schema(path: Path) -> None:
    """The package jsonschema, which knows nothing of this reader, agrees."""
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(json.loads(path.read_text()))


def test_the_schema_lies_beside_the_module_that_reads_it() -> None:
    """An installed package finds it too, as package data."""
    found = importlib.util.find_spec("intaglio.runtime")
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin).with_name("manifest.schema.json").is_file()


def test_a_newer_schema_names_the_intaglio_that_reads_it(path: Path) -> None:
    """Its other keys may be unknown here, so the version is looked at first."""
    entry = {"schema_version": 3, "intaglio": "7.1.0", "novelty": True}
    path.write_text(json.dumps(entry))

    with pytest.raises(BundleError, match=rf"{__version__} reads.* by intaglio 7\.1\.0"):
        Manifest.load(path)


def _without_states(entry: dict[str, Any]) -> None:
    del entry["graphs"]["main"]["states"]


def _text_for_batch(entry: dict[str, Any]) -> None:
    entry["graphs"]["main"]["limits"]["batch"] = "four"


def _unknown_layout(entry: dict[str, Any]) -> None:
    entry["graphs"]["main"]["states"][1]["layout"] = "ring"


def _short_hash(entry: dict[str, Any]) -> None:
    entry["files"]["ort/model.onnx"]["sha256"] = "abc"


def _unknown_key(entry: dict[str, Any]) -> None:
    entry["graphs"]["main"]["targets"]["ort"]["opsett"] = 24


def _change_of_nothing(entry: dict[str, Any]) -> None:
    record = {"name": "tidy", "changed": True, "nodes": [2, 1], "error": None, "notes": []}
    entry["graphs"]["main"]["passes"] = [{**record, "changes": [{"removed": {"Add": 1}}]}]


def _options_of_no_kind(entry: dict[str, Any]) -> None:
    record = {"name": "tidy", "changed": True, "nodes": [2, 1], "error": None, "notes": []}
    entry["graphs"]["main"]["passes"] = [{**record, "options": "bits"}]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_options_of_no_kind, "passes[0].options is 'bits', should be of type object"),
        (_without_states, "lacks the key 'states'"),
        (_text_for_batch, "limits.batch is 'four', should be of type integer or null"),
        (_unknown_layout, "states[1].layout is 'ring', should be one of recurrent"),
        (_short_hash, "files['ort/model.onnx'].sha256 is 'abc', should match"),
        (_change_of_nothing, "passes[0].changes[0] lacks the key 'modules'"),
        (_unknown_key, "targets['ort'] has the unknown key 'opsett'"),
    ],
)
def test_a_fault_is_named_with_its_place(
    path: Path, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    """The message names the file, the path in it, what is there and what should be."""
    entry = json.loads(path.read_text())
    spoil(entry)
    path.write_text(json.dumps(entry))

    with pytest.raises(BundleError, match=re.escape(message)) as caught:
        Manifest.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "\udcff"])
def test_what_is_no_manifest_is_a_bundle_error(path: Path, text: str) -> None:
    """Neither a parser's error nor a KeyError reaches the user."""
    path.write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(BundleError, match=re.escape(str(path))):
        Manifest.load(path)


def test_an_invalid_manifest_is_not_written(path: Path) -> None:
    """What `load` would refuse, `save` refuses, and the old file stays."""
    before = path.read_bytes()
    manifest = replace(Manifest.load(path), versions={"torch": ""}, source={"name": "model.pt"})

    with pytest.raises(BundleError, match="source lacks the key 'sha256'"):
        manifest.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []


def test_a_file_record_holds_size_and_hash(tmp_path: Path) -> None:
    """The hash is SHA-256 of the content."""
    (tmp_path / "file").write_bytes(b"abc")

    assert FileRecord.of(tmp_path / "file") == FileRecord(
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3
    )
