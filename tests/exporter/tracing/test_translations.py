"""PyTorch's table of translations is made once, and each model has a copy of its own."""

from typing import Any

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from intaglio.exporter.tracing import translations


def test_the_table_is_made_once_and_what_one_model_adds_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = ONNXRegistry.from_torchlib
    versions: list[int] = []

    def counting(_: type[ONNXRegistry], opset_version: int) -> Any:
        versions.append(opset_version)
        return made(opset_version=opset_version)

    monkeypatch.setattr(translations, "_kept", {})
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", classmethod(counting))
    own = ONNXRegistry.__dict__["from_torchlib"]
    with translations.swift_translations():
        first = ONNXRegistry.from_torchlib(opset_version=23)
        first.functions["aten::add.Tensor"].clear()
        second = ONNXRegistry.from_torchlib(opset_version=23)
        assert second.functions["aten::add.Tensor"]
        assert len(second.functions) > 400
        assert ONNXRegistry.from_torchlib(opset_version=18).opset_version == 18
    assert versions == [23, 18]
    assert ONNXRegistry.__dict__["from_torchlib"] is own
