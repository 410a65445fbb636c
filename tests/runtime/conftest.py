"""Small bundles made by hand: one step graph for each layout of carried state, and a mix."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from intaglio.graph_keys import MODULE
from intaglio.runtime.graph_entry import MAIN, GraphEntry, Limits, TargetEntry, TensorSpec
from intaglio.runtime.manifest import FILE_NAME, FileRecord, Manifest
from intaglio.runtime.session import Session
from intaglio.state import BATCH, CAPACITY, PAST, PAST_LENGTH, TIME, Layout, StateSpec

Array = npt.NDArray[Any]
MakeBundle = Callable[..., Path]
MakeSession = Callable[..., Session]

VOCABULARY, HEADS, WIDTH = 23, 2, 4  # WIDTH of a head
MODEL = HEADS * WIDTH
KERNEL, WINDOW = 4, 3
LAYOUTS = ("recurrent", "conv", "window", "static", "grow")


class GraphBuilder:
    """Emits a language model of residual blocks, one carried kind each."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.states: list[StateSpec] = []
        self.module = ""

    def emit(self, op: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        names = list(outputs) or [f"{op}_{len(self.nodes)}"]
        node = helper.make_node(op, inputs, names, name=f"node_{names[0]}", **attributes)
        node.metadata_props.add(key=MODULE, value=self.module)
        self.nodes.append(node)
        return names[0]

    def constant(self, array: Array) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.random.normal(0, 0.4, shape).astype(np.float32))

    def project(self, x: str, width: int = MODEL) -> str:
        return self.emit("MatMul", [x, self.weight(MODEL, width)])

    def heads(self, x: str) -> str:
        """[batch, time, heads * width] to [batch, heads, time, width]."""
        split = self.emit("Reshape", [x, self.constant(np.array([0, 0, HEADS, WIDTH]))])
        return self.emit("Transpose", [split], perm=[0, 2, 1, 3])

    def merged(self, x: str) -> str:
        swapped = self.emit("Transpose", [x], perm=[0, 2, 1, 3])
        return self.emit("Reshape", [swapped, self.constant(np.array([0, 0, MODEL]))])

    def state(
        self, layout: str, port: str, layer: int, shape: tuple[int | str, ...], axis: int | None
    ) -> StateSpec:
        family = "past" if layout in ("recurrent", "conv") else "past_key_values"
        spec = StateSpec(
            input=f"{family}.{layer}.{port}",
            output=f"present.{layer}.{port}",
            dtype="float32",
            shape=shape,
            layout=Layout(layout),
            axis=axis,
            op="Attention" if axis else "LinearAttention",
            port=port,
            module=f"layers.{layer}",
            layer=layer,
            call=0,
            window=WINDOW if layout == "window" else None,
        )
        self.states.append(spec)
        return spec

    def recurrent(self, x: str, layer: int) -> str:
        state = self.state("recurrent", "recurrent", layer, (BATCH, HEADS, WIDTH, WIDTH), None)
        decay = self.emit("Neg", [self.emit("Softplus", [self.project(x)])])
        inputs = [*(self.project(x) for _ in range(3)), state.input, decay]
        y = f"recurrent_{layer}"
        return self.emit(
            *("LinearAttention", inputs, y, state.output),
            q_num_heads=HEADS,
            kv_num_heads=HEADS,
            update_rule="gated",
            domain="com.microsoft",
        )

    def conv(self, x: str, layer: int) -> str:
        state = self.state("conv", "conv", layer, (BATCH, MODEL, KERNEL - 1), None)
        channels = self.emit("Transpose", [x], perm=[0, 2, 1])
        inputs = [channels, self.weight(MODEL, 1, KERNEL), self.weight(MODEL), state.input]
        y = self.emit(
            *("CausalConvWithState", inputs, f"conv_{layer}", state.output), domain="com.microsoft"
        )
        return self.emit("Transpose", [y], perm=[0, 2, 1])

    def positions(self, x: str, *, first: str) -> str:
        """Positions [batch, time] of the new tokens, counted from `first` [batch]."""
        time = self.emit("Gather", [self.emit("Shape", [x]), self.constant(np.array(1))])
        span = self.emit("Range", [self.constant(np.array(0)), time, self.constant(np.array(1))])
        return self.emit(
            "Add", [span, self.emit("Unsqueeze", [first, self.constant(np.array([1]))])]
        )

    def window(self, x: str, layer: int) -> str:
        shape = (BATCH, HEADS, WINDOW - 1, WIDTH)
        keys, values = (self.state("window", port, layer, shape, 2) for port in ("key", "value"))
        query = self.heads(self.project(x))
        all_keys, all_values = (
            self.emit("Concat", [state.input, self.heads(self.project(x))], axis=2)
            for state in (keys, values)
        )
        ends = [self.constant(np.array([i])) for i in (1 - WINDOW, np.iinfo(np.int64).max, 2)]
        self.emit("Slice", [all_keys, *ends], keys.output)
        self.emit("Slice", [all_values, *ends], values.output)
        column = self.constant(np.array([2]))
        queries = self.emit("Unsqueeze", [self.positions(x, first=PAST_LENGTH), column])
        start = self.emit("Sub", [PAST_LENGTH, self.constant(np.array([WINDOW - 1]))])
        transposed = self.emit("Transpose", [all_keys], perm=[0, 2, 1, 3])
        seen = self.emit(
            "Unsqueeze", [self.positions(transposed, first=start), self.constant(np.array([1]))]
        )
        distance = self.emit("Sub", [queries, seen])
        mask = self.emit("And", [
            self.emit("And", [
                self.emit("GreaterOrEqual", [distance, self.constant(np.array(0))]),
                self.emit("Less", [distance, self.constant(np.array(WINDOW))]),
            ]),
            self.emit("GreaterOrEqual", [seen, self.constant(np.array(0))]),
        ])  # fmt: skip
        mask = self.emit("Unsqueeze", [mask, self.constant(np.array([1]))])
        return self.merged(self.emit("Attention", [query, all_keys, all_values, mask]))

    def static(self, x: str, layer: int) -> str:
        shape = (BATCH, HEADS, CAPACITY, WIDTH)
        caches = [self.state("static", port, layer, shape, 2) for port in ("key", "value")]
        for state in caches:
            update = self.heads(self.project(x))
            self.emit("TensorScatter", [state.input, update, PAST_LENGTH], state.output)
        time = self.emit("Gather", [self.emit("Shape", [x]), self.constant(np.array(1))])
        total = self.emit("Add", [PAST_LENGTH, time])
        query = self.heads(self.project(x))
        inputs = [query, *(state.output for state in caches), "", "", "", total]
        return self.merged(self.emit("Attention", inputs, is_causal=1))

    def grow(self, x: str, layer: int) -> str:
        shape = (BATCH, HEADS, PAST, WIDTH)
        caches = [self.state("grow", port, layer, shape, 2) for port in ("key", "value")]
        query, key, value = (self.heads(self.project(x)) for _ in range(3))
        inputs = [query, key, value, "", *(state.input for state in caches)]
        outputs = [f"grow_{layer}", *(state.output for state in caches)]
        return self.merged(self.emit("Attention", inputs, *outputs, is_causal=1))

    def model(self, layouts: tuple[str, ...]) -> onnx.ModelProto:
        x = self.emit("Gather", [self.weight(VOCABULARY, MODEL), "input_ids"])
        for layer, layout in enumerate(layouts):
            self.module = f"layers.{layer}"
            x = self.emit("Add", [x, getattr(self, layout)(x, layer)])
        self.module = "head"
        self.emit("MatMul", [x, self.weight(MODEL, VOCABULARY)], "logits")
        self.emit("Identity", [x], "hidden")
        graph = helper.make_graph(
            self.nodes,
            "step",
            [
                helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, [BATCH, TIME]),
                *([_info(PAST_LENGTH, np.int64, (BATCH,))] if self.takes_past_length else []),
                *(_info(s.input, np.float32, s.shape) for s in self.states),
            ],
            [
                _info("logits", np.float32, (BATCH, TIME, VOCABULARY)),
                _info("hidden", np.float32, (BATCH, TIME, MODEL)),
                *(_info(s.output, np.float32, (*s.shape[:2], None, *s.shape[3:]))
                  if s.layout is Layout.GROW else _info(s.output, np.float32, s.shape)
                  for s in self.states),
            ],
            self.initializers,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11)

    @property
    def takes_past_length(self) -> bool:
        return any(PAST_LENGTH in node.input for node in self.nodes)


def _info(name: str, dtype: Any, shape: tuple[int | str | None, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
    )


def _build_bundle(
    folder: Path,
    layouts: tuple[str, ...] = LAYOUTS,
    *,
    seed: int = 0,
    limits: Limits | None = None,
    external: bool = False,
) -> Path:
    """Write a bundle whose blocks carry state in `layouts`; `external` moves the weights out."""
    builder = GraphBuilder(seed)
    model = builder.model(layouts)
    (folder / "ort").mkdir(parents=True)
    data = ("model.onnx.data",) if external else ()
    if data:
        _externalize(model, folder / data[0])
    (folder / "ort/model.onnx").write_bytes(model.SerializeToString())
    entry = GraphEntry(
        inputs=(TensorSpec("input_ids", "int64", (BATCH, TIME)),),
        outputs=(
            TensorSpec("logits", "float32", (BATCH, TIME, VOCABULARY)),
            TensorSpec("hidden", "float32", (BATCH, TIME, MODEL)),
        ),
        states=tuple(builder.states),
        past_length=builder.takes_past_length,
        limits=limits or Limits(),
        targets={"ort": TargetEntry(path="ort/model.onnx", opset=24, data=data)},
    )
    Manifest(
        source={"name": "by-hand.pt", "sha256": f"{seed:064x}", "format": "by hand"},
        graphs={MAIN: entry},
        files={name: FileRecord.of(folder / name) for name in ("ort/model.onnx", *data)},
    ).save(folder / "manifest.json")
    return folder


def _externalize(model: onnx.ModelProto, path: Path) -> None:
    with path.open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor.data_type != onnx.TensorProto.FLOAT:
                continue  # shape inference needs to see the axes and the like
            raw = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            where = {"location": path.name, "offset": file.tell(), "length": len(raw)}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(raw.ljust(-(-len(raw) // 64) * 64, b"\0"))


@pytest.fixture(scope="session")
def build_bundle() -> MakeBundle:
    """Make a bundle in a folder that is given, for fixtures that many tests share."""
    return _build_bundle


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Make bundles in fresh folders; arguments as `_build_bundle` takes them."""
    count = iter(range(100))
    return lambda *layouts, **options: _build_bundle(
        tmp_path / f"bundle-{next(count)}", layouts or LAYOUTS, **options
    )


@pytest.fixture
def two_graphs(make_bundle: MakeBundle) -> Path:
    """A bundle whose graph `main` has a cache, and whose graph `scan` a recurrent state."""
    root, other = make_bundle("static"), make_bundle("recurrent", seed=1)
    place = "ort/scan.onnx"
    shutil.copy(other / "ort/model.onnx", root / place)
    manifest, scan = Manifest.load(root / FILE_NAME), Manifest.load(other / FILE_NAME).main
    scan = replace(scan, targets={"ort": replace(scan.targets["ort"], path=place)})
    files = {**manifest.files, place: FileRecord.of(root / place)}
    replace(manifest.with_graph("scan", scan), files=files).save(root / FILE_NAME)
    return root


@pytest.fixture
def make_session(make_bundle: MakeBundle) -> MakeSession:
    """Load a session of one thread from a fresh bundle; arguments as `make_bundle` takes them.

    `capacity` and `grow` go to `Session.load`.
    """

    def make(*layouts: str, capacity: int | None = 8, grow: bool = True, **options: Any) -> Session:
        bundle = make_bundle(*layouts, **options)
        return Session.load(bundle, threads=1, capacity=capacity, grow=grow)

    return make


@pytest.fixture
def make_ids() -> Callable[..., Array]:
    """Random token ids of a shape; the same for the same shape and seed."""

    def make(*shape: int, seed: int = 0) -> Array:
        return np.random.default_rng(seed).integers(0, VOCABULARY, shape)

    return make
