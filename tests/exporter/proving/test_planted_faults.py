"""Faults planted in the step graph of a bundle are found, each where it shows."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from shutil import copytree

import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from intaglio.exporter.export import export
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source

GRAPH = "ort/model.onnx"
Change = Callable[[onnx.GraphProto], None]


class Sums(nn.Module):
    """Two sums of the past, which may be anything, and weights that they are read with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        one, other = self.embed(input_ids).chunk(2, -1)
        sums = torch.cat([0.02 * one.cumsum(1), 0.02 * other.square().cumsum(1)], -1)
        result: Tensor = self.head(sums)
        return result


@pytest.fixture(scope="module")
def source() -> Source:
    torch.set_num_threads(1)
    return load_source(Sums())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("planted") / "bundle"
    return export(Sums(), out, verify=False).out


def planted(bundle: Path, out: Path, change: Change) -> Path:
    """A copy of `bundle`, valid in itself, whose step graph was changed."""
    copytree(bundle, out)
    model = onnx.load(out / GRAPH, load_external_data=False)
    change(model.graph)
    written = model.SerializeToString()
    (out / GRAPH).write_bytes(written)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"][GRAPH] = {"sha256": sha256(written).hexdigest(), "bytes": len(written)}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def states(graph: onnx.GraphProto) -> list[str]:
    return [each.name for each in graph.input if each.name.startswith("past")]


def swap(graph: onnx.GraphProto) -> None:
    """Each of two states is read in place of the other."""
    one, other = states(graph)
    turned = {one: other, other: one}
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = turned.get(name, name)


def drift(graph: onnx.GraphProto) -> None:
    """A state loses a part in a million with each call."""
    name = states(graph)[1]
    for node in graph.node:
        for at, each in enumerate(node.input):
            node.input[at] = "drifted" if each == name else each
    graph.initializer.append(helper.make_tensor("less", onnx.TensorProto.FLOAT, [], [1 - 1e-6]))
    graph.node.insert(0, helper.make_node("Mul", [name, "less"], ["drifted"]))


def drop(graph: onnx.GraphProto) -> None:
    """A state is read as it was before the first token."""
    name = states(graph)[0]
    for node in graph.node:
        for at, each in enumerate(node.input):
            node.input[at] = "nothing" if each == name else each
    graph.initializer.append(helper.make_tensor("none", onnx.TensorProto.FLOAT, [], [0.0]))
    graph.node.insert(0, helper.make_node("Mul", [name, "none"], ["nothing"]))


def test_the_copy_without_a_fault_holds(bundle: Path, source: Source, tmp_path: Path) -> None:
    copy = planted(bundle, tmp_path / "copy", lambda _: None)
    assert verify(copy, source, keep=False).passed


@pytest.mark.parametrize("change", [drop, swap, drift])
def test_a_fault_of_states_is_found(
    bundle: Path, source: Source, tmp_path: Path, change: Change
) -> None:
    """A drift shows after some hundred calls alone: as many as are made unless fewer are asked."""
    report = verify(planted(bundle, tmp_path / "copy", change), source, keep=False)
    assert not report.passed
