"""Bisect names the node that was tampered with, whatever was done to it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from intaglio.exporter.export import export
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.exporter.proving.bisect import bisect, first_divergence
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import trace
from intaglio.models import find, save
from intaglio.models.gated_deltanet import Config
from intaglio.passes.graph import add_initializer, load_graph

GRAPH = "ort/model.onnx"
Tampering = Callable[[ir.Graph], None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Config(hidden_size=32, intermediate_size=48, head_size=16, num_kv_heads=2)
    path = tmp_path_factory.mktemp("source") / "model.pt"
    save(path, "gated-deltanet", config, find("gated-deltanet").build(config))
    return load_source(path)


@pytest.fixture(scope="module")
def bundle(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one row, so that its attention is ONNX Runtime's fused one."""
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    export(
        source, out, shapes=ServedShapes.parse(shapes=["input_ids:1x1:1x16:1x512"]), verify=False
    )
    return out


@pytest.fixture(scope="module")
def traced(source: Source) -> ir.Model:
    return trace(source).model


def tampered(bundle: Path, folder: Path, tampering: Tampering) -> Path:
    copy = folder / "copy"
    shutil.copytree(bundle, copy)
    model = load_graph(copy, GRAPH)
    tampering(model.graph)
    ir.save(model, copy / GRAPH)
    return copy


def find_node(graph: ir.Graph, op: str, layer: int) -> ir.Node:
    return next(
        node
        for node in graph
        if node.op_type == op
        and node.metadata_props.get("intaglio.module", "").startswith(f"layers.{layer}.")
    )


def weight(graph: ir.Graph) -> None:
    """One entry of the third parameter that ONNX Runtime multiplies together with others."""
    names = [f"layers.0.mixer.{part}_proj.weight" for part in "qkvg"]
    value = graph.initializers["|".join(names)]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[2 * len(array) // 4 + 3, 5] += 0.1
    value.const_value = ir.tensor(array, name=value.name)


def derived(graph: ir.Graph) -> None:
    """A weight that a pass made of a parameter, wrong in one entry."""
    node = find_node(graph, "RMSNormalization", 1)
    old = node.inputs[1]
    assert old is not None
    assert old.const_value is not None
    array = old.const_value.numpy().copy()
    array[3] += 0.1
    made = add_initializer(graph, f"{old.name}.scaled", array, of=[str(old.name)])
    node.replace_input_with(1, made)


def attribute(graph: ir.Graph) -> None:
    find_node(graph, "LinearAttention", 1).attributes["scale"] = ir.AttrFloat32("scale", 0.3)


def fused(graph: ir.Graph) -> None:
    find_node(graph, "GroupQueryAttention", 3).attributes["scale"] = ir.AttrFloat32("scale", 0.1)


def state(graph: ir.Graph) -> None:
    """The recurrence of layer 2 hands on the state that it was given."""
    node = find_node(graph, "LinearAttention", 2)
    present, past = node.outputs[1], node.inputs[3]
    assert past is not None
    kept = ir.node("Identity", [past], name="kept")
    kept.outputs[0].type, kept.outputs[0].shape = present.type, present.shape
    graph.append(kept)
    graph.outputs[list(graph.outputs).index(present)] = kept.outputs[0]
    present.name, kept.outputs[0].name = "unused", present.name


def test_a_bundle_as_exported_has_no_divergence(bundle: Path, source: Source) -> None:
    """Every shared value agrees, with all tokens at once and in two parts."""
    assert bisect(bundle, source) is None


@pytest.mark.parametrize(
    ("tampering", "module", "op", "parameters", "carried"),
    [
        (weight, "layers.0.mixer", "MatMul", ("layers.0.mixer.v_proj.weight",), False),
        (attribute, "layers.1.mixer", "LinearAttention", (), False),
        (fused, "layers.3.mixer", "GroupQueryAttention", (), False),
        (state, "layers.2.mixer", "LinearAttention", (), True),
    ],
)
def test_the_node_at_fault_is_named(
    tampering: Tampering,
    module: str,
    op: str,
    parameters: tuple[str, ...],
    carried: bool,
    bundle: Path,
    traced: ir.Model,
    tmp_path: Path,
) -> None:
    """A weight, an attribute, a fused node and a state, each in another layer."""
    found = first_divergence(tampered(bundle, tmp_path, tampering), traced, limit=1e-4)
    assert found is not None
    assert (found.module, found.op, found.parameters, found.carried) == (
        module,
        op,
        parameters,
        carried,
    )
    assert module in found.summary()


def test_the_parameter_behind_a_weight_that_a_pass_made_is_named(
    bundle: Path, traced: ir.Model, tmp_path: Path
) -> None:
    """The bundle's own weight is none of the source's; what it was made of is."""
    found = first_divergence(tampered(bundle, tmp_path, derived), traced, limit=1e-4)

    assert found is not None
    [(made, of)] = found.derived.items()
    assert of == [made.removesuffix(".scaled")]
    assert f"its weight {made} is made of {of[0]}" in found.summary()
