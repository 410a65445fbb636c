"""A bundle that the release before wrote: schema version 1, one graph without a name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intaglio.errors import BundleError
from intaglio.exporter.proving.verify import verify
from intaglio.runtime.arrays import read_npz
from intaglio.runtime.graph_entry import MAIN
from intaglio.runtime.manifest import FILE_NAME, Manifest
from intaglio.runtime.manifest_versions import SCHEMA_VERSION, upgraded
from intaglio.runtime.session import Session

# Gated DeltaNet with convolutions and attention, vocabulary of 16; beside the bundle its
# checkpoint, logits of two rows of twelve tokens, and a snapshot of the state after them.
FOLDER = Path(__file__).parents[1] / "data" / "bundle_of_version_1"
OLD = FOLDER / "bundle"


@pytest.fixture
def entry() -> Any:
    return json.loads((OLD / FILE_NAME).read_text())


def test_the_bundle_is_of_the_version_before(entry: dict[str, Any]) -> None:
    """Whoever raises the version makes a bundle of the one that is then before."""
    assert entry["schema_version"] == SCHEMA_VERSION - 1


def test_it_steps_as_it_did() -> None:
    """All at once and one token at a time, from the start and from a snapshot of then."""
    recorded = read_npz(FOLDER / "steps.npz")
    ids, wanted = recorded["input_ids"], recorded["logits"]
    session = Session.load(OLD, threads=1)
    layouts = {str(spec.layout) for spec in session.entry.states}
    parts = [session.step({"input_ids": ids[:, at : at + 1]})["logits"] for at in range(12)]
    restored = Session.load(OLD, graph=MAIN, threads=1)
    restored.state.restore(FOLDER / "state.npz")

    assert layouts == {"conv", "recurrent", "static"}
    assert np.allclose(np.concatenate(parts, axis=1), wanted, rtol=0, atol=1e-5)
    got, same = (each.step({"input_ids": ids[:, :3]})["logits"] for each in (session, restored))
    assert np.allclose(got, same, rtol=0, atol=1e-5)


def test_it_verifies_against_its_checkpoint(tmp_path: Path) -> None:
    """And keeps the report beside its manifest, which stays what it was."""
    shutil.copytree(OLD, tmp_path / "bundle")
    report = verify(tmp_path / "bundle", FOLDER / "model.pt", steps=20)

    assert report.passed
    assert (tmp_path / "bundle" / FILE_NAME).read_bytes() == (OLD / FILE_NAME).read_bytes()


def test_it_is_written_in_the_version_of_now(tmp_path: Path, entry: dict[str, Any]) -> None:
    """As a command does that adds an engine; nothing that was said is lost."""
    old = Manifest.load(OLD / FILE_NAME)
    old.save(tmp_path / FILE_NAME)
    written = json.loads((tmp_path / FILE_NAME).read_text())
    main = written["graphs"][MAIN]

    assert Manifest.load(tmp_path / FILE_NAME) == old
    assert {**written, **main, "schema_version": SCHEMA_VERSION - 1}.items() >= entry.items()


def test_what_is_of_neither_version_is_refused(entry: dict[str, Any], tmp_path: Path) -> None:
    for spoilt, words in (
        ({**entry, "graphs": {}}, "the unknown key 'inputs'"),
        ({**entry, "schema_version": 0}, "reads versions 1 and 2.*: export it again"),
        ({**entry, "novelty": 1}, "the unknown key 'novelty'"),
        ({key: entry[key] for key in entry if key != "states"}, "lacks the key 'states'"),
    ):
        (tmp_path / FILE_NAME).write_text(json.dumps(spoilt))
        with pytest.raises(BundleError, match=words):
            Manifest.load(tmp_path / FILE_NAME)
    assert upgraded([1]) == [1]
