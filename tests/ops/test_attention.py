"""Attention with a cache: PyTorch, loop and ONNX say the same, windowed or not."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intaglio.errors import InputError
from intaglio.ops import ATTENTION, attention
from intaglio.ops.op import Sample


@pytest.mark.parametrize("window", [None, 1, 2, 3, 20])
def test_the_function_equals_the_loop(window: int | None, close: Callable[..., None]) -> None:
    """Grouped heads, pasts of several lengths, windows narrower and wider than them."""
    torch.manual_seed(0)
    for time, past, heads in itertools.product((1, 2, 7), (0, 1, 5), ((2, 2), (4, 2), (3, 1))):
        size = (2, heads[1], past, 4)
        sample: Sample = {
            "query": torch.randn(2, heads[0], time, 4, dtype=torch.float64),
            "key": torch.randn(2, heads[1], time, 4, dtype=torch.float64),
            "value": torch.randn(2, heads[1], time, 4, dtype=torch.float64),
            "past_key": torch.randn(size, dtype=torch.float64),
            "past_value": torch.randn(size, dtype=torch.float64),
        }
        found = attention(**sample, window=window)
        for got, wanted in zip(found, ATTENTION.reference(**sample, window=window), strict=True):
            close(got, wanted, 1e-12)


@pytest.mark.parametrize("window", [None, 3])
def test_any_cut_of_time_gives_the_same(window: int | None, close: Callable[..., None]) -> None:
    """What is carried on is enough: with a window, its last entries."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 9, 4, dtype=torch.float64) for _ in "qkv")
    whole, _, _ = attention(q, k, v, window=window)
    for parts in ([1] * 9, [2, 7], [5, 3, 1], [8, 1]):
        past: tuple[Tensor | None, Tensor | None] = (None, None)
        done, outputs = 0, []
        for part in parts:
            now = slice(done, done + part)
            y, *present = attention(q[:, :, now], k[:, :, now], v[:, :, now], *past, window=window)
            past, done = (present[0], present[1]), done + part
            outputs.append(y)
        close(torch.cat(outputs, 2), whole, 1e-12)
        assert past[0] is not None
        assert past[0].shape[2] == (9 if window is None else window - 1)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_cut_of_time_moves_onnx_runtimes_last_bit_at_most(
    batch: int,
    engine_of: Callable[..., Any],
    cut_into: Callable[..., list[list[int]]],
    close: Callable[..., None],
) -> None:
    """Caches are the same bit for bit; outputs are to rounding.

    ONNX Runtime's matrix product of one row and of several round differently, so attention, unlike
    the recurrent operators, is not bit-identical there, but equal to within 1e-6.
    """
    torch.manual_seed(0)
    time, past = 130, 5
    sample: Sample = {
        "query": torch.randn(batch, 4, time, 8),
        "key": torch.randn(batch, 2, time, 8),
        "value": torch.randn(batch, 2, time, 8),
        "past_key": torch.randn(batch, 2, past, 8),
        "past_value": torch.randn(batch, 2, past, 8),
    }
    run = engine_of(ATTENTION, sample, "", 24)
    wanted, *last = run(sample)
    for parts in cut_into(time, (1, 2, 63, 64, 65, time)):
        given, done, outputs = dict(sample), 0, []
        for part in parts:
            for name in ("query", "key", "value"):
                given[name] = sample[name][:, :, done : done + part].contiguous()
            output, *present = run(given)
            given["past_key"], given["past_value"] = map(torch.from_numpy, present)
            outputs.append(output)
            done += part
        close(np.concatenate(outputs, 2), wanted, 1e-6)
        assert all(np.array_equal(a, b) for a, b in zip(present, last, strict=True)), parts


def test_onnx_runtime_computes_the_samples(
    engine_of: Callable[..., Any], close: Callable[..., None]
) -> None:
    """The standard's body at opset 27 for all, the native kernel of opset 24 without a window."""
    for sample in ATTENTION.samples(torch.float32):
        exact = {n: x.double() if isinstance(x, Tensor) else x for n, x in sample.items()}
        wanted = ATTENTION.reference(**exact)
        for opset in (27,) if "window" in sample else (27, 24):
            output, *presents = engine_of(ATTENTION, sample, "", opset)(sample)
            close(output, wanted[0], ATTENTION.tolerance[torch.float32])
            for present, kept in zip(presents, wanted[1:], strict=True):
                # ONNX hands on all keys; with a window the last of them are enough
                close(present[:, :, present.shape[2] - kept.shape[2] :], kept, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window"),
        ({"past_key": None}, "past_key and past_value"),
        ({"key": torch.zeros(2, 3, 5, 8)}, "heads"),
        ({"value": torch.zeros(2, 2, 4, 8)}, "value"),
        ({"query": torch.zeros(2, 5, 16)}, "query"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: Sample, message: str) -> None:
    """The error names the argument."""
    with pytest.raises(InputError, match=message):
        attention(**{**ATTENTION.samples(torch.float32)[0], **change})
