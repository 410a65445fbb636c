"""Graphs for `fuzz.py`: ONNX's own tests of operators, changed, joined, wrapped and lied about."""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import onnx
from fuzz_mutations import INTEGERS, STRINGS, change_graph
from onnx import TensorProto, helper

Model = onnx.ModelProto
SMALL = 20_000  # bytes of a test that is taken


def write_graphs(folder: Path) -> None:
    """Write the graphs that are changed: those of ONNX's tests that are small."""
    from onnx.backend.test.case.node import collect_testcases

    folder.mkdir()
    for case in collect_testcases(None):
        content = b"" if case.model is None else case.model.SerializeToString()
        if 0 < len(content) <= SMALL:
            (folder / f"{case.name}.onnx").write_bytes(content)


def draw_graph(folder: Path, choice: Random) -> tuple[bytes, str]:
    """A graph of the folder, changed in a few ways."""
    path = choice.choice(sorted(folder.glob("*.onnx")))
    model = onnx.ModelProto.FromString(path.read_bytes())
    said = [path.stem]
    for _ in range(choice.choice((1, 1, 2, 3))):
        way = choice.choice(WAYS)
        said.append(way(model, choice) or way.__name__.strip("_"))
    content = model.SerializeToString()
    for _ in range(choice.choice((0, 0, 1, 2))):
        try:
            content, what = change_graph(content, choice)
        except Exception:  # noqa: BLE001  bytes that were changed before are no graph
            break
        said.append(what)
    return content, ", ".join(said)


def _nothing(_model: Model, _choice: Random) -> None:
    """The test as it is."""


def _functions(model: Model, choice: Random) -> str:
    """Functions that call each other twice: as deep as is drawn, in a circle at times."""
    depth, circle = choice.choice((3, 12, 40, 400)), choice.random() < 0.2
    for level in range(depth):
        below = "Tanh" if level == 0 and not circle else f"f{(level - 1) % depth}"
        domain = "" if below == "Tanh" else "fuzz"
        nodes = [helper.make_node(below, ["a"], ["b"], domain=domain),
                 helper.make_node(below, ["b"], ["c"], domain=domain)]  # fmt: skip
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("fuzz", 1)]
        model.functions.append(
            helper.make_function("fuzz", f"f{level}", ["a"], ["c"], nodes, imports)
        )
    model.opset_import.append(helper.make_opsetid("fuzz", 1))
    _append(model, helper.make_node(f"f{depth - 1}", [_last(model)], ["fuzz_f"], domain="fuzz"))
    return f"functions {depth}{' in a circle' if circle else ''}"


def _loop(model: Model, choice: Random) -> str:
    """A loop around the last output, of any number of rounds."""
    rounds = choice.choice((0, 3, 2**20, 2**40, 2**62))
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Abs", ["a"], ["b"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("a", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []),
         helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )  # fmt: skip
    _constant(model, "fuzz_n", np.array(rounds))
    _constant(model, "fuzz_t", np.array(True))
    node = helper.make_node("Loop", ["fuzz_n", "fuzz_t", _last(model)], ["fuzz_l"], body=body)
    _append(model, node)
    return f"loop {rounds}"


def _large(model: Model, choice: Random) -> str:
    """Values that are large once they are computed."""
    op = choice.choice(("Tile", "Expand", "Range", "ConstantOfShape", "Pad", "Resize", "OneHot"))
    size = choice.choice((0, 5, 10**6, 10**9, 10**12, 2**62, -1))
    _constant(model, "fuzz_s", np.array([size]))
    _constant(model, "fuzz_0", np.array(0))
    _constant(model, "fuzz_1", np.array(1))
    _constant(model, "fuzz_size", np.array(size))
    inputs = {
        "Range": ["fuzz_0", "fuzz_size", "fuzz_1"],
        "ConstantOfShape": ["fuzz_s"],
        "OneHot": ["fuzz_s", "fuzz_size", "fuzz_s"],
    }.get(op, [_last(model), "fuzz_s"])
    _append(model, helper.make_node(op, inputs, ["fuzz_large"]))
    return f"{op} {size}"


def _deep(model: Model, choice: Random) -> str:
    """Branches within branches."""
    depth = choice.choice((2, 20, 60, 200))
    graph = helper.make_graph(
        [helper.make_node("Identity", [_last(model)], ["z"])], "g", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )  # fmt: skip
    for _ in range(depth):
        node = helper.make_node("If", ["fuzz_c"], ["z"], then_branch=graph, else_branch=graph)
        if node.ByteSize() > 1 << 20:
            break
        graph = helper.make_graph(
            [node], "g", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
        )
    _constant(model, "fuzz_c", np.array(True))
    _append(model, helper.make_node("If", ["fuzz_c"], ["fuzz_i"], then_branch=graph,
                                    else_branch=graph))  # fmt: skip
    return f"deep {depth}"


def _weight(model: Model, choice: Random) -> str:
    """A weight of any type and shape, which may not be what it holds; inside, sparse or outside."""
    kind = choice.choice(list(TensorProto.DataType.values()))
    dims = choice.choice(([], [0], [2], [3, 0], [2, 3], [2**40], [-1], [2**31, 2**31, 4]))
    tensor = TensorProto(name="fuzz_w", data_type=kind, dims=dims)
    size = abs(math.prod(dims)) if abs(math.prod(dims)) < 100 else 4
    form = choice.choice(("raw", "typed", "outside", "sparse", "none"))
    if form == "raw":
        tensor.raw_data = bytes(choice.choice((0, size, size * 2, size * 4, size * 8)))
    elif form == "typed":
        field = choice.choice(("float_data", "int32_data", "int64_data", "double_data"))
        getattr(tensor, field).extend([1] * size)
    elif form == "outside":
        tensor.data_location = TensorProto.EXTERNAL
        entries = {
            "location": choice.choice((*STRINGS, "model.onnx")),
            "offset": str(choice.choice(INTEGERS)),
            "length": str(choice.choice(INTEGERS)),
        }
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value.encode("utf-8", "replace").decode())
    if form == "sparse":
        values = helper.make_tensor("fuzz_w", TensorProto.FLOAT, [2], [1.0, 2.0])
        indices = helper.make_tensor(
            "fuzz_x", TensorProto.INT64, [2], [0, choice.choice((1, 5, -1, 2**40))]
        )
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dims))
    else:
        model.graph.initializer.append(tensor)
    if choice.random() < 0.6:
        _append(model, helper.make_node("Identity", ["fuzz_w"], ["fuzz_v"]))
    return f"weight {form} {kind} {dims}"


def _typed(model: Model, choice: Random) -> str:
    """Another type of an input or output: sequences and optional values among them."""
    values = [*model.graph.input, *model.graph.output]
    value = choice.choice(values) if values else None
    if value is None:
        return "nothing to type"
    shapes: Sequence[Sequence[str | int | None] | None] = ([], None, [2], ["n", 3])
    plain = helper.make_tensor_type_proto(
        choice.choice(list(TensorProto.DataType.values())), choice.choice(shapes)
    )
    kinds: Sequence[Callable[[], onnx.TypeProto]] = (
        lambda: plain,
        lambda: helper.make_sequence_type_proto(plain),
        lambda: helper.make_optional_type_proto(plain),
        lambda: helper.make_sparse_tensor_type_proto(1, [2]),
    )
    made = choice.choice(kinds)()
    value.type.CopyFrom(made)
    return f"type {made.WhichOneof('value')} of {value.name[:20]}"


def _node(model: Model, choice: Random) -> str:
    """One more node of any operator, on values that there are."""
    schemas = onnx.defs.get_all_schemas()
    schema = choice.choice(schemas)
    names = [v.name for v in (*model.graph.input, *model.graph.initializer)]
    names += [name for node in model.graph.node for name in node.output]
    count = choice.randrange(0, 4)
    inputs = [choice.choice([*names, ""]) for _ in range(count)]
    outputs = [f"fuzz_y{i}" for i in range(choice.choice((1, 1, 2, 3)))]
    _append(model, helper.make_node(schema.name, inputs, outputs, domain=schema.domain))
    return f"node {schema.name}"


def _dims(model: Model, choice: Random) -> str:
    """Other dimensions of the inputs: free, none, huge or zero."""
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            drawn = choice.choice((0, 1, 2**31, -1, "batch", "time", "n", "", None, None, None))
            if isinstance(drawn, str):
                dim.dim_param = drawn
            elif drawn is not None:
                dim.dim_value = drawn
    return "dims"


def _opset(model: Model, choice: Random) -> str:
    """Another label."""
    version = choice.choice((0, 1, 5, 6, 7, 9, 10, 11, 12, 13, 17, 18, 22, 26, 27, 28, 99, -1))
    for entry in model.opset_import:
        entry.version = version
    model.ir_version = choice.choice((3, 4, 8, 10, 13, 99))
    return f"opset {version}"


WAYS: Sequence[Callable[[Model, Random], str | None]] = (
    *(_nothing, _functions, _loop, _large, _deep, _weight, _weight, _typed, _node, _node),
    *(_dims, _opset),
)


def _last(model: Model) -> str:
    outputs = [name for node in model.graph.node for name in node.output if name]
    return outputs[-1] if outputs else "x"


def _constant(model: Model, name: str, array: np.ndarray) -> None:
    if name not in {tensor.name for tensor in model.graph.initializer}:
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))


def _append(model: Model, node: onnx.NodeProto) -> None:
    """Append a node, whose first output the graph returns."""
    suffix = str(len(model.graph.node))
    node.output[:] = [f"{name}_{suffix}" for name in node.output]
    model.graph.node.append(node)
    kind = random.Random(suffix).choice((TensorProto.FLOAT, TensorProto.INT64, None))
    value = helper.make_empty_tensor_value_info(node.output[0])
    if kind is not None:
        value.type.CopyFrom(helper.make_tensor_type_proto(kind, None))
    model.graph.output.append(value)
