"""A session in C++ gives the bits that Python's gives, and they read each other's snapshots."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conditioned_bundle
import cpp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intaglio.exporter.export import export
from intaglio.runtime import Session, generate
from intaglio.runtime.graph_entry import Limits

SOURCE = Path(__file__).parents[1] / "cpp/steps.cpp"
PARTS = (3, 1, 1, 9, 1)  # past the first capacity of 8
MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    return cpp.compiled(Path(shutil.copy(SOURCE, folder)))


class Steps:
    """Runs the program on a bundle."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder = program, folder

    def run(self, bundle: Path, inputs: Any, parts: Any, *options: Any) -> "str | dict[str, Any]":
        """Outputs by name and step; the message where it fails."""
        given, found = self.folder / "given.npz", self.folder / "found.npz"
        np.savez(given, **inputs)
        command = [self.program, bundle, given, found, ",".join(map(str, parts)), *options]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        return done.stderr.strip() if done.returncode else dict(np.load(found))


@pytest.fixture
def steps(program: Path, tmp_path: Path) -> Steps:
    return Steps(program, tmp_path)


def expected(session: Session, ids: Any, parts: Any, start: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for count, size in enumerate(parts):
        given = {"input_ids": ids[:, start : start + size]}
        found |= {f"{name}.{count}": x for name, x in session.step(given).items()}
        start += size
    return found


def assert_same(found: Any, wanted: Any) -> None:
    assert isinstance(found, dict), found
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize(
    "layouts", [("static",), ("grow",), ("recurrent", "conv", "window", "static")], ids=len
)
@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_outputs_and_snapshots_are_those_of_python(
    layouts: tuple[str, ...],
    external: bool,
    make_bundle: MakeBundle,
    make_ids: Callable[..., Any],
    steps: Steps,
) -> None:
    """Two rows, in parts, beyond the first capacity; then on from each other's snapshots."""
    bundle = make_bundle(*layouts, external=external)
    ids, half = make_ids(2, sum(PARTS)), 5
    kept, taken = steps.folder / "c++.npz", steps.folder / "python.npz"
    session = Session.load(bundle, threads=1, capacity=8)
    options = ("--capacity", 8)

    found = steps.run(bundle, {"input_ids": ids}, PARTS, *options)
    assert_same(found, expected(session, ids, PARTS))
    session.state.reset()
    wanted = expected(session, ids, PARTS[:3])
    session.state.save(taken)
    found = steps.run(bundle, {"input_ids": ids}, PARTS[:3], *options, "--save", kept)
    assert_same(found, wanted)
    wanted = expected(session, ids, PARTS[3:], half)
    assert_same(
        steps.run(bundle, {"input_ids": ids[:, half:]}, PARTS[3:], "--restore", taken), wanted
    )
    session.state.restore(kept)
    assert_same(expected(session, ids, PARTS[3:], half), wanted)


def test_conditions_are_prepared_once(steps: Steps, tmp_path: Path) -> None:
    """With one that may be left out; a snapshot brings them along."""
    bundle = conditioned_bundle.write(tmp_path / "bundle")
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 4, 2)).astype(np.float32)
    memory = generator.standard_normal((2, 3, 2)).astype(np.float32)
    session = Session.load(bundle, threads=1)
    session.condition({"memory": memory})
    wanted = [session.step({"x": x[:, at : at + 2]})["y"] for at in (0, 2)]
    kept = tmp_path / "kept.npz"
    given = {"x": x[:, :2], "condition:memory": memory}

    assert_same(steps.run(bundle, given, [2], "--save", kept), {"y.0": wanted[0]})
    assert_same(steps.run(bundle, {"x": x[:, 2:]}, [2], "--restore", kept), {"y.0": wanted[1]})
    session.state.restore(kept)
    np.testing.assert_array_equal(session.step({"x": x[:, 2:]})["y"], wanted[1])
    assert steps.run(bundle, {"x": x}, [4]) == (
        "the session lacks its conditions: call condition before the first step"
    )


def test_bad_input_is_told(
    make_bundle: MakeBundle, make_ids: Callable[..., Any], steps: Steps, tmp_path: Path
) -> None:
    """Each in one line, whatever is wrong with bundle, inputs or snapshot."""
    bundle = make_bundle("static", limits=Limits(max_context=6))
    ids = make_ids(1, 8)
    kept = tmp_path / "kept.npz"
    steps.run(bundle, {"input_ids": ids}, [2], "--save", kept)
    (damaged := tmp_path / "damaged.npz").write_bytes(kept.read_bytes()[:-200])
    flipped = bytearray(kept.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    (wrong := tmp_path / "wrong.npz").write_bytes(flipped)

    def told(inputs: Any, *options: Any, parts: Any = (1,), of: Path = bundle) -> str:
        said = steps.run(of, inputs, parts, *options)
        assert isinstance(said, str)
        return said

    good = {"input_ids": ids}
    assert told({}) == "the input input_ids is missing"
    assert told({**good, "more": ids}) == "there is no input more"
    assert "is int32, should be int64" in told({"input_ids": ids.astype(np.int32)})
    assert "is [8], should have 2 axes" in told({"input_ids": ids[0]}, parts=[8])
    assert "a row would hold 7 tokens, and positions end at 6" in told(good, parts=[6, 1])
    assert "at least one row" in told({"input_ids": ids[:0]})
    assert "damaged.npz" in told(good, "--restore", damaged)
    assert "wrong.npz" in told(good, "--restore", wrong)
    assert "is a snapshot of another bundle" in told(
        good, "--restore", kept, of=make_bundle("static", seed=1)
    )
    assert "manifest.json cannot be read" in told(good, of=tmp_path)


class Picks(nn.Module):
    """Edges between nodes, and rows of two tables by the columns of `kinds`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(3, 4), nn.Embedding(5, 4)

    def forward(self, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
        x = x + self.a(kinds[:, 0]) + self.b(kinds[:, 1])
        return x.index_add(0, edges[1], x[edges[0]])


def test_what_indices_pick_from_may_be_an_axis_or_a_table_for_each_column(
    steps: Steps, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    example = {
        "x": torch.zeros(4, 4),
        "edges": torch.tensor([[0, 1, 3], [1, 2, 0]]),
        "kinds": torch.tensor([[0, 4], [2, 1], [1, 3], [0, 0]]),
    }
    axes = {"x": "nodesx4", "edges": "2xlinks", "kinds": "nodesx2"}
    export(Picks(), bundle, inputs=example, axes=axes)
    good = {
        "x": np.ones((2, 4), np.float32),
        "edges": np.array([[0, 1, 1], [1, 1, 0]]),
        "kinds": np.array([[2, 4], [0, 0]]),
    }
    wanted = Session.load(bundle, threads=1).step(good)
    assert_same(steps.run(bundle, good, [1]), {f"{name}.0": x for name, x in wanted.items()})
    for name, value, told in (
        ("edges", [[0, 2], [1, 1]], "the input edges has 2; it should be from 0 to 1"),
        ("edges", [[0, -1], [1, 1]], "the input edges has -1; it should be from 0 to 1"),
        ("kinds", [[3, 0], [0, 0]], "the input kinds has 3; it should be from 0 to 2"),
        ("kinds", [[2, 5], [0, 0]], "the input kinds has 5; it should be from 0 to 4"),
    ):
        assert steps.run(bundle, {**good, name: np.array(value)}, [1]) == told


def test_the_program_of_the_page_prints_what_a_session_generates(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """Compiled as it stands in docs/cpp.md."""
    page = (SOURCE.parents[2] / "docs/cpp.md").read_text(encoding="utf-8")
    [text] = re.findall(r"^```cpp\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (source := tmp_path / "step.cpp").write_text(text, encoding="utf-8")
    program, bundle, prompt = cpp.compiled(source), make_bundle(), b"\x05\x03"
    new = generate(Session.load(bundle, threads=1), list(prompt), max_new_tokens=12)
    command = [str(program), str(bundle), prompt.decode(), "12"]

    assert subprocess.run(command, capture_output=True, check=True).stdout == bytes(new) + b"\n"


def test_conditions_of_a_snapshot_replace_those_that_were_given(
    steps: Steps, tmp_path: Path
) -> None:
    """Also where it has none: it was taken before any were given."""
    bundle = conditioned_bundle.write(tmp_path / "bundle")
    session = Session.load(bundle, threads=1)
    session.state.save(tmp_path / "none.npz")
    x, memory = np.ones((2, 1, 2), np.float32), np.ones((2, 3, 2), np.float32)
    session.condition({"memory": memory})
    session.state.save(tmp_path / "before.npz")
    wanted = session.step({"x": x})["y"]

    restored = steps.run(bundle, {"x": x}, [1], "--restore", tmp_path / "before.npz")
    assert_same(restored, {"y.0": wanted})
    told = steps.run(bundle, {"x": x[:1]}, [1], "--restore", tmp_path / "before.npz")
    assert told == "the step has 1 rows, the state 2"
    assert "lacks its conditions" in str(
        steps.run(bundle, {"x": x}, [1], "--restore", tmp_path / "none.npz")
    )
