"""The model that Triton's Python backend runs: streams of a bundle, a sequence each.

Answers are sent when a stream has them, so requests that come later join the engine's next call
while earlier ones wait for theirs.

Source: triton-inference-server/python_backend, README, "Response Sender" and "Sequence Batching".
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.errors import InputError, IntaglioError
from intaglio.runtime.arrays import Array
from intaglio.runtime.streaming.streams import Streams
from intaglio.state import BATCH

from .sequences import PAST, SAVED, SequenceCall, Sequences

BUNDLE = "bundle"  # beside model.py, where the model is not the bundle itself
START, END, READY, CORRID = "START", "END", "READY", "CORRID"
CONTROLS = (START, END, READY, CORRID)
RESUME, AT = "resume", "past_length"  # parameters of a request
# Stubs that were compiled for numpy 1 take arrays of a later one as empty, and give arrays whose
# entries are all the first: DLPack goes past what they were compiled for, and any stub has it.
PLAIN_NUMPY = int(np.__version__.partition(".")[0]) < 2
WHOLE_NUMBERS = ("rows", "streams", "queue", "context", "chunk", "threads", "save_every")


class TritonPythonModel:
    """What the backend creates, once for each instance of a model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle beside model.py, as the parameters of config.pbtxt say."""
        self._utils = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        given = {k: v["string_value"] for k, v in config.get("parameters", {}).items()}
        version = Path(args["model_repository"]) / args["model_version"]
        options: dict[str, Any] = {k: int(given[k]) for k in WHOLE_NUMBERS if k in given}
        options |= {"reproducible": given.get("reproducible") == "true"}
        if given.get("store"):
            options["store"] = given["store"]
        try:
            beside = version / BUNDLE
            streams = Streams(beside if beside.is_dir() else version.parent, **options)
        except IntaglioError as error:
            raise self._utils.TritonModelException(str(error)) from error
        entry = streams.session.entry
        self._inputs = [spec.name for spec in entry.inputs]
        self._conditions = [spec.name for spec in entry.conditions]
        tensors = (*entry.inputs, *entry.conditions, *entry.outputs)
        self._with_rows = {spec.name for spec in tensors if BATCH in spec.shape} | {PAST, SAVED}
        self._sequences = Sequences(streams, float(given.get("idle", "60")))

    def execute(self, requests: Sequence[Any]) -> None:
        """Take requests; each is answered by its sender, in whichever order streams have it."""
        for request in requests:
            self._take(request, request.get_response_sender())

    def finalize(self) -> None:
        """End; streams of a folder are saved."""
        self._sequences.close()

    def _take(self, request: Any, sender: Any) -> None:
        def answer(outputs: Mapping[str, Array] | None, error: str | None) -> None:
            tensors = [] if outputs is None else [
                self._tensor(name, array if name in self._with_rows else array[None])
                for name, array in outputs.items()
            ]  # fmt: skip
            fault = None if error is None else self._utils.TritonError(error)
            response = self._utils.InferenceResponse(tensors, fault)
            sender.send(response, flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

        try:
            if self._control(request, READY) is False:
                answer({}, None)  # of an empty slot
                return
            call = self._call(request, answer)
        except (IntaglioError, ValueError) as error:
            answer(None, str(error))
            return
        self._sequences.take(call)

    def _call(self, request: Any, answer: Any) -> SequenceCall:
        told = json.loads(request.parameters() or "{}")
        past = told.get(AT)
        if past is not None and (isinstance(past, bool) or not isinstance(past, int) or past < 0):
            raise InputError(f"The parameter {AT} is {past!r}, should be a number of tokens.")
        return SequenceCall(
            id=str(request.correlation_id()),
            inputs=self._arrays(request, self._inputs),
            conditions=self._arrays(request, self._conditions),
            start=bool(self._control(request, START)),
            end=bool(self._control(request, END)),
            resume=bool(told.get(RESUME, False)),
            past=past,
            answer=answer,
        )

    def _arrays(self, request: Any, names: Sequence[str]) -> dict[str, Array]:
        found = {n: self._utils.get_input_tensor_by_name(request, n) for n in names}
        arrays = {name: _array(each) for name, each in found.items() if each is not None}
        return {n: x if n in self._with_rows else x[0] for n, x in arrays.items()}

    def _tensor(self, name: str, array: Array) -> Any:
        if PLAIN_NUMPY:
            return self._utils.Tensor(name, array)
        return self._utils.Tensor.from_dlpack(name, np.ascontiguousarray(array))

    def _control(self, request: Any, name: str) -> bool | None:
        tensor = self._utils.get_input_tensor_by_name(request, name)
        return None if tensor is None else bool(_array(tensor).any())


def _array(tensor: Any) -> Array:
    found: Array = tensor.as_numpy() if PLAIN_NUMPY else np.from_dlpack(tensor)
    return found
