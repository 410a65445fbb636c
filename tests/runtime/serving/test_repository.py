"""Model repositories: what Triton's own description of a config says of what is written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conditioned_bundle import write

from intaglio.errors import BundleError, OptionError
from intaglio.runtime.graph_entry import Limits
from intaglio.runtime.serving.model_config import Serving
from intaglio.runtime.serving.repository import write_repository
from intaglio.runtime.session import Session


def parsed(folder: Path) -> Any:
    """The config of a model, read by Triton's own protobuf."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    config = pytest.importorskip("tritonclient.grpc").model_config_pb2.ModelConfig()
    return text_format.Parse((folder / "config.pbtxt").read_text(), config)


@pytest.mark.parametrize("strategy", ["oldest", "direct"])
def test_the_config_is_one_of_triton(served_bundle: Path, tmp_path: Path, strategy: Any) -> None:
    serving = Serving(strategy=strategy, rows=5, sequences=7, ids="string")
    (model,) = write_repository(served_bundle, tmp_path, serving, name="name")
    config = parsed(model)
    assert (config.name, config.backend, config.max_batch_size) == ("name", "python", 5)
    batching = config.sequence_batching
    assert batching.WhichOneof("strategy_choice") == strategy
    assert [each.name for each in batching.control_input] == ["START", "END", "READY", "CORRID"]
    assert batching.max_sequence_idle_microseconds == 60_000_000
    assert [(each.name, [*each.dims]) for each in config.input] == [("input_ids", [-1])]
    assert [(each.name, [*each.dims]) for each in config.output] == [
        ("logits", [-1, 23]), ("hidden", [-1, 8]), ("past_length", [1]), ("saved_length", [1])
    ]  # fmt: skip
    assert config.parameters["streams"].string_value == "7"
    assert Session.load(model / "1" / "bundle", threads=1).step({"input_ids": [[1]]})


def test_conditions_may_be_left_out(tmp_path: Path) -> None:
    config = parsed(write_repository(write(tmp_path / "b"), tmp_path / "r", Serving())[0])
    assert [(each.name, each.optional) for each in config.input] == [
        ("x", False), ("memory", True), ("mask", True), ("bias", True)
    ]  # fmt: skip


def test_triton_may_carry_states_of_fixed_size(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """The plain graph, stepped as the config says that Triton carries its states."""
    bundle = make_bundle("recurrent", "conv")
    _, model = write_repository(bundle, tmp_path / "r", Serving(), name="m", implicit_state=True)
    config = parsed(model)
    assert config.backend == "onnxruntime"
    engine = onnxruntime.InferenceSession(model / "1" / "model.onnx")
    states = {
        state.input_name: np.zeros((1, *state.initial_state[0].dims), np.float32)
        for state in config.sequence_batching.state
    }
    kept = {state.output_name: state.input_name for state in config.sequence_batching.state}
    given = []
    for token in (3, 1, 2):
        found = dict(zip(
            [each.name for each in engine.get_outputs()],
            engine.run(None, {"input_ids": np.array([[token]]), **states}), strict=True,
        ))  # fmt: skip
        given.append(found["logits"])
        states = {kept[name]: found[name] for name in kept}
    whole = Session.load(bundle, threads=1).step({"input_ids": [[3, 1, 2]]})["logits"]
    np.testing.assert_allclose(np.concatenate(given, 1), whole, atol=1e-5)


def test_what_cannot_be_served_is_refused(
    make_bundle: Callable[..., Path], served_bundle: Path, tmp_path: Path
) -> None:
    """Nothing is written then, and what is there stays."""
    out = tmp_path / "r"
    with pytest.raises(BundleError, match="steps take past_length, which Triton does not count"):
        write_repository(served_bundle, out, Serving(), implicit_state=True)
    with pytest.raises(BundleError, match=r"the state '.*' grows with the tokens|past_length"):
        write_repository(make_bundle("grow"), out, Serving(), implicit_state=True)
    with pytest.raises(OptionError, match="'a/b' is no name for a model"):
        write_repository(served_bundle, out, Serving(), name="a/b")
    with pytest.raises(OptionError, match="lies within the bundle"):
        write_repository(served_bundle, served_bundle / "r", Serving())
    assert not out.exists()
    write_repository(served_bundle, out, Serving())
    with pytest.raises(OptionError, match=r"exists\. Replace it with --force"):
        write_repository(served_bundle, out, Serving())
    write_repository(make_bundle(limits=Limits(batch=2)), out, Serving(), name="two")
    assert parsed(out / "two").max_batch_size == 2
    damaged = make_bundle("recurrent")
    (damaged / "ort/model.onnx").write_bytes(b"")
    with pytest.raises(BundleError):
        write_repository(damaged, out, Serving(), name="damaged")
    assert sorted(each.name for each in out.iterdir()) == ["lm", "two"]


def test_what_the_manifest_does_not_list_is_not_copied(served_bundle: Path, tmp_path: Path) -> None:
    """Pipes and devices never end, and links lead to files of whoever serves; a folder stays."""
    bundle = tmp_path / "bundle"
    shutil.copytree(served_bundle, bundle)
    os.mkfifo(bundle / "pipe")
    (bundle / "link").symlink_to("/etc/passwd")
    (bundle / "zero").symlink_to("/dev/zero")
    (place,) = write_repository(bundle, tmp_path / "models", Serving())
    held = {path.name for path in (place / "1" / "bundle").iterdir()}
    assert held.isdisjoint({"pipe", "link", "zero"})
    assert Session.load(place / "1" / "bundle").step({"input_ids": [[1]]})

    (tmp_path / "models" / "mine").mkdir()
    with pytest.raises(OptionError, match="is no model, so it is not replaced"):
        write_repository(bundle, tmp_path / "models", Serving(), name="mine", force=True)
