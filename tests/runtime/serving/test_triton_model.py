"""The model in a real Triton server, on loopback, and in a stand-in for its Python backend."""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conditioned_bundle import write
from loopback_triton import serve, wheel

from intaglio.errors import OptionError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.serving.model_config import Serving
from intaglio.runtime.serving.repository import add_model, write_repository
from intaglio.runtime.serving.triton_model import TritonPythonModel
from intaglio.runtime.session import Session

Array = npt.NDArray[Any]
COUNT, TOKENS = 32, 9
needs_server = pytest.mark.skipif(
    wheel() is None, reason="nvidia-pytriton has wheels for Linux on x86_64 alone"
)


class Client:
    """Sequences of a model `lm` at an address."""

    def __init__(self, address: str) -> None:
        import tritonclient.grpc as client

        self._library = client
        self._connection: Any = client.InferenceServerClient(address)

    def infer(self, number: int, tokens: Array, **options: Any) -> tuple[Array, int, int]:
        """Outputs of some tokens of a sequence, and how many it has taken and saved."""
        given = self._library.InferInput("input_ids", [1, len(tokens)], "INT64")
        given.set_data_from_numpy(np.array(tokens)[None])
        result = self._connection.infer("lm", [given], sequence_id=number, **options)
        counts = [int(result.as_numpy(name)[0, 0]) for name in ("past_length", "saved_length")]
        return result.as_numpy("logits"), counts[0], counts[1]

    def fault(self, number: int, tokens: list[int], **options: Any) -> str:
        """What is answered instead."""
        with pytest.raises(self._library.InferenceServerException) as raised:
            self.infer(number, np.array(tokens), **options)
        return str(raised.value)

    def close(self) -> None:
        self._connection.close()


def together(work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(COUNT) as pool:
        return [*pool.map(work, range(COUNT))]


@needs_server
@pytest.mark.parametrize("strategy", ["oldest", "direct"])
def test_sequences_of_a_real_server_are_sessions_of_their_own(
    served_bundle: Path, tmp_path: Path, strategy: Any
) -> None:
    """32 at once; the server is killed, another resumes them, and whatever goes wrong is told."""
    parameters = {"threads": "1", "store": str(tmp_path / "saved"), "save_every": "1"}
    serving = Serving(
        strategy=strategy, rows=32, sequences=COUNT + 1, parameters={**parameters, "chunk": "4"}
    )
    write_repository(served_bundle, tmp_path / "repository", serving)
    tokens = np.random.default_rng(0).integers(0, 23, (COUNT, TOKENS))
    alone = Session.load(served_bundle, threads=1).step({"input_ids": tokens})["logits"]
    found = np.zeros_like(alone)

    def step(client: Client, index: int, start: int, stop: int, **options: Any) -> None:
        found[index, start:stop], past, _ = client.infer(
            index + 1, tokens[index, start:stop], **options
        )
        assert past == stop

    with serve(tmp_path / "repository", tmp_path) as (address, process):
        client = Client(address)

        def begin(index: int) -> None:
            step(client, index, 0, 3, sequence_start=True)
            for place in range(3, 5):
                step(client, index, place, place + 1)

        together(begin)
        if strategy == "oldest":
            faults(client, tmp_path / "saved")
        client.close()
        if strategy == "direct":  # the slots are all taken; what follows needs a second server
            np.testing.assert_allclose(found[:, :5], alone[:, :5], atol=2e-5)
            return
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with serve(tmp_path / "repository", tmp_path) as (address, _):
        client = Client(address)

        def go_on(index: int) -> None:
            resumed = {"resume": True, "past_length": 4}  # the last that was told is told again
            found[index, 5:7], past, _ = client.infer(
                index + 1, tokens[index, 4:7], sequence_start=True, parameters=resumed
            )
            assert past == 7
            step(client, index, 7, TOKENS, sequence_end=True)

        together(go_on)
        client.close()
    np.testing.assert_allclose(found, alone, atol=2e-5)
    assert [*(tmp_path / "saved").glob("stream-[0-9].npz")] == []


def faults(client: Client, saved: Path) -> None:
    """Each its own answer, while 32 others are open."""
    assert "must specify the START flag" in client.fault(1000, [1])
    client.infer(1001, np.array([1]), sequence_start=True)
    full = client.fault(1002, [1], sequence_start=True)
    assert "33 streams are open, which is the limit" in full
    assert "There is no sequence 1002" in client.fault(1002, [1])
    assert "holds 1 tokens, and the request has those from 5 to 6" in client.fault(
        1001, [1], parameters={"past_length": 5}
    )
    client.infer(1001, np.array([2]), sequence_end=True)
    unknown = client.fault(1003, [1], sequence_start=True, parameters={"resume": True})
    assert "There is no saved stream '1003'" in unknown
    (saved / "stream-1004.npz").write_bytes(b"no snapshot")
    damaged = client.fault(1004, [1], sequence_start=True, parameters={"resume": True})
    assert "is not a snapshot, or it is damaged" in damaged


class Request:
    """A request as the Python backend hands it over."""

    def __init__(self, number: int, arrays: dict[str, Any], parameters: Any = None) -> None:
        self._number, self.arrays, self._parameters = number, arrays, parameters
        self.answered = threading.Event()
        self.response: Any = None

    def correlation_id(self) -> int:
        return self._number

    def parameters(self) -> str:
        return json.dumps(self._parameters) if self._parameters else ""

    def get_response_sender(self) -> Any:
        def send(response: Any, flags: int) -> None:
            assert flags == 1
            assert not self.answered.is_set(), "a request is answered once"
            self.response = response
            self.answered.set()

        return SimpleNamespace(send=send)


class Tensor:
    def __init__(self, name: str, array: Array) -> None:
        self.name, self.array = name, array

    @staticmethod
    def from_dlpack(name: str, array: Array) -> "Tensor":
        return Tensor(name, array)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for what the Python backend gives its models."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor = Tensor
    module.TritonError = str
    module.TritonModelException = RuntimeError
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    module.InferenceResponse = lambda tensors, error: SimpleNamespace(
        outputs={tensor.name: tensor.array for tensor in tensors}, error=error
    )
    module.get_input_tensor_by_name = lambda request, name: (
        Tensor(name, request.arrays[name]) if name in request.arrays else None
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


@pytest.fixture
def model_of(backend: None, tmp_path: Path) -> Iterator[Callable[..., TritonPythonModel]]:  # noqa: ARG001
    opened: list[TritonPythonModel] = []

    def make(bundle: Path, **parameters: str) -> TritonPythonModel:
        write_repository(bundle, tmp_path / "repository", Serving(), name="m", force=True)
        given = {"threads": "1", **parameters}
        config = {"parameters": {key: {"string_value": value} for key, value in given.items()}}
        model = TritonPythonModel()
        model.initialize({
            "model_repository": str(tmp_path / "repository" / "m"),
            "model_version": "1",
            "model_config": json.dumps(config),
        })  # fmt: skip
        opened.append(model)
        return model

    yield make
    for model in opened:
        model.finalize()


def test_a_bundle_may_be_the_model_itself(
    backend: None,  # noqa: ARG001
    served_bundle: Path,
    tmp_path: Path,
) -> None:
    """`export --layout triton`: config.pbtxt and 1/model.py lie in the bundle's own folder."""
    folder = tmp_path / "lm"
    shutil.copytree(served_bundle, folder)
    add_model(folder, Bundle.open(folder).graph().entry, "lm")
    assert 'name: "lm"' in (folder / "config.pbtxt").read_text()
    assert "TritonPythonModel" in (folder / "1" / "model.py").read_text()
    model = TritonPythonModel()
    model.initialize({
        "model_repository": str(folder), "model_version": "1",
        "model_config": json.dumps({"parameters": {"threads": {"string_value": "1"}}}),
    })  # fmt: skip
    (answer,) = answered(model, asked(1, start=1, end=1, input_ids=np.array([[3, 1]])))
    model.finalize()
    wanted = Session.load(served_bundle, threads=1).step({"input_ids": [[3, 1]]})["logits"]
    np.testing.assert_array_equal(answer.outputs["logits"], wanted)
    with pytest.raises(OptionError, match="no name for a model"):
        add_model(folder, Bundle.open(folder).graph().entry, "l m")


def answered(model: TritonPythonModel, *requests: Request) -> list[Any]:
    model.execute(requests)
    for request in requests:
        assert request.answered.wait(60)
    return [request.response for request in requests]


def asked(
    number: int, *, start: int = 0, end: int = 0, parameters: Any = None, **arrays: Any
) -> Request:
    controls = {"START": start, "END": end, "READY": 1}
    given = {name: np.array([[value]], np.int32) for name, value in controls.items()}
    return Request(number, {**given, **arrays}, parameters)


def test_a_condition_comes_with_the_first_request(
    model_of: Callable[..., TritonPythonModel], tmp_path: Path
) -> None:
    """What has no rows in the bundle has one axis more at the server."""
    bundle = write(tmp_path / "bundle")
    memory, x = np.ones((1, 3, 2), np.float32), np.ones((1, 2, 2), np.float32)
    bias = np.array([[1, -1]], np.float32)
    session = Session.load(bundle, threads=1)
    session.condition({"memory": memory, "bias": bias[0]})
    expected = session.step({"x": x})["y"]
    model = model_of(bundle)
    first, lacks = answered(
        model, asked(1, start=1, x=x, memory=memory, bias=bias), asked(2, start=1, x=x)
    )
    np.testing.assert_allclose(first.outputs["y"], expected, atol=1e-6)
    assert first.error is None
    assert "'memory' is missing" in lacks.error
    (again,) = answered(model, asked(1, end=1, x=x))
    assert again.outputs["past_length"].tolist() == [[4]]
    (gone,) = answered(model, asked(1, x=x))
    assert "There is no sequence 1" in gone.error


def test_empty_slots_and_bad_parameters_are_answered(
    model_of: Callable[..., TritonPythonModel], served_bundle: Path
) -> None:
    model = model_of(served_bundle)
    empty = asked(0)
    empty.arrays["READY"] = np.array([[0]], np.int32)
    ids = np.array([[1, 2]])
    bad = asked(1, start=1, parameters={"past_length": "x"}, input_ids=ids)
    missing = asked(2, start=1)
    nothing, told, absent = answered(model, empty, bad, missing)
    assert (nothing.outputs, nothing.error) == ({}, None)
    assert "past_length is 'x', should be a number of tokens" in told.error
    assert "'input_ids' is missing" in absent.error
