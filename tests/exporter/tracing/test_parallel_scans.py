"""Scans in parallel are the recurrences that they compute, or are refused."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import TraceError
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.capture import capture
from intaglio.exporter.tracing.loops import roll as rolling
from intaglio.exporter.tracing.loops.loop_streams import PartedError

SIZE = 4
Scan = Callable[[Tensor, Tensor], Tensor]


class Scanning(nn.Module):
    """A decay and a write of each token, and what `scan` makes of them."""

    def __init__(self, scan: Scan) -> None:
        super().__init__()
        self.scan, self.gates = scan, nn.Linear(SIZE, 2 * SIZE)
        self.poles = nn.Parameter(torch.randn(SIZE, 2))

    def forward(self, x: Tensor) -> Tensor:
        forget, write = self.gates(x).sigmoid().chunk(2, -1)
        if self.scan is in_complex_numbers:
            forget = torch.exp(torch.view_as_complex(-self.poles.exp())).tile(x.shape[1], 1)
            write = write.to(torch.complex64)
            forget = forget.expand_as(write)
        y = self.scan(forget, write)
        return y.real if y.is_complex() else y


def source_of(scan: Scan) -> Source:
    torch.manual_seed(0)
    return load_source(Scanning(scan), inputs={"x": np.zeros((2, 5, SIZE), np.float32)})


def doubled(a: Tensor, x: Tensor) -> Tensor:
    """Hillis and Steele: each of as many rounds as a logarithm tells reaches twice as far."""
    for count in range(int(np.ceil(np.log2(x.shape[1])))):
        x = x + a * F.pad(x, (0, 0, 2**count, 0))[:, : x.shape[1]]
        a = a * F.pad(a, (0, 0, 2**count, 0), value=1.0)[:, : a.shape[1]]
    return x


def summed(a: Tensor, x: Tensor) -> Tensor:
    del a
    reach, time = 1, x.shape[1]
    while reach < time:
        before = torch.zeros_like(x)
        before[:, reach:] = x[:, :-reach]
        x, reach = x + before, 2 * reach
    return x


def halved(a: Tensor, x: Tensor) -> Tensor:
    """Blelloch: pairs of neighbours first, what is between them from their results."""
    if x.shape[1] < 2:
        return x
    even = slice(0, x.shape[1] - x.shape[1] % 2, 2)
    odd = halved(a[:, 1::2] * a[:, even], x[:, 1::2] + a[:, 1::2] * x[:, even])
    last = odd if x.shape[1] % 2 else odd[:, :-1]
    out = torch.empty_like(x)
    out[:, 1::2] = odd
    out[:, ::2] = torch.cat((x[:, :1], x[:, 2::2] + a[:, 2::2] * last), 1)
    return out


def in_complex_numbers(a: Tensor, x: Tensor) -> Tensor:
    return halved(a, x)


def conquered(a: Tensor, x: Tensor) -> Tensor:
    """Sklansky: the second half goes on from the last of the first."""
    half = x.shape[1] // 2
    if not half:
        return x
    first, second = (conquered(a[:, part], x[:, part]) for part in (slice(half), slice(half, None)))
    return torch.cat((first, second + a[:, half:].cumprod(1) * first[:, -1:]), 1)


@pytest.mark.parametrize("scan", [doubled, summed, in_complex_numbers, conquered])
def test_scans_in_parallel_are_captured_as_recurrences(scan: Scan) -> None:
    source = source_of(scan)
    program, _ = capture(source)
    scans = [n for n in program.graph.nodes if n.target is torch.ops.higher_order.scan]
    module = program.module(check_guards=False)

    assert len(scans) == 1 or scan is summed
    for time in (1, 2, 9, 70):
        x = torch.randn(3, time, SIZE)
        with torch.no_grad():
            wanted, (found,) = source.module(x), module(x=x)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def largest(a: Tensor, x: Tensor) -> Tensor:
    """No sum of products."""
    del a
    reach = 1
    while reach < x.shape[1]:
        x = torch.cat((x[:, :reach], torch.maximum(x[:, reach:], x[:, :-reach])), 1)
        reach *= 2
    return x


def forgotten(a: Tensor, x: Tensor) -> Tensor:
    """Decays that are not multiplied with each other."""
    reach = 1
    while reach < x.shape[1]:
        x = torch.cat((x[:, :reach], x[:, reach:] + a[:, reach:] * x[:, :-reach]), 1)
        reach *= 2
    return x


@pytest.mark.parametrize("scan", [largest, forgotten])
def test_what_is_no_recurrence_of_sums_and_products_is_refused(scan: Scan) -> None:
    with pytest.raises(TraceError, match="no sum of products"):
        capture(source_of(scan))


def ended(a: Tensor, x: Tensor) -> Tensor:
    """A scan of up to sixteen tokens, in parts."""
    parts: Sequence[Tensor] = [
        halved(a[:, at : at + 16], x[:, at : at + 16]) for at in range(0, x.shape[1], 16)
    ]
    return torch.cat(list(parts), 1)


def test_a_scan_that_does_otherwise_of_more_tokens_is_refused() -> None:
    with pytest.raises(PartedError, match="something else where there are 17 tokens"):
        rolling._of_parallel_scans(source_of(ended))
