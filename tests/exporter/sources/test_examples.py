"""Example inputs fit the module, for any batch and time, the same for the same seed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import InputError, SourceError
from intaglio.exporter.sources.axes import Span
from intaglio.exporter.sources.examples import describe_inputs, guess_specs, specs_from_examples
from intaglio.exporter.sources.input_spec import InputSpec, sampler
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.runtime.step_inputs import require_within
from intaglio.state import BATCH, TIME

NINE = {BATCH: 2, TIME: 9}


class Tokens(nn.Module):
    """Takes token ids, and labels that it does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.position = nn.Embedding(3, 4)

    def forward(self, idx: Tensor, labels: Tensor | None = None) -> Tensor:
        del labels
        y: Tensor = self.embed(idx)
        return y


class Optional(Tokens):
    """Takes everything as an option, as transformers' models do."""

    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        del labels
        assert input_ids is not None
        return super().forward(input_ids)


class Floats(nn.Module):
    """Takes features under a name that also serves for tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mix(x)
        return y


class Pair(Tokens):
    """Needs two inputs."""

    def forward(self, input_ids: Tensor, speed: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input_ids) * speed


@pytest.mark.parametrize(("module", "name"), [(Tokens(), "idx"), (Optional(), "input_ids")])
def test_token_ids_are_recognised_and_drawn_from_the_vocabulary(
    module: nn.Module, name: str
) -> None:
    """By the argument's name, with the first embedding's size; options are left out."""
    specs = guess_specs(module, "it")
    ids = sampler(specs)({BATCH: 50, TIME: 20}, 0)[name]

    assert specs == (InputSpec(name, torch.int64, (BATCH, TIME), below=11),)
    assert specs[0].dynamic == {0: "batch", 1: "time"}
    assert ids.shape == (50, 20)
    assert (int(ids.min()), int(ids.max())) == (0, 10)


@pytest.mark.parametrize("module", [Floats(), Pair(), nn.Linear(3, 3)])
def test_what_cannot_be_guessed_asks_for_example_inputs(module: nn.Module) -> None:
    """Features, several inputs, an unknown name."""
    with pytest.raises(SourceError, match=r"--inputs .*that returns \(module, \{name: tensor\}"):
        guess_specs(module, "it")


def test_examples_are_generalised_to_any_batch_and_time() -> None:
    """A batch of 1 and a time of 1 in the example do not matter; other dimensions are kept."""
    examples = {
        "input_ids": torch.tensor([[3]]),
        "speed": torch.tensor([[[5.0, 5.0, 7.0, 7.0]]], dtype=torch.float16),
    }
    drawn = describe_inputs(Pair(), examples, None, "it").sample({BATCH: 40, TIME: 30}, 1)

    assert drawn["input_ids"].shape == (40, 30)
    assert int(drawn["input_ids"].max()) == 10
    assert drawn["speed"].shape == (40, 30, 4)
    assert drawn["speed"].dtype is torch.float32
    assert float(drawn["speed"].mean()) == pytest.approx(6, abs=0.1)
    assert float(drawn["speed"].std()) == pytest.approx(1, abs=0.1)


class Threes(nn.Module):
    """Three frames in one; no number of frames but a multiple of three is taken."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1] // 3, 6)


def test_a_time_that_is_taken_in_steps_alone_is_free_in_these() -> None:
    takes = describe_inputs(Threes(), {"x": torch.randn(2, 12, 2)}, None, "it")
    assert takes.spans == {TIME: Span(3, None, 3)}
    assert takes.sizes[TIME] % 3 == 0
    assert takes.sizes[TIME] > 3
    assert "--axes 'x:batchxtime=3..:3x2'" in takes.notes[0]


def test_other_kinds_follow_their_examples() -> None:
    """Codes stay below the largest, flags keep their share, one axis is the batch alone."""

    class Net(nn.Module):
        def forward(self, **inputs: Tensor) -> Tensor:
            return inputs["codes"]

    examples = {
        "codes": torch.tensor([[0, 2, 0, 2]], dtype=torch.int32),
        "flags": torch.tensor([[True, True, True, False]]),
        "speed": torch.tensor([1.0]),
    }
    takes = describe_inputs(Net(), examples, None, "it")
    drawn = takes.sample({BATCH: 40, TIME: 30}, 1)

    assert list(takes.dynamic.values()) == [{0: "batch", 1: "time"}] * 2 + [{0: "batch"}]
    assert (drawn["codes"].dtype, int(drawn["codes"].max())) == (torch.int32, 2)
    assert float(drawn["flags"].float().mean()) == pytest.approx(0.75, abs=0.05)
    assert torch.equal(drawn["speed"], torch.ones(40))


class Corners(nn.Module):
    """Features at the left edge of each box [left, top, right, bottom]."""

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        return features[:, boxes[:, 0].long()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_column_that_picks_keeps_to_its_values_and_bounds_no_other(dtype: torch.dtype) -> None:
    """Of as few as three boxes, whose other columns are beyond what the first may be."""
    boxes = torch.tensor([[1, 2, 9, 9], [3, 4, 20, 20], [19, 11, 31, 31]], dtype=dtype)
    features = torch.randn(2, 20, 8)
    axes: dict[str, tuple[int | str, ...]] = {"features": (BATCH, 20, 8), "boxes": ("n", 4)}
    takes = describe_inputs(Corners(), {"features": features, "boxes": boxes}, axes, "it")
    drawn = takes.sample({BATCH: 2, "n": 50}, 1)["boxes"]

    assert float(drawn[:, 0].max()) <= 19
    assert float(drawn[:, 2].max()) > 19
    picked = (20, None, None, None)
    assert takes.bounds == ({} if dtype is torch.float32 else {"boxes": picked})


class Triples(nn.Module):
    """Messages along edges [source, target, kind], as columns or as rows."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.kinds = nn.Embedding(3, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target, kind = edges.unbind(self.axis)
        return x.index_add(0, target, x[source] * self.kinds(kind))


@pytest.mark.parametrize("axis", [0, 1])
def test_columns_and_rows_are_bounded_by_axes_and_tables_of_their_own(axis: int) -> None:
    """Nodes are as many as a call has; both are drawn so, and other values are told."""
    edges = torch.stack((torch.arange(9) % 6, torch.arange(9) % 5, torch.arange(9) % 3), axis)
    shape: tuple[int | str, ...] = (3, "edges") if axis == 0 else ("edges", 3)
    given = {"x": torch.randn(6, 4), "edges": edges}
    takes = describe_inputs(Triples(axis), given, {"x": ("nodes", 4), "edges": shape}, "it")
    own = takes.bounds["edges"]
    assert own == ((("nodes",), ("nodes",), (3,)) if axis == 0 else ("nodes", "nodes", 3))
    sizes = {"nodes": 40, "edges": 500}
    drawn = takes.sample(sizes, 0)["edges"]
    assert drawn.amax(1 - axis).tolist() == [39, 39, 2]
    spec = TensorSpec("edges", "int64", shape, below=own)
    array = drawn.numpy()
    require_within({"edges": array}, [spec], sizes)
    place = (2, 7) if axis == 0 else (7, 2)
    array[place] = 3
    with pytest.raises(InputError, match=rf"has 3 at \[{place[0]}, {place[1]}\]; .* from 0 to 2"):
        require_within({"edges": array}, [spec], sizes)


def test_the_same_seed_gives_the_same_inputs() -> None:
    """And another one others."""
    sample = sampler(guess_specs(Tokens(), "it"))

    assert torch.equal(sample(NINE, 0)["idx"], sample(NINE, 0)["idx"])
    assert not torch.equal(sample(NINE, 0)["idx"], sample(NINE, 1)["idx"])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"ids": torch.ones(2, 3)}, "'ids'; forward takes 'idx', 'labels'"),
        ({}, r"\(none\); forward takes"),
        ({"idx": torch.ones(0, 3)}, r"'idx' as a tensor of shape \[0, 3\]"),
        (
            {"idx": [[1, 2]]},
            r"'idx' as list.*forward\(self, idx_0\): return self.model\(\(idx_0,\)",
        ),
        ({"idx": {"a": 1}}, r"'idx' as dict.*forward\(self, a\): return self.model\({'a': a}\)"),
        ({"idx": 3}, "'idx' as int; it should be a tensor with entries"),
    ],
)
def test_examples_that_do_not_fit_forward_are_told(examples: Any, message: str) -> None:
    """Names and forms are held to what forward takes."""
    with pytest.raises(SourceError, match=message):
        specs_from_examples(Tokens(), examples, "it")
