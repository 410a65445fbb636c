"""`--axes`: names, ranges and bounds; and what is guessed without."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import OptionError
from intaglio.exporter.options.layout_text import split_words
from intaglio.exporter.sources.axes import Layouts, Span, in_words
from intaglio.exporter.sources.examples import describe_inputs


def test_words_are_sizes_names_ranges_and_bounds() -> None:
    layouts = Layouts.of({"image": split_words("batchx3xheight=64..512:32xwidth=..100")})
    assert layouts.inputs["image"].shape == ("batch", 3, "height", "width")
    assert layouts.spans == {"height": Span(64, 512, 32), "width": Span(1, 100)}
    edges = Layouts.of({"edge_index": split_words("2xedges<nodes")}).inputs["edge_index"]
    assert (edges.shape, edges.below) == ((2, "edges"), "nodes")
    assert split_words("batch,max_length") == ["batch", "max_length"]
    assert split_words("") == []
    assert in_words("ids", ("batch", "max_length")) == "ids:batch,max_length"


def test_an_axis_may_be_empty_where_that_is_said() -> None:
    layouts = Layouts.of({"edges": (2, "edges=0.."), "image": ("width=..64:8",)})

    assert layouts.spans == {"edges": Span(0), "width": Span(8, 64, 8)}
    assert layouts.spans["edges"].holds(0)


def test_a_span_within_others_keeps_its_steps() -> None:
    assert Span(4, None, 4).within(6, 18) == Span(8, 16, 4)
    assert Span(4, 12, 4).within(1, 50) == Span(4, 12, 4)
    assert Span().within(3, 3) == Span(3, 3)
    assert Span(8, None, 8).within(9, 15) == Span(16, 16, 8)  # there is none


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"x": ("batch", "height=5..2")}, "holds no size"),
        ({"x": ("batch", "height=a..b")}, "is not LEAST..MOST:STEP"),
        ({"x": ("batch", "1st")}, "'1st' is no size and no name"),
        ({"x": ("batch", "capacity")}, "another name, as capacity_"),
        ({"x": ("n=1..4", 3), "y": ("n=1..5", 3)}, "n is 1..4 elsewhere"),
    ],
)
def test_what_cannot_be_read_is_told(axes: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Layouts.of(axes)


class Net(nn.Module):
    """Runs whatever its function does."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run, self.table, self.other = run, nn.Embedding(5, 2), nn.Embedding(9, 2)
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        found: Tensor = self.run(self, x, y)
        return found


RANDOM = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("run", "inputs", "shapes"),
    [
        (lambda n, x, _: n.mix(x), [torch.ones(2, 3, 4)], [("batch", "time", 4)]),
        (lambda n, x, _: n.mix(x.mT).mT, [torch.ones(2, 4, 3)], [("batch", 4, "time")]),
        (lambda n, x, _: n.mix(x), [torch.ones(2, 4)], [("batch", 4)]),
        (lambda n, x, _: n.mix(x.reshape(-1, 4)), [torch.ones(2, 1, 2, 2)], [("batch", 1, 2, 2)]),
        (lambda n, x, y: n.mix(x) * y, [torch.ones(2, 4), torch.tensor(2.0)], [("batch", 4), ()]),
        (
            lambda n, x, y: n.mix(x) + y[:, None],
            [torch.ones(2, 3, 4), torch.ones(2, 4)],
            [("batch", "time", 4), ("batch", 4)],
        ),
        (
            lambda n, x, y: (n.mix(x) @ y.mT).softmax(-1) @ y,
            [torch.ones(2, 3, 4), torch.ones(2, 5, 4)],
            [("batch", "time", 4), ("batch", "y_1", 4)],
        ),
        (
            lambda n, x, y: (n.mix(y) @ x.mT).softmax(-1) @ x,
            [torch.ones(2, 3, 4), torch.ones(2, 5, 4)],
            [("batch", "x_1", 4), ("batch", "time", 4)],
        ),
        (
            lambda n, x, y: n.mix(x).mean(1) + y,
            [torch.ones(2, 3, 4), torch.ones(2, 4)],
            [("batch", "time", 4), ("batch", 4)],
        ),
        (
            lambda n, x, y: n.mix(x) + y.view(len(y), -1)[:, None, :4],
            [torch.ones(2, 3, 4), torch.ones(2, 2, 4)],
            [("batch", "time", 4), ("batch", "y_1", 4)],
        ),
        (
            lambda n, x, y: n.mix(x) + y.view(len(y), 8)[:, None, :4],
            [torch.ones(2, 3, 4), torch.ones(2, 2, 4)],
            [("batch", "time", 4), ("batch", 2, 4)],
        ),
        (
            lambda n, x, y: n.mix(x)[y],
            [torch.ones(3, 4), torch.tensor([0, 2])],
            [("x", 4), ("y",)],
        ),
    ],
)
def test_free_axes_are_found_by_running(run: Any, inputs: Any, shapes: Any) -> None:
    """Sequences, signals, rows, flattened pictures, scalars, and axes of their own."""
    named = dict(zip(("x", "y"), inputs, strict=False))
    takes = describe_inputs(Net(run), named, None, "it")
    found = [
        tuple(takes.dynamic[name].get(axis, size) for axis, size in enumerate(value.shape))
        for name, value in named.items()
    ]
    assert found == shapes


@pytest.mark.parametrize(
    ("run", "bound"),
    [
        (lambda n, x, _: n.table(x[:, 0]) + n.other(x[:, 1].int()), (5, 9)),
        (lambda n, x, _: n.table(x) + n.other(x + 1), 5),
        (lambda n, x, _: n.other(x + torch.tensor([0, 5])), (9, 4)),
        (lambda n, x, _: n.mix.weight[x.flip(0)], 4),
        (lambda _, x, __: nn.functional.one_hot(x, 6), 6),
        (lambda _, x, __: x * 2, None),
    ],
)
def test_integers_stay_below_what_they_pick_from(run: Any, bound: Any) -> None:
    """Column by column, through casts and sums; drawn so, too."""
    ids = torch.tensor([[0, 1], [3, 2], [1, 3]])
    takes = describe_inputs(Net(run), {"x": ids}, {"x": ("batch", 2)}, "it")
    assert takes.bounds.get("x") == bound
    drawn = takes.sample({"batch": 400}, 0)["x"]
    most = torch.as_tensor(4 if bound is None else bound)
    assert torch.equal(drawn.amax(0), (most - 1).expand(2))


@pytest.mark.parametrize(
    ("example", "low", "high"),
    [
        (torch.rand(4, 6, generator=RANDOM) + 0.1, 0.1, 1.1),
        (-torch.rand(4, 6, generator=RANDOM) - 2, -3.0, -2.0),
        (torch.tensor([[0.0, 0.25], [0.5, 1.0]]), 0.0, 1.0),
        (torch.tensor([[True, False]]), 0.0, 1.0),
        (torch.tensor([[[3.0, -7.0]]]), -7.0, 3.0),
    ],
)
def test_values_keep_to_the_range_of_the_example(example: Tensor, low: float, high: float) -> None:
    """Powers, losses, probabilities, flags; all of it is reached, nothing beyond."""

    class Echo(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    takes = describe_inputs(Echo(), {"x": example}, None, "it")
    drawn = takes.sample({"batch": 50, "time": 30}, 0)["x"].double()
    assert low - 1e-6 <= float(drawn.min())
    assert float(drawn.max()) <= high + 1e-6
    assert float(drawn.std()) > 0.2 * float(example.double().std(correction=0))
