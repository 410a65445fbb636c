"""Several graphs in one bundle: each is found by its name and stepped by itself."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intaglio.errors import BundleError, StateError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.bundle_diff import compare_bundles
from intaglio.runtime.contradictions import contradictions
from intaglio.runtime.graph_entry import MAIN
from intaglio.runtime.manifest import FILE_NAME, Manifest
from intaglio.runtime.profile.measure import profile
from intaglio.runtime.profile.settings import ProfileSettings
from intaglio.runtime.session import Session

IDS = np.arange(6).reshape(2, 3)


def test_a_session_steps_the_graph_it_is_told(two_graphs: Path) -> None:
    """Main unless another one is named; each has its own states."""
    opened = Bundle.open(two_graphs)
    main, scan = (Session.load(opened, graph=name, threads=1) for name in (MAIN, "scan"))

    assert list(opened.graphs) == [MAIN, "scan"]
    assert Session.load(two_graphs, threads=1).graph.name == MAIN
    assert [spec.layout for spec in main.entry.states] == ["static", "static"]
    assert [spec.layout for spec in scan.entry.states] == ["recurrent"]
    one, other = (session.step({"input_ids": IDS})["logits"] for session in (main, scan))
    assert not np.array_equal(one, other)
    assert np.array_equal(
        scan.fork().step({"input_ids": IDS})["logits"], scan.step({"input_ids": IDS})["logits"]
    )


def test_a_graph_that_is_not_there_is_told_with_those_that_are(two_graphs: Path) -> None:
    with pytest.raises(BundleError, match="has no graph 'encode'; it has: main, scan"):
        Session.load(two_graphs, graph="encode")
    with pytest.raises(BundleError, match=r"graph 'scan', has no target 'trt'; it has: ort"):
        Session.load(two_graphs, "trt", graph="scan")


def test_a_snapshot_of_one_graph_is_none_of_another(two_graphs: Path) -> None:
    main, scan = (Session.load(two_graphs, graph=name, threads=1) for name in (MAIN, "scan"))
    scan.step({"input_ids": IDS})

    with pytest.raises(StateError, match="belongs to another bundle"):
        main.state.restore(scan.state.save())


def test_a_bundle_has_a_main_graph(two_graphs: Path) -> None:
    entry = json.loads((two_graphs / FILE_NAME).read_text())
    entry["graphs"]["step"] = entry["graphs"].pop(MAIN)
    (two_graphs / FILE_NAME).write_text(json.dumps(entry))

    with pytest.raises(BundleError, match="graphs lacks the key 'main'"):
        Bundle.open(two_graphs)


def test_files_of_every_graph_stay_in_the_bundle(two_graphs: Path) -> None:
    entry = json.loads((two_graphs / FILE_NAME).read_text())
    entry["graphs"]["scan"]["targets"]["ort"]["path"] = "../scan.onnx"
    (two_graphs / FILE_NAME).write_text(json.dumps(entry))

    with pytest.raises(BundleError, match=r"'\.\./scan\.onnx', which leaves the bundle"):
        Bundle.open(two_graphs)


def test_files_beside_a_graph_are_called_alike(two_graphs: Path) -> None:
    """So each engine of a bundle has a record, and an index of kernels, of its own."""
    assert Bundle.open(two_graphs).graph("scan").beside("ort", "trt/build.json") == "ort/build.json"


def test_a_profile_measures_every_graph_or_the_one_it_is_told(two_graphs: Path) -> None:
    """In one process, in which all of them are open."""
    quick = ProfileSettings(
        contexts=[2], prompts=[3], threads=1, warmup=0, duration=0, iterations=2, percentiles=(90,)
    )
    found = profile([two_graphs], quick)
    [measured] = found.measured

    assert [str(phase) for phase in found.phases] == [
        *("prefill 3", "step at 2", "scan: prefill 3", "scan: step at 2"),
    ]
    assert [(ops.graph, ops.kind) for ops in measured.ops] == [
        *((MAIN, "prefill"), (MAIN, "step"), ("scan", "prefill"), ("scan", "step")),
    ]
    assert {spec.layout for spec in measured.states} == {"static", "recurrent"}


def test_bundles_are_compared_graph_by_graph(two_graphs: Path, tmp_path: Path) -> None:
    """Another graph for main leaves the one beside it equal."""
    shutil.copytree(two_graphs, tmp_path / "copy")
    opened = Bundle.open(tmp_path / "copy")
    swapped = opened.manifest.with_graph(MAIN, opened.manifest.graphs["scan"])
    one, other = Bundle.open(two_graphs), replace(opened, manifest=swapped)

    assert compare_bundles(one, other, graph="scan").same
    found = compare_bundles(one, other, graph=MAIN)
    assert {entry.kind for entry in found.entries} >= {"state"}


@pytest.fixture
def prepared(two_graphs: Path) -> Any:
    """A manifest whose main graph has a state that the graph `scan` prepares of a picture."""
    entry = json.loads((two_graphs / FILE_NAME).read_text())
    main, scan = entry["graphs"][MAIN], entry["graphs"]["scan"]
    picture = {"name": "picture", "dtype": "float32", "shape": ["batch", "height", 4]}
    result = {"name": "seen", "dtype": "float32", "shape": ["batch", "height", 8]}
    scan.update(inputs=[picture], outputs=[result], states=[])
    state = {**main["states"][0], "input": "seen", "output": "", "layout": "prepared"}
    main["states"].append({**state, "shape": result["shape"], "axis": None})
    main.update(conditions=[picture], prepare="scan")
    return entry


def test_a_graph_may_prepare_states_for_another(prepared: dict[str, Any], tmp_path: Path) -> None:
    """The manifest says so and comes back as it was."""
    found = Manifest.from_json(prepared)
    found.save(tmp_path / FILE_NAME)

    assert found.main.prepare == "scan"
    assert [spec.name for spec in found.main.conditions] == ["picture"]
    assert found.main.states[-1].output == ""
    assert Manifest.load(tmp_path / FILE_NAME) == found


# Places in the two graphs of that manifest, what is put there, and what is said of it.
MISFITS: list[tuple[str, Any, str]] = [
    ("main/prepare", None, "no graph that prepares them"),
    ("main/prepare", MAIN, "'main', which is no other graph"),
    ("main/prepare", "eye", "'eye', which is no other graph"),
    ("main/conditions", [], "are not the inputs of 'scan'"),
    ("main/conditions/0/name", "input_ids", "'input_ids' 2 times"),
    ("main/states/-1/output", "seen.out", "should have no output"),
    ("main/states/0/output", "", "should have an output"),
    ("main/states/-1/dtype", "float16", "'seen' is no output of 'scan'"),
    ("scan/prepare", MAIN, "should have no states"),
    ("scan/outputs", [], "'seen' is no output of 'scan'"),
]


@pytest.mark.parametrize(("where", "value", "words"), MISFITS)
def test_a_graph_is_prepared_by_what_fits_it(
    prepared: dict[str, Any], where: str, value: Any, words: str
) -> None:
    *keys, last = where.split("/")
    place: Any = prepared["graphs"]
    for key in keys:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value

    assert any(words in sentence for sentence in contradictions(prepared))
