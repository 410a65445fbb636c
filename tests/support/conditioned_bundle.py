"""A bundle with conditions, small enough to say what its steps give."""

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import parser

from intaglio.runtime.graph_entry import MAIN, GraphEntry, TargetEntry, TensorSpec
from intaglio.runtime.manifest import FILE_NAME, FileRecord, Manifest
from intaglio.state import Layout, StateSpec

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
PREPARE = """
    g (float[batch, source, 2] memory, int64[batch, source] mask, float[2] bias)
      => (float[batch, source, 2] prepared_memory, float[batch, 1, source] prepared_mask,
          float[2] prepared_bias)
    <float two = {2.0}, int64[1] one = {1}>
    {
      prepared_memory = Mul (memory, two)  f = Cast <to = 1> (mask)
      prepared_mask = Unsqueeze (f, one)  prepared_bias = Mul (bias, two)
    }
"""
STEP = """
    g (float[batch, time, 2] x, float[batch, 2] past, float[batch, source, 2] prepared_memory,
       float[batch, 1, source] prepared_mask, float[2] prepared_bias)
      => (float[batch, time, 2] y, float[batch, 2] present)
    <int64[1] one = {1}, int64 last = {-1}, int64[1] end = {-1}>
    {
      within = CumSum (x, one)  before = Unsqueeze (past, one)  sums = Add (within, before)
      present = Gather <axis = 1> (sums, last)
      count = ReduceSum (prepared_mask, end)  share = Div (prepared_mask, count)
      mean = MatMul (share, prepared_memory)  b = Add (mean, prepared_bias)  y = Add (sums, b)
    }
"""
CONDITIONS = (
    TensorSpec("memory", "float32", ("batch", "source", 2)),
    TensorSpec("mask", "int64", ("batch", "source"), default=1),
    TensorSpec("bias", "float32", (2,), default=0),
)
SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "prepared_memory": ("batch", "source", 2),
    "prepared_mask": ("batch", 1, "source"),
    "prepared_bias": (2,),
}


def state(name: str, output: str, shape: tuple[int | str, ...], layout: Layout) -> StateSpec:
    return StateSpec(
        input=name, output=output, dtype="float32", shape=shape, layout=layout, axis=None, op="sum",
        port="sum", module="", layer=0, call=0,
    )  # fmt: skip


# What has an axis of the conditions: an input that picks entries of it, and an output along it.
STEP_INPUT, STEP_OUTPUT = "int64[batch, time] at", "float[batch, time, source] w"
STEP_NODES = """
      one_of = Cast <to = 1> (at)  zero = Sub (one_of, one_of)  ones = Exp (zero)
      column = Unsqueeze (ones, end)  w = MatMul (column, share)
      places = Unsqueeze (at, end)  picked = GatherElements <axis = 2> (w, places)
    }
"""


def write(folder: Path, *, factor: str = "2.0", own_axis: bool = False) -> Path:
    """A bundle whose step adds up its input, and the mean of what it is conditioned on.

    With `own_axis` it tells what entries of the source count, and picks one of them.
    """
    folder.mkdir()
    files, targets = {}, {}
    step = STEP
    more: tuple[TensorSpec, ...] = ()
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "float32", ("batch", "time", 2)),)
    if own_axis:
        step = STEP.replace("x, float[batch, 2] past", f"x, {STEP_INPUT}, float[batch, 2] past")
        step = step.replace("y, float", f"y, float[batch, time, 1] picked, {STEP_OUTPUT}, float")
        step = step.rstrip().removesuffix("}") + STEP_NODES
        more = (
            TensorSpec("picked", "float32", ("batch", "time", 1)),
            TensorSpec("w", "float32", ("batch", "time", "source")),
        )
    inputs += (TensorSpec("at", "int64", ("batch", "time"), below="source"),) if own_axis else ()
    for name, text in ((MAIN, step), ("prepare", PREPARE.replace("2.0", factor))):
        model = parser.parse_model(HEAD + text)
        onnx.save(model, folder / f"{name}.onnx")
        files[f"{name}.onnx"] = FileRecord.of(folder / f"{name}.onnx")
        targets[name] = {"ort": TargetEntry(path=f"{name}.onnx", opset=21)}
    main = GraphEntry(
        inputs=inputs,
        outputs=(TensorSpec("y", "float32", ("batch", "time", 2)), *more),
        states=(
            state("past", "present", ("batch", 2), Layout.RECURRENT),
            *(state(name, "", shape, Layout.PREPARED) for name, shape in SHAPES.items()),
        ),
        targets=targets[MAIN],
        conditions=CONDITIONS,
        prepare="prepare",
        past_length=False,
    )
    prepare = GraphEntry(
        inputs=CONDITIONS,
        outputs=tuple(TensorSpec(name, "float32", shape) for name, shape in SHAPES.items()),
        states=(),
        targets=targets["prepare"],
        past_length=False,
        whole=True,
    )
    source = {"name": "sum", "sha256": "0" * 64, "format": "test"}
    graphs = {MAIN: main, "prepare": prepare}
    Manifest(source=source, graphs=graphs, files=files).save(folder / FILE_NAME)
    return folder
