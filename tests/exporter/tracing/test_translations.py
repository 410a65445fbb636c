"""PyTorch's table of translations is made once, and each model has a copy of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

import intaglio
from intaglio.exporter.tracing import translations
from intaglio.runtime import Session


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


class Detector(nn.Module):
    """Boxes that score enough and overlap no better one, as torchvision's models take them."""

    def forward(self, boxes: Tensor, scores: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        (enough,) = torch.where(scores > 0.2)
        boxes, scores, label = boxes[enough], scores[enough], label[enough]
        apart = boxes + (label * 100)[:, None]  # boxes of other classes
        kept = torch.ops.torchvision.nms(apart, scores, 0.4)[:6]
        return boxes[kept], scores[kept]


def suppressed(boxes: Tensor, scores: Tensor, limit: float) -> Tensor:
    """What torchvision's operator gives, one box after the other."""
    kept: list[int] = []
    for place in scores.argsort(descending=True, stable=True).tolist():
        a, b = boxes[place], boxes[kept]
        sides = (torch.minimum(a[2:], b[:, 2:]) - torch.maximum(a[:2], b[:, :2])).clamp_min(0)
        shared, areas = sides.prod(1), [(each[..., 2:] - each[..., :2]).prod(-1) for each in (a, b)]
        if not (shared / (areas[0] + areas[1] - shared) > limit).any():
            kept.append(place)
    return torch.tensor(kept, dtype=torch.int64)


def test_suppression_of_torchvision_is_a_node_of_onnx(tmp_path: Path) -> None:
    """The library itself need not be there: its operator is what the name says."""
    with torch.library._scoped_library("torchvision", "DEF") as library:
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", suppressed, "CPU")
        torch.library.register_fake(
            "torchvision::nms",
            lambda dets, _scores, _limit: dets.new_empty(
                torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64
            ),
            lib=library,
        )

        def drawn(count: int) -> dict[str, Tensor]:
            corner = 20 * torch.rand(count, 2)
            boxes = torch.cat((corner, corner + 5 + 9 * torch.rand(count, 2)), 1)
            return {"boxes": boxes, "scores": torch.rand(count), "label": torch.arange(count) % 2}

        torch.manual_seed(0)
        axes = {"boxes": "countx4", "scores": "count", "label": "count"}
        report = intaglio.export(Detector(), tmp_path / "b", inputs=drawn(9), axes=axes)
        assert report.parity is not None
        assert report.parity.passed
        session = Session.load(tmp_path / "b")
        for count, scale in ((1, 1.0), (40, 1.0), (7, 0.1)):  # the last keeps none
            given = drawn(count)
            given["scores"] *= scale
            got = session.step({name: value.numpy() for name, value in given.items()})
            for value, wanted in zip(got.values(), Detector()(**given), strict=True):
                np.testing.assert_allclose(value, wanted)
