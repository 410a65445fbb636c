"""ONNX's own tests of its operators, exported whole; a sample of `benchmarks/onnx_nodes.py`."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import intaglio
from intaglio.runtime import Session

SAMPLE = (
    "test_conv_with_strides_padding",
    "test_resize_upsample_scales_nearest",  # its scales are an input
    "test_split_variable_parts_1d_opset18",
    "test_top_k",
    "test_nonzero_example",  # as many as the data says
    "test_and_bcast3v2d",  # opset 7
    "test_attention_4d_with_past_and_present",
    "test_flexattention_double_expanded_ver26",  # a scale that 32 bits do not hold
)


@pytest.fixture(scope="session")
def cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return {case.name: case for case in found}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_node_gives_what_it_gave(name: str, cases: dict[str, Any], tmp_path: Path) -> None:
    model, (inputs, _) = cases[name].model, cases[name].data_sets[0]
    onnx.save(model, tmp_path / "model.onnx")
    feeds = {value.name: array for value, array in zip(model.graph.input, inputs, strict=True)}
    engine = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    wanted = engine.run(None, feeds)

    intaglio.export(tmp_path / "model.onnx", tmp_path / "bundle", inputs=feeds, whole=True)
    found = Session.load(tmp_path / "bundle").step(feeds)
    for output, array in zip(engine.get_outputs(), wanted, strict=True):
        np.testing.assert_allclose(found[output.name], array, rtol=1e-4, atol=1e-5)
