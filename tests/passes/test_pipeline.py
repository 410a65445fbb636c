"""The pipeline: options, records, and exact passes held to their promise."""

from pathlib import Path

import onnx_ir as ir
import pytest

from intaglio.errors import CheckError, PassError
from intaglio.passes import PASSES, pipeline
from intaglio.passes.base import Calibrated, Context, Exact, Lower, PassResult
from intaglio.passes.exact.fold_constants import FoldConstants
from intaglio.passes.exact.statefulize import Statefulize

TEXT = """
    <ir_version: 10, opset_import: ["" : 24]>
    g (float[batch, time, 2] x) => (float[batch, time, 2] y)
    <float[2] weight = {1.0, 2.0}>
    { h = Mul (x, weight) y = Relu (h) }
"""


class DropRelu(Exact):
    """A wrong pass: it takes Relu for the identity."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        relu = next(node for node in model.graph if node.op_type == "Relu")
        relu.outputs[0].name = "was"
        model.graph.outputs[0] = relu.inputs[0]  # type: ignore[assignment]
        model.graph.outputs[0].name = "y"
        model.graph.remove(relu)
        return PassResult(changed=True)


def test_a_wrong_exact_pass_is_caught_where_it_is_checked() -> None:
    """Unchecked it goes through; checked it fails by its name, with the error it made."""
    pipeline.run(ir.from_onnx_text(TEXT), [DropRelu()], Context())
    with pytest.raises(
        CheckError, match=r"the pass 'drop-relu' changed 'y' at batch = 2, time = 1: error \d"
    ):
        pipeline.run(ir.from_onnx_text(TEXT), [DropRelu()], Context(), check=True)


class LoseState(Exact):
    """A wrong statefulize: every call starts from nothing."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        result = Statefulize().run(model, context)
        node = next(node for node in model.graph if node.op_type == "LinearAttention")
        node.replace_input_with(3, None)
        return result


def test_a_state_that_is_dropped_is_caught_by_splitting_the_sequence() -> None:
    """One call with all tokens is right; only a split tells."""
    model = ir.from_onnx_text("""
        <ir_version: 13, opset_import: ["" : 27]>
        g (float[batch, time, 8] x) => (float[batch, time, 8] y)
        {
          y, state = LinearAttention <update_rule = "linear", q_num_heads = 2, kv_num_heads = 2,
            scale = 0.5> (x, x, x)
        }
    """)
    with pytest.raises(CheckError, match="split as"):
        pipeline.run(model, [LoseState()], Context(), check=True)


def test_records_say_what_changed() -> None:
    """Names, options, sizes before and after, and the error of the check."""
    model = ir.from_onnx_text(TEXT)
    [record] = pipeline.run(model, [FoldConstants(limit=10)], Context(), check=True)
    assert record.to_json() == {
        "name": "fold-constants",
        "options": {"limit": 10},
        "changed": False,
        "notes": [],
        "details": {},
        "changes": [],
        "nodes": [2, 2],
        "initializers": [1, 1],
        "bytes": [8, 8],
        "error": None,
    }


def test_every_pass_has_a_name_a_promise_and_a_summary() -> None:
    """`list passes` prints them."""
    for entry in PASSES:
        assert issubclass(entry, Exact | Calibrated | Lower)
        assert entry.summary.endswith(".")
    assert Statefulize.name == "statefulize"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("statefulize", Statefulize()),
        ("statefulize:kv='grow'", Statefulize(kv="grow")),
        ("fold-constants:limit=5", FoldConstants(limit=5)),
    ],
)
def test_options_are_toml(spec: str, expected: Exact) -> None:
    """NAME or NAME:key=value."""
    assert pipeline.parse(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fold", "no pass 'fold'; the passes are: .*fold-constants"),
        ("fold-constants:limit", "not TOML"),
        ("fold-constants:size=3", "no option 'size'; it has: limit"),
        ("fold-constants:limit='3'", "should be of type"),
        ("fold-constants:limit=true", "should be of type"),
        ("statefulize:kv='ring'", "should be of type"),
        ("mine.py:rewrite", "--allow-code"),
    ],
)
def test_bad_options_are_told(spec: str, message: str) -> None:
    """The message names what was typed and what is possible."""
    with pytest.raises(PassError, match=message):
        pipeline.parse(spec)


def test_a_pass_of_the_users_own_runs_and_is_checked(tmp_path: Path) -> None:
    """FILE.py:FUNCTION rewrites the graph in place and says whether it did."""
    path = tmp_path / "mine.py"
    path.write_text("def rewrite(model):\n    model.graph.node(0).name = 'seen'\n    return True\n")
    model = ir.from_onnx_text(TEXT)
    [record] = pipeline.run(
        model, [pipeline.parse(f"{path}:rewrite", allow_code=True)], Context(), check=True
    )
    assert model.graph.node(0).name == "seen"
    assert record.error == 0
    with pytest.raises(PassError, match="no such function"):
        pipeline.parse(f"{path}:other", allow_code=True)


@pytest.mark.parametrize(
    "spec",
    [
        'rtn:bits=4,group=8,overrides={"layers.0.mlp.*"=2}',
        'rtn:bits=4,group=8,overrides={"a"=[2]}',
        "rtn:bits=4,skip=[1]",
        "rtn:bits=4,overrides=[]",
    ],
)
def test_nested_options_of_a_wrong_type_are_refused(spec: str) -> None:
    """As TOML gives them, before anything runs."""
    with pytest.raises(PassError, match="should be of type"):
        pipeline.parse(spec)
