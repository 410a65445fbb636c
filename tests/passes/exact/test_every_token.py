"""Heads on the last token become heads on every token, where that is the same function."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import PassError
from intaglio.passes import pipeline, stepping
from intaglio.passes.base import Context
from intaglio.passes.graph import dims

VOCABULARY = 31
Traced = Callable[[nn.Module], tuple[ir.Model, Context]]
Head = Callable[["Net", Tensor, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, head: Head) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rnn = nn.Embedding(VOCABULARY, 6), nn.GRU(6, 6, 2, batch_first=True)
        self.norm, self.out, self.both = nn.LayerNorm(6), nn.Linear(6, 4), nn.Linear(12, 4)
        self.head = head

    def forward(self, input_ids: Tensor) -> Tensor:
        y, h = self.rnn(self.embed(input_ids))
        return self.head(self, y, h)


HEADS: dict[str, Head] = {
    "index": lambda net, y, h: net.out(net.norm(y[:, -1])),  # noqa: ARG005
    "slice": lambda net, y, h: net.out(y[:, -1:]),  # noqa: ARG005
    "list": lambda net, y, h: net.out(y[:, [-1], :]),  # noqa: ARG005
    "view": lambda net, y, h: net.out(y[:, -1, :].reshape(y.shape[0], -1)).softmax(-1),  # noqa: ARG005
    "hidden": lambda net, y, h: net.out(h[-1]),  # noqa: ARG005
    "both layers": lambda net, y, h: net.both(torch.cat((h[-1], h[-2]), 1)),  # noqa: ARG005
}


@pytest.mark.parametrize("name", HEADS)
def test_every_token_gets_what_the_module_gives_for_the_last_of_as_many(
    traced: Traced, name: str
) -> None:
    module = Net(HEADS[name])
    model, context = traced(module)
    records = pipeline.run(model, pipeline.standard(), context, check=True)

    (output,) = (
        value for value in model.graph.outputs if not str(value.name).startswith("present")
    )
    assert dims(output) == ("batch", "time", 4)
    assert any("--last" in line for record in records for line in record.result.advice)
    ids = torch.randint(VOCABULARY, (3, 7))
    found = stepping.roll(model, context.states, {"input_ids": ids.numpy()}, [2, 4, 1])
    for count in (1, 2, 7):
        with torch.no_grad():
            wanted = module(ids[:, :count]).reshape(3, 4).numpy()
        np.testing.assert_allclose(found[str(output.name)][:, count - 1], wanted, atol=1e-5)


def test_with_last_and_where_it_is_no_function_of_one_token_it_is_returned_once(
    traced: Traced,
) -> None:
    """As it is after the last token of each call."""
    second: Head = lambda net, y, h: net.out(y[:, -1])[None]  # noqa: ARG005, E731
    for head, last, shape in (
        (HEADS["index"], True, ("batch", 4)),
        (second, False, (1, "batch", 4)),
    ):
        module = Net(head)
        model, context = traced(module)
        pipeline.run(model, pipeline.standard(last=last), context, check=True)

        assert dims(model.graph.outputs[0]) == shape
        ids = torch.randint(VOCABULARY, (3, 7))
        found = stepping.roll(model, context.states, {"input_ids": ids.numpy()}, [2, 4, 1])
        with torch.no_grad():
            np.testing.assert_allclose(
                found[str(model.graph.outputs[0].name)], module(ids).numpy(), atol=1e-4
            )


def test_the_last_token_given_to_every_token_is_refused(traced: Traced) -> None:
    """Each would see those after it."""
    model, context = traced(Net(lambda net, y, h: net.out(y + y[:, -1:])))  # noqa: ARG005
    with pytest.raises(PassError, match="would see those after it"):
        pipeline.run(model, pipeline.standard(), context)


def test_a_state_that_is_returned_is_what_it_is_after_each_call(traced: Traced) -> None:
    module = Net(lambda net, y, h: h)  # noqa: ARG005
    model, context = traced(module)
    pipeline.run(model, pipeline.standard(), context, check=True)

    ids = torch.randint(VOCABULARY, (3, 7))
    found = stepping.roll(model, context.states, {"input_ids": ids.numpy()}, [2, 5])
    with torch.no_grad():
        np.testing.assert_allclose(found["output"], module(ids).numpy(), atol=1e-5)
