"""What a bundle with changed weights is held to, where the source is a graph in a file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import intaglio
from intaglio.errors import BundleError, ParityError
from intaglio.exporter.proving.before_passes import before_passes
from intaglio.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products in a row whose weights stand as [inputs, outputs], as most files have them."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "up"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "down"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["z"]),
        helper.make_node("MatMul", ["z", "head"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "time"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "time", 16])],
        [
            weight("table", 16, 32),
            weight("up", 32, 64),
            weight("down", 64, 32),
            weight("head", 32, 16),
        ],
    )
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("passed", "whole"),
    [("rtn:bits=8,group=16", False), ("low-rank:by='svd',ratio=0.2", True)],
)
def test_weights_that_a_pass_changed_run_in_the_place_of_the_file(
    graph: Path, tmp_path: Path, passed: str, *, whole: bool
) -> None:
    """The bundle equals the changed weights, which are far from the file's own."""
    report = intaglio.export(graph, tmp_path / "bundle", passes=[passed], whole=whole, steps=8)

    assert report.parity is not None
    assert report.parity.passed
    assert report.parity.quantization is not None
    assert report.parity.quantization["logits"] > 1e-3
    if whole:
        return
    manifest = tmp_path / "bundle/manifest.json"
    entry = json.loads(manifest.read_text())
    for record in entry["graphs"]["main"]["passes"]:
        record.pop("details", None)
        record.pop("options", None)
    manifest.write_text(json.dumps(entry))
    assert intaglio.verify(tmp_path / "bundle", graph, steps=8).passed, "details are for people"


def test_other_weights_than_the_changed_ones_are_found(graph: Path, tmp_path: Path) -> None:
    """The file with one weight turned around is no source of the bundle."""
    passed = ["rtn:bits=8,group=16"]
    intaglio.export(graph, tmp_path / "bundle", passes=passed, verify=False)
    other = onnx.load(graph)
    (table,) = (each for each in other.graph.initializer if each.name == "table")
    table.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(table), "table"))
    onnx.save(other, tmp_path / "other.onnx")

    assert not intaglio.verify(tmp_path / "bundle", tmp_path / "other.onnx", steps=8).passed


@pytest.mark.parametrize(
    "details",
    [
        {"factored": {"up": 3}},
        {"factored": [1]},
        {"placed": {"up": 1}},
        {"placed": {"up": {"shape": 1}}},
        {"merged": {"up": {"first": "a"}}},
        {"merged": {"up": {"second": "a", "bias": [1]}}},
        {"kept_in_caches": {"a": 1}},
        {"kept_in_caches": {"a": {"b": [["x"]]}}},
        {"tuned": 3},
        7,
    ],
)
def test_what_a_pass_told_of_weights_has_the_form_that_is_read(
    bundle_of_a_pass: Path, tmp_path: Path, details: object
) -> None:
    entry = json.loads((bundle_of_a_pass / "manifest.json").read_text())
    entry["graphs"]["main"]["passes"][0]["details"] = details
    (tmp_path / "manifest.json").write_text(json.dumps(entry))

    with pytest.raises(BundleError, match="not a valid manifest"):
        Bundle.open(tmp_path)


@pytest.fixture(scope="module")
def bundle_of_a_pass(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "bundle"
    intaglio.export(graph, path, verify=False)
    return path


def test_a_file_that_is_compressed_beyond_what_passes_is_told(graph: Path, tmp_path: Path) -> None:
    """The limit is the usual one: `NAME.quantization`, of what the change itself moved."""
    with pytest.raises(ParityError, match=r"logits\.quantization"):
        intaglio.export(
            graph,
            tmp_path / "bundle",
            passes=["low-rank:by='svd',rank=1"],
            steps=8,
            tolerance={"logits.quantization": 0.1},
        )


@pytest.mark.parametrize(
    "details",
    [
        {"placed": {"m": {"shape": [10**9, 10**9], "places": [None, None]}}},
        {"factored": {"k": ["m", "v", "v"]}},
        {"merged": {"m": {"second": "b", "base": "a", "shape": [10**9, 10**9]}}},
        {"merged": {"m": {"second": "b", "first": "a", "by_output": [True]}}},
        {"merged": {"m": {"second": "b", "first": "a", "by_output": [True, True], "bias": []}}},
    ],
    ids=str,
)
def test_what_cannot_be_of_a_weight_is_refused(details: dict[str, Any]) -> None:
    weights = {"m": np.ones((4, 3), np.float32), "v": np.ones(4, np.float32)}
    with pytest.raises(BundleError, match="Export the bundle again"):
        before_passes(weights, [details])


NARROWS, MERGES = "modegpt", "merge-factors"


class Factors(nn.Module):
    """Three matrices in a row with biases between, one with a LoRA, and three layers in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 32)
        self.c, self.b, self.a = nn.Linear(32, 28), nn.Linear(28, 30), nn.Linear(30, 32)
        self.base = nn.Linear(32, 32)
        self.down, self.up = nn.Linear(32, 4, bias=False), nn.Linear(4, 32, bias=False)
        self.wide, self.middle = nn.Linear(32, 48), nn.Linear(48, 40)
        self.narrow = nn.Linear(40, 32)
        self.head = nn.Linear(32, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        x = x + self.a(self.b(self.c(x)))
        x = x + torch.tanh(self.base(x) + 2 * self.up(self.down(x)))
        rows = torch.relu(self.wide(x)).flatten(0, 1)
        x = x + self.narrow(torch.relu(self.middle(rows)).reshape(*x.shape[:2], -1))
        y: Tensor = self.head(x)
        return y


@pytest.mark.parametrize(
    "passes",
    [
        ["merge-factors", "rtn:bits=8,group=-1"],
        ["merge-factors", "low-rank:by='svd',ratio=0.2"],
        ["low-rank:by='svd',ratio=0.1", "merge-factors", "rtn:bits=8,group=-1"],
        ["modegpt:by='magnitude',ratio=0.2"],
        ["modegpt:by='magnitude',ratio=0.2", "modegpt:by='magnitude',ratio=0.2"],
        ["low-rank:by='svd',ratio=0.2", "modegpt:by='magnitude',ratio=0.2"],
        ["merge-factors", "modegpt:by='magnitude',ratio=0.2", "low-rank:by='svd',ratio=0.2"],
    ],
    ids=" ".join,
)
def test_what_several_passes_made_of_a_weight_is_followed_back(
    tmp_path: Path, passes: list[str]
) -> None:
    """Each pass starts from what the one before it left, in one pass a matrix twice."""
    torch.manual_seed(0)
    inputs = {"input_ids": torch.arange(8)[None]}
    report = intaglio.export(
        Factors(),
        tmp_path / "bundle",
        passes=passes,
        inputs=inputs,
        shapes={"input_ids": [(1, 1), (2, 4), (4, 64)]},
        steps=4,
        tolerance={"logits.quantization": 2},
    )

    assert report.parity is not None
    assert report.parity.passed
    assert report.parity.quantization is not None
    assert report.parity.quantization["logits"] > 1e-5
    merged = [r["details"]["tokens"] for r in report.manifest.main.passes if r["name"] == MERGES]
    assert merged == [8] * len(merged)
    narrowed = [r["details"]["layers"] for r in report.manifest.main.passes if r["name"] == NARROWS]
    for layers in narrowed:
        assert {"middle", "narrow"} <= {layer["path"].partition(".")[0] for layer in layers}


@pytest.mark.parametrize("first", ["merge-factors", "low-rank:by='svd',ratio=0.1"])
def test_factors_of_a_graph_are_followed_back(tmp_path: Path, first: str) -> None:
    """Weights of a file get another shape, and so does what lies between them."""
    random = np.random.default_rng(0)
    a, b = "onnx::MatMul_7", "onnx::MatMul_8"
    shapes = {"table": (16, 32), a: (32, 28), b: (28, 32), "head": (32, 16)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", a], ["h"], "/first/MatMul"),
        helper.make_node("MatMul", ["h", b], ["y"], "/second/MatMul"),
        helper.make_node("Tanh", ["y"], ["z"]),
        helper.make_node("MatMul", ["z", "head"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "time"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "time", 16])],
        [
            numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name)
            for name, shape in shapes.items()
        ],
        value_info=[helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", "time", 28])],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=9), tmp_path / "model.onnx")
    passes = [first, "rtn:bits=8,group=-1"]
    report = intaglio.export(tmp_path / "model.onnx", tmp_path / "bundle", passes=passes, steps=4)

    assert report.parity is not None
    assert report.parity.passed
    assert "dequantized" in report.parity.against
