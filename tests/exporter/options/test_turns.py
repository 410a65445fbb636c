"""Threads that export take turns, and each gets what it would get alone."""

import threading
from pathlib import Path

import torch
from torch import nn

from intaglio import export
from intaglio.exporter.options.turns import one_at_a_time
from intaglio.runtime.manifest import Manifest


def test_two_threads_export_as_one_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(3, width) for width in (2, 4)]
    inputs = {"input": torch.randn(2, 5, 3)}

    def run(place: str, index: int) -> None:
        export(layers[index], tmp_path / place, inputs=inputs, verify=False)

    threads = [threading.Thread(target=run, args=(f"side{i}", i)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run("alone", 1)

    files = [Manifest.load(tmp_path / at / "manifest.json").files for at in ("side1", "alone")]
    assert files[0] == files[1]
    assert (tmp_path / "side0" / "manifest.json").exists()


def test_nobody_is_within_twice_but_the_same_thread() -> None:
    within: list[int] = []
    most: list[int] = []

    @one_at_a_time
    def inner() -> None:
        most.append(len(within))

    @one_at_a_time
    def outer() -> None:
        within.append(1)
        inner()
        within.pop()

    threads = [threading.Thread(target=outer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
