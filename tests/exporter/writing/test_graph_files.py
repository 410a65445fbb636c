"""The graphs of a bundle share the bytes of their weights and run from where they lie."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from intaglio.exporter.writing.graph_files import ALIGNMENT, save_graphs
from intaglio.graph_keys import PARTS

FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


def graph(**weights: np.ndarray) -> ir.Model:
    """Sum of x and all `weights`."""
    x = ir.val("x", ir.DataType.FLOAT, ir.Shape([512]))
    total = x
    nodes, initializers = [], []
    for name, weight in weights.items():
        value = ir.val(name, const_value=ir.tensor(weight, name=name))
        initializers.append(value)
        nodes.append(ir.node("Add", [total, value]))
        total = nodes[-1].outputs[0]
    total.name, total.type, total.shape = "y", x.type, x.shape
    return ir.Model(
        ir.Graph([x], [total], nodes=nodes, initializers=initializers, opset_imports={"": 20}),
        ir_version=10,
    )


BIG, OTHER = np.arange(512, dtype=np.float32), np.full(512, 3, np.float32)
SMALL = np.ones(1, np.float32)


def run(folder: Path, name: str) -> float:
    """First output of a saved graph on zeros, opened the way a runtime opens it."""
    options = ort.SessionOptions()
    options.add_session_config_entry(FOLDER_OPTION, str(folder))
    session = ort.InferenceSession((folder / name).read_bytes(), options)
    outputs = session.run(None, {"x": np.zeros(512, np.float32)})
    return float(np.asarray(outputs[0])[1])


def locations(path: Path) -> dict[str, dict[str, str]]:
    model = onnx.load(path, load_external_data=False)
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
    }


def test_equal_tensors_are_written_once(tmp_path: Path) -> None:
    """The second graph points into the first one's file, and adds what is its own."""
    graphs = {"model.onnx": graph(a=BIG, s=SMALL), "ort/model.onnx": graph(b=BIG, c=OTHER)}

    opened = save_graphs(tmp_path, graphs)

    assert opened == {
        "model.onnx": ("model.onnx.data",),
        "ort/model.onnx": ("model.onnx.data", "ort/model.onnx.data"),
    }
    first, second = locations(tmp_path / "model.onnx"), locations(tmp_path / "ort" / "model.onnx")
    assert second["b"] == first["a"]
    assert first["s"] == {}
    assert (tmp_path / "model.onnx.data").stat().st_size == BIG.nbytes
    assert (run(tmp_path, "model.onnx"), run(tmp_path, "ort/model.onnx")) == (2.0, 4.0)


def test_parts_lie_where_an_earlier_graph_holds_them_joined(tmp_path: Path) -> None:
    """As one tensor: a third graph, of the same, says what it is made of."""
    whole, parts = graph(w=np.stack([BIG, OTHER])), graph(a=BIG, b=OTHER)
    packed = graph(w=np.stack([BIG, OTHER]))
    packed.graph.initializers["w"].metadata_props[PARTS] = json.dumps(["a", "b"])

    opened = save_graphs(tmp_path, {"one.onnx": whole, "two.onnx": parts, "three.onnx": packed})

    assert set(opened.values()) == {("one.onnx.data",)}
    found = {each.name: numpy_helper.to_array(each, str(tmp_path))
             for each in onnx.load(tmp_path / "two.onnx", load_external_data=False)
             .graph.initializer}  # fmt: skip
    np.testing.assert_array_equal(found["a"], BIG)
    np.testing.assert_array_equal(found["b"], OTHER)


def test_no_graph_opens_a_file_that_is_not_left(tmp_path: Path) -> None:
    """Two graphs join different ones of the weights that they share."""
    more = np.full(512, 5, np.float32)
    wide, packed = graph(w=np.stack([more, BIG, OTHER])), graph(w=np.stack([BIG, OTHER]))
    wide.graph.initializers["w"].metadata_props[PARTS] = json.dumps(["c", "a", "b"])
    packed.graph.initializers["w"].metadata_props[PARTS] = json.dumps(["a", "b"])
    graphs = {
        "one.onnx": graph(c=more, a=BIG, b=OTHER),
        "two.onnx": graph(a=BIG, b=OTHER),
        "three.onnx": wide,
        "four.onnx": packed,
    }

    opened = save_graphs(tmp_path, graphs)
    named = {each["location"] for name in graphs for each in locations(tmp_path / name).values()}
    assert named == {name for names in opened.values() for name in names}
    assert all((tmp_path / name).is_file() for name in named)


def test_tensors_begin_at_pages(tmp_path: Path) -> None:
    """Engines map weights into memory, which needs aligned offsets."""
    save_graphs(tmp_path, {"model.onnx": graph(a=BIG, b=OTHER)})

    places = locations(tmp_path / "model.onnx")

    assert [int(place["offset"]) for place in places.values()] == [0, ALIGNMENT]
    assert run(tmp_path, "model.onnx") == 4.0


def test_a_graph_of_small_tensors_needs_no_data_file(tmp_path: Path) -> None:
    """Nothing empty is left behind."""
    assert save_graphs(tmp_path, {"model.onnx": graph(s=SMALL)}) == {"model.onnx": ()}
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_saving_changes_no_graph(tmp_path: Path) -> None:
    """The weights stay in memory, so the bundle may be moved while the graph is in use."""
    model = graph(a=BIG)

    save_graphs(tmp_path, {"model.onnx": model})
    (tmp_path / "model.onnx.data").unlink()

    weight = model.graph.initializers["a"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), BIG)
