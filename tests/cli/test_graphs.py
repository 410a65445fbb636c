"""Commands on a bundle of two graphs: all of them, or with `--graph` the one that is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import invoke

from intaglio.runtime.manifest import FILE_NAME, FileRecord, Manifest


@pytest.fixture(scope="module")
def two(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with its graph once more, called `draft`, in a file of its own."""
    root = tmp_path_factory.mktemp("graphs") / "two"
    shutil.copytree(bundle, root)
    (root / "ort/draft.onnx").write_bytes((root / "ort/model.onnx").read_bytes())
    manifest = Manifest.load(root / FILE_NAME)
    target = replace(manifest.main.targets["ort"], path="ort/draft.onnx")
    draft = replace(manifest.main, targets={"ort": target})
    files = {**manifest.files, "ort/draft.onnx": FileRecord.of(root / "ort/draft.onnx")}
    replace(manifest.with_graph("draft", draft), files=files).save(root / FILE_NAME)
    return root


def test_inspect_tells_every_graph_under_its_name(two: Path) -> None:
    shown = invoke("inspect", two).stdout
    found = json.loads(invoke("inspect", two, "--json").stdout)

    assert shown.count("\ngraph    main") == shown.count("\ngraph    draft") == 2
    assert list(found["graphs"]) == ["main", "draft"]
    assert found["graphs"]["draft"]["weights"] == found["graphs"]["main"]["weights"]


def test_inspect_tells_the_graph_that_is_named(two: Path) -> None:
    """As of a bundle that has no other."""
    shown = invoke("inspect", two, "--graph=draft").stdout
    found = json.loads(invoke("inspect", two, "--graph=draft", "--json").stdout)

    assert "target   ort: ort/draft.onnx" in shown
    assert "ort: ort/model.onnx" not in shown
    assert found["weights"]["bits_per_weight"] == 32


def test_differences_are_told_graph_by_graph(bundle: Path, two: Path) -> None:
    shown = invoke("inspect", "--diff", two, bundle).stdout
    found = json.loads(invoke("inspect", "--diff", two, two, "--json").stdout)

    assert f"graph    draft is in {two} alone" in shown
    assert [each["same"] for each in found["graphs"].values()] == [True, True]


def test_run_steps_the_graph_that_is_named(two: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", input_ids=np.ones((1, 3), np.int64))
    given = ("run", two, "--inputs", tmp_path / "ids.npz", "-o", tmp_path / "out.npz")

    assert invoke(*given, "--graph", "draft").exit_code == 0
    refused = invoke(*given, "--graph", "encode")
    assert refused.exit_code == 1
    assert "has no graph 'encode'; it has: main, draft." in refused.stderr


def test_profile_measures_all_graphs_or_one(two: Path) -> None:
    quick = "--context=1 --prompt-length=2 --warmUp=0 --duration=0 --iterations=1 --no-ops --json"
    every, one = (
        json.loads(invoke("profile", two, *quick.split(), *more).stdout)
        for more in ([], ["--graph=draft"])
    )
    phases = [
        [(each["graph"], each["kind"]) for each in found["measured"][0]["timings"]]
        for found in (every, one)
    ]

    assert phases[0] == [
        *(("main", "prefill"), ("main", "step"), ("draft", "prefill"), ("draft", "step")),
    ]
    assert phases[1] == [("draft", "prefill"), ("draft", "step")]


def test_doctor_tells_the_targets_of_every_graph(two: Path) -> None:
    found = json.loads(invoke("doctor", two, "--json").stdout)

    assert found["bundles"][str(two)] == {"ort": [], "draft: ort": []}


def test_build_wants_a_graph_for_tensorrt(two: Path) -> None:
    refused = invoke("build", two, "--graph", "draft")

    assert refused.exit_code == 1
    assert "graph 'draft', has no target 'trt'" in refused.stderr
