"""JoinPadding: what stands in front of a sequence is padding, however it was put there."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import PassError
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline, stepping
from intaglio.passes.base import Context

SIZE = 4
Forward = Callable[["Net", Tensor], dict[str, Tensor]]


class Net(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.conv, self.wide = nn.Conv1d(SIZE, 2 * SIZE, 3), nn.Conv1d(SIZE, SIZE, 3, padding=2)
        self.run = forward

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.run(self, x)


def stepped(forward: Forward) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """What a module gives for 12 tokens, and what its step graph gives in parts."""
    torch.manual_seed(0)
    source = load_source(Net(forward), inputs={"x": np.zeros((2, 5, SIZE), np.float32)})
    model, context = trace(source).model, Context()
    pipeline.run(model, pipeline.standard(), context)
    inputs = source.random_inputs(3, 12, 1)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    got = stepping.roll(model, context.states, feeds, [1, 5, 2, 4])
    with torch.no_grad():
        return source.module(**inputs), got


def fronts(net: Net, x: Tensor) -> dict[str, Tensor]:
    """The first token repeated in front, zeros in front, and what stays of them."""
    first = x[:, :1]
    edge = F.pad(x.mT, (4, 0), mode="replicate")
    trend = F.avg_pool1d(torch.cat([first.repeat(1, 3, 1), x], 1).mT, 4, stride=1).mT
    zeros = torch.cat([x.new_zeros(x.shape[0], 2, SIZE), x], 1)
    left, right = net.wide(x.mT)[..., :-2].chunk(2, 1)
    return {
        "season": x - trend,
        "twice": net.conv(net.wide.weight.mean() + F.conv1d(edge, net.wide.weight).relu()).mT,
        "one by one": net.conv(torch.cat([x[:, 0].unsqueeze(1), first, x], 1).mT).mT,
        "zeros": net.conv(zeros.mT).mT,
        "cut behind, then apart": left.mT * right.mT,
        "largest": F.max_pool1d(F.pad(x.mT, (2, 0), mode="replicate"), 3, stride=1).mT,
    }


def test_what_is_joined_in_front_is_carried() -> None:
    wanted, got = stepped(fronts)
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def behind(net: Net, x: Tensor) -> dict[str, Tensor]:
    return {"y": net.conv(F.pad(x.mT, (1, 1), mode="replicate")).mT}


def mixed(net: Net, x: Tensor) -> dict[str, Tensor]:
    edge, zeros = F.pad(x.mT, (2, 0), mode="replicate"), F.pad(x.mT, (2, 0))
    return {"y": net.conv(edge + zeros).mT}


def in_front_of_it(net: Net, x: Tensor) -> dict[str, Tensor]:
    return {"y": net.conv(F.pad(F.pad(x.mT, (1, 0), mode="replicate"), (1, 0))).mT}


def other(net: Net, x: Tensor) -> dict[str, Tensor]:
    """The first token of something else."""
    return {"y": net.conv(torch.cat([(2 * x)[:, :1].repeat(1, 2, 1), x], 1).mT).mT}


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (behind, "repeats the last token"),
        (mixed, "combines entries of different tokens"),
        (in_front_of_it, "pads in front of what padding became"),
        (other, "joins values that do not all lie along time"),
    ],
)
def test_what_no_step_can_know_is_refused(forward: Forward, words: str) -> None:
    with pytest.raises(PassError, match=words):
        stepped(forward)
