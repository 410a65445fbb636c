"""A loop that ends above its tolerance is told, and an error where that is asked for."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import invoke

from intaglio.errors import ConvergenceError
from intaglio.exporter.export import export
from intaglio.runtime.session import Session

HALVES = """<ir_version: 10, opset_import: ["" : 23]>
loop (float[batch] x) => (float[batch] solution, float[batch] residual, int64 count)
<float half = {0.5}, float tolerance = {0.01}, int64 one = {1}, int64 cap = {9}, int64 zero = {0},
 bool yes = {1}> {
  s, residual, count = Loop(, yes, x, x, zero) <body = trip
    (int64 i, bool c, float[batch] y, float[batch] r, int64 k)
    => (bool go, float[batch] y2, float[batch] r2, int64 k2) {
      y2 = Mul(y, half)
      r2 = Abs(y2)
      k2 = Add(k, one)
      above = Greater(r2, tolerance)
      number = Cast<to = 6>(above)
      most = ReduceMax<keepdims = 0>(number)
      some = Cast<to = 9>(most)
      fewer = Less(k2, cap)
      go = And(some, fewer)
    }>
  solution = Identity(s)
}"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Halves its input until it is below 0.01, nine times at most."""
    folder = tmp_path_factory.mktemp("convergence")
    onnx.save(onnx.parser.parse_model(HALVES), folder / "halves.onnx")
    export(folder / "halves.onnx", folder / "bundle", whole=True)
    return folder / "bundle"


def test_a_step_raises_where_that_is_asked_for_with_what_it_gave(bundle: Path) -> None:
    told, strict = Session.load(bundle), Session.load(bundle, require_convergence=True)
    near, far = {"x": np.array([1, 2, 4], np.float32)}, {"x": np.array([1, 50], np.float32)}
    assert {o.name: o.tolerance for o in told.entry.outputs} == {
        "solution": None, "residual": pytest.approx(0.01), "count": None
    }  # fmt: skip
    assert (strict.step(near)["residual"] <= 0.01).all()
    found = told.step(far)
    assert found["count"] == 9
    said = r"residual of 1 of 2 entries is above the tolerance 0\.01, up to 0\.0976"
    for session in (strict, strict.fork()):
        with pytest.raises(ConvergenceError, match=said) as raised:
            session.step(far)
        np.testing.assert_array_equal(raised.value.outputs["solution"], found["solution"])
    with pytest.raises(ConvergenceError, match="up to nan"):
        strict.step({"x": np.array([1, np.nan], np.float32)})


def test_run_tells_it_and_exits_with_3_where_that_is_asked_for(
    bundle: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "far.npz", x=np.array([1, 50], np.float32))
    np.savez(tmp_path / "near.npz", x=np.array([1, 2], np.float32))
    out = tmp_path / "out.npz"
    run = ("run", bundle, "--inputs", tmp_path / "far.npz", "--json")
    found = invoke(*run)
    assert found.exit_code == 0
    assert "up to 0.0976" in json.loads(found.stdout)["unconverged"]
    found = invoke(*run, "-o", out, "--require-convergence")
    assert found.exit_code == 3
    assert json.loads(found.stdout)["error"]["type"] == "ConvergenceError"
    assert np.load(out)["count"] == 9
    found = invoke("run", bundle, "--inputs", tmp_path / "near.npz", "--require-convergence")
    assert found.exit_code == 0
