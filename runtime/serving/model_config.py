"""The text of config.pbtxt, in the text format of protobuf.

Source: triton-inference-server/common, protobuf/model_config.proto.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from intaglio.errors import BundleError
from intaglio.runtime.graph_entry import GraphEntry, TensorSpec
from intaglio.state import BATCH, Layout, StateSpec

from .sequences import PAST, SAVED
from .triton_model import CONTROLS, CORRID, END, READY, START

TYPES = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
}
FIXED = (Layout.RECURRENT, Layout.CONV, Layout.WINDOW)
SECOND = 1_000_000  # in microseconds

Message = Mapping[str, Any]


class Word(str):
    """A value that stands without quotes, as the name of an enumeration does."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a server runs a bundle; see `write_repository`."""

    strategy: Literal["oldest", "direct"] = "oldest"
    rows: int = 16
    sequences: int = 256
    idle: float = 60.0
    ids: Literal["uint64", "string"] = "uint64"
    parameters: Mapping[str, str] | None = None


def of_streams(name: str, entry: GraphEntry, serving: Serving) -> str:
    """The config of a model over streams.

    Raises:
        BundleError: if Triton cannot name or carry what a step takes and gives.
    """
    own = {PAST, SAVED, *CONTROLS}
    tensors = [*entry.inputs, *entry.conditions, *entry.outputs]
    for spec in tensors:
        if spec.name in own:
            raise BundleError(
                f"The bundle has {spec.name!r}, a name that the served model has for itself. "
                "Export it under another one."
            )
    inputs = [_tensor(spec, optional=spec.default is not None) for spec in entry.inputs]
    inputs += [_tensor(spec, optional=True) for spec in entry.conditions]
    counts = [
        {"name": each, "data_type": Word("TYPE_INT64"), "dims": [1]} for each in (PAST, SAVED)
    ]
    parameters = {
        "rows": str(serving.rows),
        "streams": str(serving.sequences),
        "idle": str(serving.idle),
        **(serving.parameters or {}),
    }
    return text({
        "name": name,
        "backend": "python",
        "max_batch_size": serving.rows,
        "input": [{**each, "allow_ragged_batch": True} for each in inputs],
        "output": [*(_tensor(spec) for spec in entry.outputs), *counts],
        "sequence_batching": _batching(serving),
        "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
        "parameters": [
            {"key": key, "value": {"string_value": value}} for key, value in parameters.items()
        ],
    })  # fmt: skip


def of_implicit_state(
    name: str, entry: GraphEntry, states: Sequence[StateSpec], serving: Serving
) -> str:
    """The config of a plain model of ONNX Runtime, whose states Triton carries.

    Raises:
        BundleError: if it cannot carry them, which says why.
    """
    for fault in _unfit(entry, states):
        raise BundleError(
            f"Triton cannot carry the states of this bundle by itself: {fault} "
            "The model over streams serves it."
        )
    batching = _batching(serving)
    del batching["control_input"]  # the graph takes none: new sequences begin with zeros
    batching["state"] = [_state(spec) for spec in states]
    return text({
        "name": name,
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": serving.rows,
        "input": [_tensor(spec) for spec in entry.inputs],
        "output": [_tensor(spec) for spec in entry.outputs],
        "sequence_batching": batching,
        "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
    })  # fmt: skip


def _unfit(entry: GraphEntry, states: Sequence[StateSpec]) -> Iterator[str]:
    if entry.past_length:
        yield "its steps take past_length, which Triton does not count."
    if entry.conditions:
        yield f"it has conditions ({', '.join(spec.name for spec in entry.conditions)})."
    if entry.limits.batch is not None:
        yield f"it was exported for a batch of exactly {entry.limits.batch}."
    for spec in states:
        if spec.layout not in FIXED:
            yield f"the state {spec.input!r} grows with the tokens."
        if not spec.shape or spec.shape[0] != BATCH:
            yield f"the rows of the state {spec.input!r} are not its first axis."
        if spec.initial != 0:
            yield f"the state {spec.input!r} begins with {spec.initial}, not with 0."


def _batching(serving: Serving) -> dict[str, Any]:
    kinds = {START: "START", END: "END", READY: "READY"}
    controls: list[Message] = [
        {
            "name": name,
            "control": [{
                "kind": Word(f"CONTROL_SEQUENCE_{kind}"),
                "int32_false_true": [0, 1],
            }],
        }
        for name, kind in kinds.items()
    ]  # fmt: skip
    kind = Word("CONTROL_SEQUENCE_CORRID")
    data_type = Word("TYPE_UINT64" if serving.ids == "uint64" else "TYPE_STRING")
    controls.append({"name": CORRID, "control": [{"kind": kind, "data_type": data_type}]})
    ways: dict[str, Message] = {
        "oldest": {"max_candidate_sequences": serving.sequences + serving.rows},
        "direct": {"max_queue_delay_microseconds": 0},
    }
    return {
        "max_sequence_idle_microseconds": int(serving.idle * SECOND),
        "control_input": controls,
        serving.strategy: ways[serving.strategy],
    }


def _tensor(spec: TensorSpec, *, optional: bool = False) -> dict[str, Any]:
    dims = spec.shape
    if BATCH in dims:
        if dims[0] != BATCH:
            raise BundleError(
                f"The rows of {spec.name!r}, {list(dims)}, are not its first axis, where Triton "
                "has them."
            )
        dims = dims[1:]
    found: dict[str, Any] = {
        "name": spec.name,
        "data_type": _type(spec.dtype, spec.name),
        "dims": [dim if isinstance(dim, int) else -1 for dim in dims] or [1],
    }
    if not dims:
        found["reshape"] = {"shape": []}
    return {**found, "optional": True} if optional else found


def _state(spec: StateSpec) -> Message:
    dims = [*spec.shape[1:]]
    data_type = _type(spec.dtype, spec.input)
    return {
        "input_name": spec.input,
        "output_name": spec.output,
        "data_type": data_type,
        "dims": dims,
        "initial_state": [
            {"name": "zeros", "data_type": data_type, "dims": dims, "zero_data": True}
        ],
    }


def _type(dtype: str, name: str) -> Word:
    if dtype not in TYPES:
        raise BundleError(f"{name!r} is {dtype}, which Triton's Python backend does not carry.")
    return Word(TYPES[dtype])


def text(message: Message, indent: str = "") -> str:
    """A message in the text format: lists repeat their field, a list of numbers is one line."""
    lines = []
    for name, value in message.items():
        messages = isinstance(value, list) and value and isinstance(value[0], Mapping)
        for each in value if messages else [value]:
            if isinstance(each, Mapping):
                lines.append(f"{indent}{name} {{\n{text(each, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(each)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, Word):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
