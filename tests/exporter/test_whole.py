"""Models of whole inputs: found or asked for, at any named sizes, equal to the source."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from intaglio.errors import InputError, ParityError, SourceError, TraceError
from intaglio.exporter.export import ExportReport, export
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.proving.whole_calls import calls
from intaglio.exporter.sources.drawing import like
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.whole import settled
from intaglio.runtime import Session

PICTURE = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


class Classifier(nn.Module):
    """A convolution, a pool, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, image: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(image).relu().mean((2, 3)))
        return y


class Halves(nn.Module):
    """Down by two and up again, joined with what it came from: sizes have to be even."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 2, stride=2)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        small = self.down(image)
        return torch.cat((self.up(small), image), 1)


class Messages(nn.Module):
    """One layer of a graph network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, nodes: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        return torch.zeros_like(nodes).index_add(0, target, self.layer(nodes[source])) + nodes


class Branch(nn.Module):
    """Another way for even widths, which tracing freezes."""

    def forward(self, image: Tensor) -> Tensor:
        return image * 2 if image.shape[3] % 2 == 0 else image


class Odd(nn.Module):
    """Names that PyTorch, ONNX and step graphs use themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.output = nn.Parameter(torch.ones(4))

    def forward(self, X: Tensor, past_length: Tensor, /) -> dict[str, Tensor]:
        y = self.layer(X) + self.output * past_length
        return {"X": y, "output": y * 2, "logits": y + 1, "logits.inner": y + 2, "": y + 3}


class Positive(nn.Module):
    """Gives what is positive, as many entries as there are, and where."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[x > 0], x > 0


def exported(
    module: nn.Module, out: Path, inputs: Any, axes: Any = None, **how: Any
) -> ExportReport:
    torch.manual_seed(0)
    report = export(module, out, inputs=inputs, axes=axes, **how)
    assert report.parity is not None
    assert report.parity.passed
    return report


def same(session: Session, module: nn.Module, **inputs: Tensor) -> None:
    """The bundle gives what the module gives."""
    with torch.no_grad():
        given = module.eval()(**inputs)
    wanted = given if isinstance(given, tuple) else (given,)
    found = session.step({name: value.numpy() for name, value in inputs.items()})
    for got, want in zip(found.values(), wanted, strict=True):  # in the module's order
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_a_classifier_is_found_to_be_whole_and_says_so(tmp_path: Path) -> None:
    """Nothing was said of it; the note has the line that says it otherwise."""
    module = Classifier()
    report = exported(module, tmp_path / "b", {"image": PICTURE}, check_passes=True)

    assert report.manifest.main.whole
    assert report.manifest.main.inputs[0].shape == ("batch", 3, 16, 24)
    assert any("--axes 'image:batchx3x16x24'" in note for note in report.notes)
    session = Session.load(tmp_path / "b")
    for rows in (1, 5, 1):
        same(session, module, image=torch.randn(rows, 3, 16, 24))
    with pytest.raises(InputError, match=r"has the shape \(2, 3, 16, 20\)"):
        session.step({"image": PICTURE[..., :20].numpy()})
    assert verify(tmp_path / "b", module, inputs={"image": PICTURE}).passed


@pytest.mark.parametrize(("results", "whole"), [(31, False), (5, True)])
def test_logits_of_the_vocabulary_are_those_of_the_next_token(results: int, whole: bool) -> None:
    """A language model that gives its last ones alone is stepped, a classifier is not."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(31, 4), nn.Linear(4, results)

        def forward(self, ids: Tensor) -> Tensor:
            found: Tensor = self.head(self.embed(ids).cumsum(1)[:, -1])
            return found

    source = load_source(Last(), inputs={"ids": torch.randint(31, (2, 6))})
    assert settled(source, None).whole is whole
    assert settled(source, asked=True).whole


def test_height_and_width_are_free_in_the_steps_that_the_model_takes(tmp_path: Path) -> None:
    """Steps of two are found; a range that was asked for is kept to."""
    module = Halves()
    free = {"image": ("batch", 3, "height", "width=8..32:8")}
    report = exported(module, tmp_path / "b", {"image": PICTURE}, free)

    assert dict(report.manifest.main.limits.sizes)["height"][:3] == (2, None, 2)
    assert dict(report.manifest.main.limits.sizes)["width"][:3] == (8, 32, 8)
    assert report.manifest.main.outputs[0].shape[3] == "width"
    session = Session.load(tmp_path / "b")
    same(session, module, image=torch.randn(1, 3, 6, 32))
    with pytest.raises(InputError, match=r"height = 5; .* 2 or more, in steps of 2"):
        session.step({"image": np.zeros((1, 3, 5, 8), np.float32)})
    with pytest.raises(InputError, match=r"width = 40; .* 8 to 32, in steps of 8"):
        session.step({"image": np.zeros((1, 3, 6, 40), np.float32)})


def test_nodes_and_edges_are_axes_and_edges_stay_below_the_nodes(tmp_path: Path) -> None:
    """No batch, no time; the bound is found by watching what the integers index."""
    module = Messages()
    edges = torch.randint(5, (2, 9), generator=torch.Generator().manual_seed(0))
    axes = {"nodes": ("nodes", 4), "edge_index": (2, "edges")}
    inputs = {"nodes": torch.randn(5, 4), "edge_index": edges}
    report = exported(module, tmp_path / "b", inputs, axes)

    assert report.manifest.main.inputs[1].below == "nodes"
    session = Session.load(tmp_path / "b")
    same(session, module, nodes=torch.randn(3, 4), edge_index=torch.tensor([[0, 2], [1, 2]]))
    with pytest.raises(InputError, match=r"'edge_index' has 3 at \[1, 0\]; it should be .* to 2"):
        session.step({"nodes": np.zeros((3, 4), np.float32), "edge_index": np.array([[0], [3]])})


def test_no_call_leaves_the_sizes_that_an_engine_was_built_for(tmp_path: Path) -> None:
    """Nor do calls, where it was built for one size, all hold the same values."""
    given = {"nodes": torch.randn(5, 4), "edge_index": torch.randint(5, (2, 9))}
    report = exported(Messages(), tmp_path / "b", given)
    entry, source = report.manifest.main, load_source(Messages(), inputs=given, whole=True)
    nodes, edges = source.symbols
    free = calls(source, entry, None, {})
    assert max(len(call.inputs["nodes"]) for call in free) > 5
    built = calls(source, entry, None, {nodes: (1, 5), edges: (1, 9)})
    sizes = {(len(call.inputs["nodes"]), call.inputs["edge_index"].shape[1]) for call in built}
    assert len(sizes) > 1
    assert all(size <= (5, 9) and size[1] <= 9 for size in sizes)
    one = calls(source, entry, None, {nodes: (5, 5), edges: (9, 9)})
    assert len({call.inputs["nodes"].sum().item() for call in one}) == len(one) == 3


def test_a_branch_on_a_size_is_told_with_the_line_to_type(tmp_path: Path) -> None:
    axes = {"image": ("batch", 3, 16, "width")}
    with pytest.raises(
        TraceError, match=r"where width % 2 == 0.*--axes 'image:batchx3x16xwidth=LEAST..MOST:STEP'"
    ):
        export(Branch(), tmp_path / "b", inputs={"image": PICTURE}, axes=axes)
    axes = {"image": ("batch", 3, 16, "width=2..:2")}
    exported(Branch(), tmp_path / "b", {"image": PICTURE}, axes)


def test_names_are_kept_or_given_an_end(tmp_path: Path) -> None:
    """Capitals, arguments by position, outputs named like inputs, like each other, like nothing."""
    inputs = {"X": torch.randn(3, 4), "past_length": torch.randn(3, 4)}
    report = exported(Odd(), tmp_path / "b", inputs, whole=True)

    assert [spec.name for spec in report.manifest.main.inputs] == ["X", "past_length"]
    names = [spec.name for spec in report.manifest.main.outputs]
    assert names == ["X_out", "output", "logits", "logits.inner", "output_out"]
    inputs = {"X": torch.randn(3, 6, 4), "past_length": torch.randn(3, 6, 4)}
    with pytest.raises(SourceError, match="'past_length' has a name that step graphs keep"):
        export(Odd(), tmp_path / "c", inputs=inputs, whole=False, states={"none": ""})


def test_sizes_that_depend_on_data_are_those_of_the_call(tmp_path: Path) -> None:
    module = Positive()
    report = exported(module, tmp_path / "b", {"x": torch.randn(3, 4)}, whole=True)

    assert len(report.manifest.main.outputs[0].shape) == 1
    session = Session.load(tmp_path / "b")
    for values in ([[1.0, -1.0]], [[-1.0, -2.0]], [[3.0, 4.0], [5.0, -6.0]]):
        same(session, module, x=torch.tensor(values))


class Spread(nn.Module):
    """The unbiased variance over rows: NaN of a single one, or of any where `never` is set."""

    def __init__(self, *, never: bool) -> None:
        super().__init__()
        self.never = never

    def forward(self, x: Tensor) -> Tensor:
        found = (x - x.mean(0)).square().sum(0) / (x.shape[0] - 1)
        return found * 0 / 0 if self.never else found


def test_where_the_source_gives_nan_the_bundle_has_to_and_something_is_to_be_seen(
    tmp_path: Path,
) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    report = export(Spread(never=False), tmp_path / "a", inputs=x, whole=True)
    assert report.parity is not None
    assert "source itself gives NaN at times" in report.parity.summary()
    with pytest.raises(ParityError, match=r"says nothing of output .*: the source gives NaN"):
        export(Spread(never=True), tmp_path / "b", inputs=x, whole=True)


def overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of boxes [N, 4] with each other."""
    corner = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    other = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    both = (other - corner).clamp_min(0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return both / (area[:, None] + area - both)


class Detector(nn.Module):
    """Greedy suppression of boxes that overlap a better one, as it is written without torchvision.

    `ragged` gives as many boxes as are kept; otherwise `most`, and which are.
    """

    def __init__(self, *, ragged: bool, most: int = 6) -> None:
        super().__init__()
        self.ragged, self.most = ragged, most

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        scores, order = scores.topk(self.most)
        corner, size = boxes[order].chunk(2, -1)
        boxes = torch.cat((corner, corner + size.abs() + 1), -1)
        over = overlaps(boxes) > 0.2
        keep = torch.ones_like(scores, dtype=torch.bool)
        for best in range(self.most):
            keep = keep & ~(keep[best] & over[best] & (torch.arange(self.most) > best))
        return (boxes[keep], order[keep]) if self.ragged else (boxes, keep)


def detected(module: Detector, seed: int) -> tuple[dict[str, Tensor], list[int]]:
    """Inputs, and the boxes that are kept by a loop over all pairs."""
    generator = torch.Generator().manual_seed(seed)
    given = {
        "boxes": torch.randn(9, 4, generator=generator),
        "scores": torch.rand(9, generator=generator),
    }
    with torch.no_grad():
        boxes = Detector(ragged=False, most=9)(**given)[0]
    order = given["scores"].argsort(descending=True)[: module.most]
    over, kept = overlaps(boxes), list[int]()
    for place in range(module.most):
        if not any(over[place, better] > 0.2 for better in kept):
            kept.append(place)
    return given, order[kept].tolist()


def test_a_detector_gives_as_many_boxes_as_it_keeps(tmp_path: Path) -> None:
    """Compared on several draws, though its sizes are fixed: what is kept is in the values."""
    module = Detector(ragged=True)
    axes = {"boxes": "9x4", "scores": "9"}
    report = exported(module, tmp_path / "b", detected(module, 0)[0], axes, whole=True)
    assert report.parity is not None
    assert report.parity.steps == 3
    session, counts = Session.load(tmp_path / "b"), set()
    for seed in range(4):
        given, kept = detected(module, seed)
        same(session, module, **given)
        found = session.step({name: value.numpy() for name, value in given.items()})
        assert list(found.values())[1].tolist() == kept
        counts.add(len(kept))
    assert len(counts) > 1


NMS = """
<ir_version: 9, opset_import: ["": 17]>
detector (float[1, N, 4] boxes, float[1, 2, N] scores) => (float[K, 4] kept, int64[K] row)
<int64[1] most = {4}, float[1] overlap = {0.2}, float[1] least = {0.5}, int64[1] one = {1},
 int64[1] two = {2}, int64[1] three = {3}, int64[1] zero = {0}>
{
    picked = NonMaxSuppression <center_point_box: int = 1> (boxes, scores, most, overlap, least)
    column = Slice (picked, two, three, one)
    row = Squeeze (column, one)
    plain = Squeeze (boxes, zero)
    kept = Gather <axis: int = 0> (plain, row)
}
"""


def test_a_graph_with_suppression_is_exported_whole(tmp_path: Path) -> None:
    """Any number of boxes goes in, and as many come out as ONNX Runtime keeps in the file."""
    onnx.save(onnx.parser.parse_model(NMS), tmp_path / "nms.onnx")
    report = export(tmp_path / "nms.onnx", tmp_path / "b", whole=True)
    assert report.parity is not None
    assert report.parity.passed
    plain = onnxruntime.InferenceSession(tmp_path / "nms.onnx")
    session, generator = Session.load(tmp_path / "b"), np.random.default_rng(0)
    for count in (1, 8, 30):
        given = {"boxes": generator.random((1, count, 4), np.float32),
                 "scores": generator.random((1, 2, count), np.float32)}  # fmt: skip
        found = session.step(given)
        for name, want in zip(("kept", "row"), plain.run(None, given), strict=True):
            np.testing.assert_array_equal(found[name], want)


def test_values_that_differ_are_drawn_apart() -> None:
    """What sorts or picks the largest would order equal ones as it likes; columns keep theirs."""
    example = torch.tensor([[0.5, -10.0], [0.1, -11.5], [0.9, -13.0], [0.2, -12.0]])
    drawn = like(example, (500, 2), fixed=True, generator=torch.Generator().manual_seed(0))
    for column, known in zip(drawn.mT, example.mT, strict=True):
        assert len(column.unique()) > 490
        assert known.min() <= column.min()
        assert column.max() <= known.max()
    tied = like(torch.tensor([0.0, 0.5, 0.5]), (100,), fixed=False, generator=torch.Generator())
    assert {0.0, 0.5} <= set(tied.tolist())


class Relations(nn.Module):
    """Messages along edges that are no loops, of nodes after as many rounds as an input says."""

    def forward(self, nodes: Tensor, edges: Tensor, rounds: Tensor) -> Tensor:
        there = edges[0] != edges[1]
        source, target = edges[:, there]

        def left(done: Tensor, _: Tensor) -> Tensor:
            return done < rounds

        def turned(done: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return done + 1, (2 * x).tanh()

        start = torch.zeros((), dtype=torch.int64)
        x = while_loop(left, turned, (start, nodes))[1]  # type: ignore[no-untyped-call]
        return torch.zeros_like(x).index_add(0, target, x[source])


def test_edges_that_a_mask_chooses_stay_below_the_nodes(tmp_path: Path) -> None:
    """So that graphs of fewer nodes than the example's are drawn, and one node is taken."""
    given = {
        "nodes": torch.randn(5, 4),
        "edges": torch.randint(5, (2, 9)),
        "rounds": torch.tensor(3),
    }
    axes = {"nodes": "countx4", "edges": "2,links=0.."}
    report = export(Relations(), tmp_path / "b", inputs=given, axes=axes)
    specs = {spec.name: spec for spec in report.manifest.main.inputs}
    assert specs["edges"].below == "count"
    session = Session.load(tmp_path / "b")
    for count, links, rounds in ((1, 0, 2), (1, 1, 1), (8, 20, 0), (8, 20, 5)):
        nodes, edges = torch.randn(count, 4), torch.randint(count, (2, links))
        fed = {"nodes": nodes, "edges": edges, "rounds": torch.tensor(rounds)}
        (got,) = session.step({name: value.numpy() for name, value in fed.items()}).values()
        np.testing.assert_allclose(got, Relations()(**fed), rtol=1e-5, atol=1e-6)
